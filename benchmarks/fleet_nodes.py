"""The nodes of a fleet on this machine: each is a process with a `shm_dir` of its own and a follower thread."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import structlog

from benchmarks import servers
from quorin import assembly
from quorin.engine.ops.readiness import readiness
from quorin.errors import QuorinError, SegmentNotFoundError
from quorin.follower import Follower
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer

NAMES = ("a", "b", "c", "d")
LOOK_SECONDS = 0.0002
BURST = 20
CHUNK = 250_000
spawn = get_context("spawn")


class FleetRow(FeatureSchema):
    """Four scalars."""

    version = 1
    fields = [FeatureField(name, dtype.float32) for name in NAMES]


class Node:
    """A serving process of a node, and how the benchmark talks to it."""

    def __init__(self, process: Any, pipe: Connection, shm_dir: Path) -> None:
        self.process, self._pipe, self.shm_dir = process, pipe, shm_dir

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer to a question."""
        self.begin(question, *arguments)
        return self.end()

    def begin(self, question: str, *arguments: Any) -> None:
        """Ask, without waiting for the answer."""
        self._pipe.send((question, *arguments))

    def end(self) -> Any:
        """The answer to the question that was asked last."""
        return self._pipe.recv()


class Fleet:
    """A Redis, nodes, and a producer in a process of the first node. All of it ends with the stack."""

    def __init__(self, stack: ExitStack, count: int, entities: int) -> None:
        self._stack, self.entities = stack, entities
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_shared_memory())))
        self.server = stack.enter_context(servers.running())
        self.url = f"redis://{self.server.address}"
        self.nodes: list[Node] = []
        self.shm_dir = self.folder / "node0"
        self.shm_dir.mkdir()
        self.registry = SegmentRegistry(self.url, shm_dir=self.shm_dir)
        self.registry.create(FleetRow, capacity=entities).close()
        self.producer = stack.enter_context(WALProducer(self.registry.backend, registry=self.registry))
        self.add(count)

    def add(self, count: int) -> None:
        """More nodes."""
        for number in range(len(self.nodes), len(self.nodes) + count):
            self.nodes.append(self._stack.enter_context(node(self.url, self.folder / f"node{number}")))

    def write(self, rows: int, *, seed: int = 0, per_second: float = 0.0) -> int:
        """Write whole rows in no order; the last one's position. At most `per_second` rows a second (0: no limit)."""
        order = np.random.default_rng(seed).permutation(self.entities)
        ids = pa.array([f"e{number}" for number in order])
        begun, position = time.monotonic(), 0
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start, len(ids))
            at = start % (len(ids) - count + 1)
            values = {name: np.arange(start, start + count, dtype=np.float32) for name in NAMES}
            position = self.producer.write_many(FleetRow, pa.table({"entity_id": ids.slice(at, count), **values}))
            if per_second:
                time.sleep(max(0.0, begun + (start + count) / per_second - time.monotonic()))
        return position

    def push(self, rate: int, seconds: float) -> list[tuple[int, int]]:
        """Push single rows at a rate; the monotonic ns before each, and its position."""
        pushed: list[tuple[int, int]] = []
        begun = time.monotonic()
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            at, values = time.monotonic_ns(), dict.fromkeys(NAMES, float(number))
            pushed.append((at, self.producer.write(FleetRow, f"e{number % self.entities}", values)))
        return pushed

    def reach(self, position: int) -> None:
        """Wait until every node has a position."""
        for each in self.nodes:
            each.begin("reach", position)
        for each in self.nodes:
            each.end()


@contextmanager
def node(url: str, shm_dir: Path) -> Iterator[Node]:
    """A process of the node that has `shm_dir`; it is killed with the block."""
    shm_dir.mkdir(exist_ok=True)
    pipe, other = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(url, str(shm_dir), other), daemon=True)
    process.start()
    try:
        yield Node(process, pipe, shm_dir)
    finally:
        process.kill()
        process.join()


@contextmanager
def consumer(url: str, shm_dir: Path, *options: str) -> Iterator[Path]:
    """`quorin consumer` on a node; gives the file of what it says. It must end well."""
    shm_dir.mkdir(exist_ok=True)
    said = shm_dir.with_suffix(".log")
    command = [sys.executable, "-m", "quorin", "consumer", "--connection", url, *options]
    with said.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env={**os.environ, "QUORIN_SHM_DIR": str(shm_dir)})
        try:
            yield said
        finally:
            process.terminate()
            if process.wait(60):
                raise SystemExit(f"the consumer ended with {process.returncode}:\n{said.read_text()}")


def is_ready(registry: SegmentRegistry) -> bool:
    """Whether all segments of a node are known to have had everything a second ago, as `quorin ready` says."""
    try:
        found = readiness(registry, max_lag_seconds=1.0)
    except QuorinError:
        return False
    return bool(found) and not any(one.problem for one in found)


def seconds_until(
    what: str, condition: Callable[[], Any], *, timeout: float = 120.0, since: float | None = None
) -> float:
    """Seconds until a condition, which ``what`` names, holds: from now or from a monotonic time."""
    since = time.monotonic() if since is None else since
    while not condition():
        if time.monotonic() > since + timeout:
            raise SystemExit(f"{what}: not within {timeout:g} s")
        time.sleep(0.005)
    return time.monotonic() - since


def opened(registry: SegmentRegistry) -> Segment:
    """The node's segment, once it has one."""
    while True:
        try:
            return registry.open_current(FleetRow)
        except SegmentNotFoundError:
            time.sleep(0.01)


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - where segments usually are


def _serve(url: str, shm_dir: str, pipe: Connection) -> None:
    errors = _ErrorCount()
    structlog.configure(processors=[errors])
    registry = SegmentRegistry(url, shm_dir=shm_dir)
    follower = Follower(registry)
    follower.start()
    answers: dict[str, Callable[..., Any]] = {
        "watch": lambda seconds: _watch(opened(registry), seconds),
        "read": lambda seconds, entities: _read_times(opened(registry), seconds, entities),
        "reach": lambda position: _reach(opened(registry), position),
        "digest": lambda entities: _digest(opened(registry), entities),
        "errors": lambda: errors.count,
        "applies": lambda: follower.applies,
        "cpu": _cpu_seconds,
        "start": follower.start,
        "stop": follower.stop,
    }
    while True:
        question, *arguments = pipe.recv()
        pipe.send(answers[question](*arguments))


class _ErrorCount:
    """Counts what Quorin logs as an error, and shows nothing."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _logger: object, method: str, _event: object) -> NoReturn:
        self.count += method in ("error", "critical", "exception")
        raise structlog.DropEvent


def _watch(segment: Segment, seconds: float) -> list[tuple[int, int]]:
    """When, in monotonic ns, which position was first seen."""
    seen: list[tuple[int, int]] = []
    position, end = segment.position, time.monotonic() + seconds
    while time.monotonic() < end:
        now_at = segment.position
        if now_at != position:
            position = now_at
            seen.append((time.monotonic_ns(), position))
        time.sleep(LOOK_SECONDS)
    return seen


def _reach(segment: Segment, position: int) -> float:
    """The monotonic time when a position is reached."""
    while segment.position < position:
        time.sleep(0.001)
    return time.monotonic()


def _read_times(segment: Segment, seconds: float, entities: int) -> tuple[list[int], int]:
    """Nanoseconds of single reads, in short bursts as of a request, and how many failed."""
    read, failed = assembly.reader(segment), 0
    ids = [f"e{number}" for number in np.random.default_rng(0).integers(0, entities, 10_000)]
    times: list[int] = []
    end, clock = time.monotonic() + seconds, time.perf_counter_ns
    while time.monotonic() < end:
        for number in range(BURST):
            entity_id = ids[(len(times) + number) % len(ids)]
            before = clock()
            try:
                read(entity_id)
            except QuorinError:
                failed += 1
            times.append(clock() - before)
        time.sleep(0.001)
    return times, failed


def _digest(segment: Segment, entities: int) -> tuple[int, str]:
    """The number of rows, and a digest of all their values and event times."""
    batch = assembly.read(segment, [f"e{number}" for number in range(entities)])
    return len(segment), hashlib.sha256(batch.serialize()).hexdigest()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
