"""Several nodes on one Redis: how soon a write on one is visible on another, and what following costs.

Each node is a process with a `shm_dir` of its own and a follower thread, as a serving process with `redis_url` has.
`visible` ends when the segment of another node has passed the write's position. Beside it, in the same run, Feast's own
Redis store: from the call of `push` to the moment when another process reads the value. "Reads beside the follower" are
single `assemble` calls in the process whose thread applies. When an applier is killed, another process of its node goes
on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from quorin.assembly import reader
from quorin.errors import SegmentNotFoundError
from quorin.follower import Follower
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer

NAMES = ("a", "b", "c", "d")
LOOK_SECONDS = 0.0002
spawn = multiprocessing.get_context("spawn")


class FleetRow(FeatureSchema):
    """Four scalars."""

    version = 1
    fields = [FeatureField(name, dtype.float32) for name in NAMES]


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    figures = _measure(arguments)
    table = _table(figures, arguments)
    console.print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": where, "fleet": figures}, indent=2) + "\n")
    if arguments.docs:
        report.put(arguments.docs, "fleet", machine.one_line(where), [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=3, help="nodes (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=1_000, help="rows a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of pushes at that rate (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in bulk (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=100_000, help="different ids (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=10, help="killed appliers (default: %(default)s)")
    parser.add_argument("--feast-pushes", type=int, default=300, help="by Feast on Redis (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_shared_memory())))
        socket = folder / "redis.sock"
        address = stack.enter_context(servers.redis_server(socket_path=socket))
        url = f"redis://{address}"
        producer = stack.enter_context(WALProducer(url))
        nodes = [stack.enter_context(_node(url, folder / f"node{number}")) for number in range(arguments.nodes)]
        backend = SegmentRegistry(url, shm_dir=folder / "node0")
        backend.create(FleetRow, capacity=arguments.entities).close()
        ids = [f"e{number}" for number in range(arguments.entities)]
        values = {name: np.zeros(arguments.entities, np.float32) for name in NAMES}
        loaded = producer.write_many(FleetRow, pa.table({"entity_id": ids, **values}))
        for node in nodes:
            node.ask("reach", loaded)
        figures = _idle(nodes)
        figures |= _visible(producer, nodes, arguments)
        figures |= _bulk(producer, nodes, arguments)
        figures |= _takeover(producer, url, folder / "node1", nodes[1], arguments.kills)
        figures |= _feast(address, arguments.feast_pushes)
        return figures


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - where segments usually are


class Node:
    """A serving process of a node, and how the benchmark talks to it."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process, self._pipe = process, pipe

    def ask(self, question: str, *arguments: Any) -> Any:
        """The answer to a question."""
        self._pipe.send((question, *arguments))
        return self._pipe.recv()

    def begin(self, question: str, *arguments: Any) -> None:
        """Ask, without waiting for the answer."""
        self._pipe.send((question, *arguments))

    def end(self) -> Any:
        """The answer to the question that was asked last."""
        return self._pipe.recv()


@contextmanager
def _node(url: str, shm_dir: Path) -> Iterator[Node]:
    shm_dir.mkdir(exist_ok=True)
    pipe, other = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(url, str(shm_dir), other), daemon=True)
    process.start()
    try:
        yield Node(process, pipe)
    finally:
        process.kill()
        process.join()


def _serve(url: str, shm_dir: str, pipe: Connection) -> None:
    registry = SegmentRegistry(url, shm_dir=shm_dir)
    follower = Follower(registry)
    follower.start()
    answers: dict[str, Callable[..., Any]] = {
        "watch": lambda seconds: _watch(_opened(registry), seconds),
        "read": lambda seconds, entities: _read_times(_opened(registry), seconds, entities),
        "reach": lambda position: _reach(_opened(registry), position),
        "applies": lambda: follower.applies,
        "cpu": _cpu_seconds,
    }
    while True:
        question, *arguments = pipe.recv()
        pipe.send(answers[question](*arguments))


def _opened(registry: SegmentRegistry) -> Segment:
    while True:
        try:
            return registry.open_current(FleetRow)
        except SegmentNotFoundError:
            time.sleep(0.01)


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
    """Processor seconds and the monotonic time when a position is reached."""
    while segment.position < position:
        time.sleep(0.001)
    return time.monotonic()


def _read_times(segment: Segment, seconds: float, entities: int) -> list[int]:
    read = reader(segment)
    ids = [f"e{number}" for number in np.random.default_rng(0).integers(0, entities, 10_000)]
    times, end, clock = [], time.monotonic() + seconds, time.perf_counter_ns
    number = 0
    while time.monotonic() < end:
        for _ in range(100):
            entity_id = ids[number % len(ids)]
            number += 1
            before = clock()
            read(entity_id)
            times.append(clock() - before)
        time.sleep(0.001)
    return times


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _push(producer: WALProducer, rate: int, seconds: float, entities: int) -> list[tuple[int, int]]:
    """Push single rows at a rate; the monotonic time before each, and its position."""
    pushed, begun = [], time.monotonic()
    for number in range(int(rate * seconds)):
        wait = begun + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        at = time.monotonic_ns()
        values = dict.fromkeys(NAMES, float(number))
        pushed.append((at, producer.write(FleetRow, f"e{number % entities}", values)))
    return pushed


def _idle(nodes: list[Node], seconds: float = 5.0) -> dict[str, float]:
    time.sleep(1)
    before = [node.ask("cpu") for node in nodes]
    time.sleep(seconds)
    spent = [node.ask("cpu") - start for node, start in zip(nodes, before, strict=True)]
    return {"idle_core_share": float(np.mean(spent)) / seconds}


def _visible(producer: WALProducer, nodes: list[Node], arguments: argparse.Namespace) -> dict[str, float]:
    seconds, others = arguments.seconds, nodes[1:]
    figures = {}
    quiet = np.array(nodes[0].ask("read", seconds / 4, arguments.entities))
    for node in others:
        node.begin("watch", seconds + 2)
    nodes[0].begin("read", seconds, arguments.entities)
    pushed = _push(producer, arguments.rate, seconds, arguments.entities)
    busy = np.array(nodes[0].end())
    late: list[float] = []
    for node in others:
        seen = node.end()
        times, positions = np.array([at for at, _ in seen]), np.array([position for _, position in seen])
        first = np.searchsorted(positions, [position for _, position in pushed])
        inside = first < len(times)
        if not inside.all():
            raise SystemExit(f"{(~inside).sum()} of {len(pushed)} rows did not become visible")
        late += list(times[first] - np.array([at for at, _ in pushed]))
    for label, share in (("p50", 0.5), ("p99", 0.99), ("longest", 1.0)):
        figures[f"visible_{label}"] = float(np.quantile(late, share))
    for label, share in (("p50", 0.5), ("p99", 0.99)):
        figures[f"read_quiet_{label}"] = float(np.quantile(quiet, share))
        figures[f"read_busy_{label}"] = float(np.quantile(busy, share))
    return figures


def _bulk(producer: WALProducer, nodes: list[Node], arguments: argparse.Namespace) -> dict[str, float]:
    """Rows a second that each node applies of one log, all nodes at the same time on the cores there are."""
    ids = [f"e{number % arguments.entities}" for number in range(arguments.rows)]
    values = {name: np.arange(arguments.rows, dtype=np.float32) for name in NAMES}
    before = [node.ask("cpu") for node in nodes]
    begun = time.monotonic()
    position = producer.write_many(FleetRow, pa.table({"entity_id": ids, **values}))
    appended = time.monotonic()
    for node in nodes:
        node.begin("reach", position)
    reached = [node.end() for node in nodes]
    spent = [node.ask("cpu") - start for node, start in zip(nodes, before, strict=True)]
    return {
        "bulk_appended_per_s": arguments.rows / (appended - begun),
        "bulk_all_nodes_per_s": arguments.rows / (max(reached) - begun),
        "bulk_per_core_per_s": arguments.rows / float(np.mean(spent)),
    }


def _takeover(producer: WALProducer, url: str, shm_dir: Path, first: Node, kills: int) -> dict[str, float]:
    """Seconds from SIGKILL of the process that applies to the first write that another process of its node applies."""
    gaps = []
    with ExitStack() as stack:
        appliers = [first, *(stack.enter_context(_node(url, shm_dir)) for _ in range(kills))]
        for applier in appliers[1:]:
            applier.ask("applies")
        segment = _opened(SegmentRegistry(url, shm_dir=shm_dir))
        for _ in range(kills):
            victim = _applier(appliers)
            os.kill(victim.process.pid, signal.SIGKILL)
            killed = time.monotonic()
            victim.process.join()
            appliers.remove(victim)
            position = producer.write(FleetRow, "e0", dict.fromkeys(NAMES, 0.0))
            while segment.position < position:
                time.sleep(0.001)
            gaps.append(time.monotonic() - killed)
        return {"takeover_p50_s": float(np.median(gaps)), "takeover_longest_s": max(gaps)}


def _applier(nodes: list[Node]) -> Node:
    while True:
        for node in nodes:
            if node.process.is_alive() and node.ask("applies"):
                return node
        time.sleep(0.01)


def _feast(address: str, pushes: int) -> dict[str, float]:
    """Feast on Redis: from `push` to another process's read of the value, in ns."""
    with tempfile.TemporaryDirectory() as folder:
        pipe, other = spawn.Pipe()
        process = spawn.Process(target=_feast_reader, args=(folder, address, other), daemon=True)
        store = _feast_store(folder, address)
        _feast_apply(store, folder)
        import pandas as pd

        frame = pd.DataFrame({"entity": ["e0"], "at": [pd.Timestamp.now("UTC")], "value": [0.0]})
        store.push("benchmark_push", frame)
        process.start()
        pipe.recv()
        late = []
        for number in range(1, pushes + 1):
            frame = pd.DataFrame({"entity": ["e0"], "at": [pd.Timestamp.now("UTC")], "value": [float(number)]})
            before = time.monotonic_ns()
            store.push("benchmark_push", frame)
            late.append(_seen_at(pipe, number) - before)
        process.kill()
        process.join()
    return {f"feast_visible_{label}": float(np.quantile(late, share)) for label, share in (("p50", 0.5), ("p99", 0.99))}


def _seen_at(pipe: Connection, number: int) -> int:
    while True:
        value, at = pipe.recv()
        if value >= number:
            return int(at)


def _feast_store(folder: str, address: str) -> Any:
    from benchmarks.compare.feast_stores import stores

    return stores(Path(folder), address)["feast-redis"]


def _feast_apply(store: Any, folder: str) -> None:
    import pandas as pd
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Float64

    path = Path(folder) / "rows.parquet"
    pd.DataFrame({"entity": ["e0"], "at": [pd.Timestamp("2024-01-01", tz="UTC")], "value": [0.0]}).to_parquet(path)
    entity = Entity(name="entity", join_keys=["entity"], value_type=ValueType.STRING)
    source = PushSource(name="benchmark_push", batch_source=FileSource(path=str(path), timestamp_field="at"))
    view = FeatureView(name="benchmark", entities=[entity], schema=[Field(name="value", dtype=Float64)], source=source)
    store.apply([entity, view])


def _feast_reader(folder: str, address: str, pipe: Connection) -> None:
    store, last = _feast_store(folder, address), -1.0
    while True:
        answer = store.get_online_features(["benchmark:value"], {"entity": ["e0"]}).to_dict()
        value, at = answer["value"][0], time.monotonic_ns()
        if value is not None and value != last:
            last = value
            pipe.send((value, at))


def _table(figures: dict[str, float], arguments: argparse.Namespace) -> Table:
    table = Table(title=f"{arguments.nodes} nodes on one Redis", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right")
    duration = measuring.duration
    rows = [
        (f"visible on another node, {arguments.rate:,} rows/s, p50 / p99", ("visible_p50", "visible_p99")),
        ("Feast on Redis: push to another process's read, p50 / p99", ("feast_visible_p50", "feast_visible_p99")),
        ("assemble beside its own follower, quiet p50 / p99", ("read_quiet_p50", "read_quiet_p99")),
        (f"the same at {arguments.rate:,} rows/s, p50 / p99", ("read_busy_p50", "read_busy_p99")),
    ]
    for label, names in rows:
        table.add_row(label, " / ".join(duration(figures[name]) for name in names))
    table.add_row("a follower with nothing to do, share of a core", f"{figures['idle_core_share']:.2%}")
    table.add_row("bulk, all nodes together, rows/s a node", f"{figures['bulk_all_nodes_per_s']:,.0f}")
    table.add_row("bulk, rows a second of one core", f"{figures['bulk_per_core_per_s']:,.0f}")
    gaps = f"{figures['takeover_p50_s']:.2f} s / {figures['takeover_longest_s']:.2f} s"
    table.add_row("applier killed: gap p50 / longest", gaps)
    return table


if __name__ == "__main__":
    main()
