"""Serving processes of several nodes on one machine, each node with a ``shm_dir`` of its own, on one Redis."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quorin import assembly
from quorin.engine.ops.readiness import readiness
from quorin.errors import ConnectionFailedError, QuorinError
from quorin.follower import Follower
from quorin.layout import iterate_occupied
from quorin.shm import Segment, SegmentRegistry
from tests.support.forking import context
from tests.support.freezing import send_signal


def serve(
    url: str, shm_dir: str, follows: bool, clock_seconds: float, options: dict[str, Any], pipe: Connection
) -> None:
    """A serving process: answers questions from the pipe, beside its follower."""
    if clock_seconds:
        _set_clock(clock_seconds)
    registry = _registry(url, shm_dir)
    follower = Follower(registry, capacity=64, **options)
    if follows:
        follower.start()
    segments: dict[str, Segment] = {}
    while True:
        try:
            question, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_answer(registry, follower, segments, question, *arguments))
        except QuorinError as error:
            segments.clear()
            pipe.send(error)


def _set_clock(seconds: float) -> None:
    """Let the time of day be ahead in this process."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def _registry(url: str, shm_dir: str) -> SegmentRegistry:
    """A node that is new to the deployment needs Redis to start; a supervisor would restart the process."""
    while True:
        try:
            return SegmentRegistry(url, shm_dir=shm_dir)
        except ConnectionFailedError:
            time.sleep(0.1)


def _answer(
    registry: SegmentRegistry, follower: Follower, segments: dict[str, Segment], question: str, *arguments: Any
) -> Any:
    if question == "applies":
        return follower.applies
    if question == "ready":
        return [one.problem for one in readiness(registry, max_lag_seconds=1)] == [""]
    if question == "fork":
        return _forked(registry, follower, *arguments)
    (name,) = arguments
    segment = segments.get(name)
    if segment is None or segment.stored_schema is not segment.schema or not segment.current_view().path.exists():
        segment = segments[name] = registry.open_stored(name)
    if question == "wait":
        return follower.wait_until_fresh(segment)
    if question == "age":
        return segment.confirmed_age_seconds()
    if question == "rows":
        ids = sorted(entity_id for entity_id, _ in iterate_occupied(segment))
        return assembly.read(segment, ids).to_pylist()
    raise AssertionError(question)


def _forked(registry: SegmentRegistry, follower: Follower, name: str) -> bool:
    """Whether a forked child follows by itself, after its parent has stopped to."""
    pid = os.fork()
    if pid:
        follower.stop()
        return os.waitpid(pid, 0)[1] == 0
    deadline = time.monotonic() + 60
    follower.start()
    while not follower.applies and time.monotonic() < deadline:
        time.sleep(0.01)
    with registry.open_stored(name) as segment:
        is_fresh = follower.wait_until_fresh(segment)
    os._exit(0 if follower.applies and is_fresh else 1)


class Server:
    """A serving process of a node, as a test talks to it."""

    def __init__(
        self, url: str, shm_dir: Path, *, follows: bool = True, clock_seconds: float = 0, **options: Any
    ) -> None:
        """``options`` are those of its follower."""
        self._pipe, other = context.Pipe()
        arguments = url, str(shm_dir), follows, clock_seconds, options, other
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        other.close()

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer; an error of Quorin's in the process is raised here."""
        self._pipe.send((question, *arguments))
        assert self._pipe.poll(120), f"no answer to {question!r}"
        answer = self._pipe.recv()
        if isinstance(answer, QuorinError):
            raise answer
        return answer

    def rows(self, name: str) -> Any:
        return self.ask("rows", name)

    def kill(self, number: int = signal.SIGKILL) -> None:
        send_signal(int(self.process.pid or 0), number)

    def stop(self) -> None:
        """Also a stopped process is ended."""
        self._pipe.close()
        self.process.kill()
        self.process.join(60)


class Node:
    """A node: a directory for its segments, and its serving processes."""

    def __init__(self, url: str, shm_dir: Path) -> None:
        shm_dir.mkdir(exist_ok=True)
        self.url, self.shm_dir = url, shm_dir
        self.servers: list[Server] = []

    def start(self, **options: Any) -> Server:
        server = Server(self.url, self.shm_dir, **options)
        self.servers.append(server)
        return server

    def registry(self) -> SegmentRegistry:
        return SegmentRegistry(self.url, shm_dir=self.shm_dir)

    def reboot(self) -> None:
        """Everything in shared memory is lost."""
        for path in self.shm_dir.iterdir():
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Wait until a condition holds; while it raises Quorin's errors it does not."""
    deadline, problem = time.monotonic() + seconds, "it is not so"
    while True:
        try:
            if condition():
                return
        except QuorinError as error:
            problem = repr(error)
        assert time.monotonic() < deadline, problem
        time.sleep(0.02)
