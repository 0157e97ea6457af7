"""A million rows are replaced under reads and pushes, and rolled back on three nodes.

Each node has a `quorin consumer` process and shared memory of its own, on one Redis; the first keeps the history. A
reader asks for random ids at a fixed rate, a producer pushes throughout; both are processes of their own on the first
node. In every row all fields hold one number, so that a row of two generations shows. "Before" is the same load without
a replacement; "during" is from the call to the flip. At the end every entity must have the replaced row, or the last
one that was pushed for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from quorin import evolution
from quorin.assembly import assemble, assemble_batch
from quorin.errors import QuorinError
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry, default_shm_dir
from quorin.wal import WALProducer

FIELDS = 10
SCHEMA = make_schema("Replaced", [FeatureField(f"f{index}", dtype.float32) for index in range(FIELDS)])
OLD, NEW, FIRST_PUSHED = 1, 2, 10
CHUNK_ROWS = 65_536
PUSHED_ROWS = 20
MAX_SAMPLES = 8_000_000
TICK_SECONDS = 0.001

spawn = multiprocessing.get_context("spawn")


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with console.status("replace and roll back ..."):
        figures = _measured(arguments)
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "replace", where, {"replace": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replace", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", type=int, default=1_000_000, help="rows that are replaced (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=3, help="nodes that roll back (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=20_000, help="reads a second (default: %(default)s)")
    parser.add_argument(
        "--quiet-seconds", type=float, default=4.0, help="how long reads are timed before (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measured(arguments: argparse.Namespace) -> dict[str, float]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connection = f"redis://{stack.enter_context(servers.redis_server())}"
        history = ParquetDatasetStore(directory / "history")
        shm_dirs = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(dir=default_shm_dir(), prefix="quorin-benchmark-")))
            for _ in range(arguments.nodes)
        ]
        registry = SegmentRegistry(connection, shm_dir=shm_dirs[0])
        stack.callback(registry.backend.close)
        registry.create(SCHEMA, capacity=arguments.entities).close()
        with WALProducer(registry.backend, registry=registry) as producer:
            before = [producer.write_many(SCHEMA, rows, event_time_ns=1) for rows in _rows(arguments.entities, OLD)][-1]
            _start_first_node(stack, connection, shm_dirs[0], history, producer, before)
            figures = _replaced_under_load(arguments, connection, registry, directory)
            for shm_dir in shm_dirs[1:]:
                _start_consumer(stack, connection, shm_dir, "--offline", history.address)
            last = producer.delete(SCHEMA, "nobody")
            deadline = time.monotonic() + 300
            while _nodes_at(registry, last) < arguments.nodes and time.monotonic() < deadline:
                time.sleep(0.1)
            result = evolution.rollback(
                SCHEMA, registry, to_position=before, history=history, wait_for="nodes", timeout_seconds=300
            )
        with registry.open_current(SCHEMA) as segment:
            values, found = assemble_batch(segment, _ids(0, arguments.entities))
        return figures | {
            "rollback_seconds": result.elapsed_seconds,
            "rollback_wrong": int((values[:, 0] != OLD).sum() + (~found).sum()),
        }


def _start_first_node(
    stack: ExitStack, connection: str, shm_dir: Path, history: ParquetDatasetStore, producer: WALProducer, last: int
) -> None:
    _start_consumer(stack, connection, shm_dir, "--offline", history.address)
    producer.wait(SCHEMA, last, timeout_ms=300_000)


def _start_consumer(stack: ExitStack, connection: str, shm_dir: Path, *options: str) -> None:
    words = ["consumer", "--connection", connection, "--shm-dir", str(shm_dir), *options]
    consumer = subprocess.Popen([sys.executable, "-m", "quorin", *words], stderr=subprocess.DEVNULL)
    stack.callback(consumer.wait, 60)
    stack.callback(consumer.terminate)


def _nodes_at(registry: SegmentRegistry, position: int) -> int:
    """How many nodes have applied a position."""
    applied = registry.backend.control.replicas()
    return len({node for (node, name), one in applied.items() if name == "Replaced" and one.position >= position})


def _rows(entities: int, value: float) -> Iterator[pa.Table]:
    for start in range(0, entities, CHUNK_ROWS):
        ids = _ids(start, min(start + CHUNK_ROWS, entities))
        column = np.full(len(ids), value, np.float32)
        yield pa.table({"entity_id": ids, **{field.name: column for field in SCHEMA.fields}})


def _ids(start: int, stop: int) -> list[str]:
    return [f"user_{number:08}" for number in range(start, stop)]


def _replaced_under_load(
    arguments: argparse.Namespace, connection: str, registry: SegmentRegistry, directory: Path
) -> dict[str, float]:
    stop = spawn.Event()
    seen, wrote = directory / "seen.npz", directory / "wrote.json"
    place = connection, str(registry.shm_dir), arguments.entities
    processes = [
        spawn.Process(target=_push, args=(*place, stop, str(wrote))),
        spawn.Process(target=_read, args=(*place, arguments.rate, stop, str(seen))),
    ]
    for process in processes:
        process.start()
    while not (seen.with_suffix(".ready").exists() and wrote.with_suffix(".ready").exists()):
        if not all(process.is_alive() for process in processes):
            raise SystemExit("the reader or the producer ended early")
        time.sleep(0.01)
    time.sleep(arguments.quiet_seconds)
    asked = time.perf_counter_ns()
    result = evolution.replace(SCHEMA, _rows(arguments.entities, NEW), registry, timeout_seconds=300)
    flipped = time.perf_counter_ns()
    time.sleep(0.5)
    stop.set()
    for process in processes:
        process.join(60)
    noted = json.loads(wrote.read_text())
    with np.load(seen) as samples:
        times, took, bad = samples["times"], samples["took"], samples["bad"]
    parts = {
        "quiet": took[(times >= asked - int(arguments.quiet_seconds * 0.9e9)) & (times < asked)],
        "during": took[(times >= asked) & (times <= flipped)],
    }
    figures = {
        f"read_{name}_{label}": float(np.quantile(part, q)) if len(part) else float("nan")
        for name, part in parts.items()
        for label, q in (("p50", 0.5), ("p99", 0.99))
    }
    return figures | {
        "reads": len(took),
        "reads_during": len(parts["during"]),
        "reads_per_s": len(parts["during"]) / ((flipped - asked) / 1e9),
        "failed_reads": int(bad[0]),
        "mixed_rows": int(bad[1]),
        "rows_pushed": noted["rounds"] * PUSHED_ROWS,
        "lost_pushes": _lost_pushes(registry, arguments.entities, noted, result.begin),
        "replace_seconds": result.elapsed_seconds,
    }


def _push(connection: str, shm_dir: str, entities: int, stop: Any, notes: str) -> None:
    """Push a few entities a round, each with the number of the round, and note what each position pushed."""
    registry, positions = SegmentRegistry(connection, shm_dir=shm_dir), list[int]()
    with WALProducer(registry.backend, registry=registry) as producer:
        while not stop.is_set():
            ids = _ids(*_pushed(len(positions), entities))
            columns = dict.fromkeys((field.name for field in SCHEMA.fields), _column(len(positions)))
            positions.append(producer.write_many(SCHEMA, pa.table({"entity_id": ids, **columns})))
            Path(notes).with_suffix(".ready").touch()
            time.sleep(0.005)
    Path(notes).write_text(json.dumps({"rounds": len(positions), "positions": positions}))


def _column(number: int) -> Any:
    return np.full(PUSHED_ROWS, FIRST_PUSHED + number, np.float32)


def _pushed(number: int, entities: int) -> tuple[int, int]:
    start = (number * PUSHED_ROWS * 7) % (entities - PUSHED_ROWS + 1)
    return start, start + PUSHED_ROWS


def _read(connection: str, shm_dir: str, entities: int, rate: int, stop: Any, notes: str) -> None:
    """Time reads of random ids at a rate until told to stop."""
    import gc

    registry = SegmentRegistry(connection, shm_dir=shm_dir)
    ids = [f"user_{number:08}" for number in np.random.default_rng(3).integers(entities, size=100_000)]
    times, took, bad = np.ones(MAX_SAMPLES, np.int64), np.ones(MAX_SAMPLES, np.int64), np.zeros(2, np.int64)
    clock, done, many = time.perf_counter_ns, 0, max(1, int(rate * TICK_SECONDS))
    gc.disable()
    with registry.open_current(SCHEMA) as segment:
        due = time.perf_counter()
        while not stop.is_set() and done + many < MAX_SAMPLES:
            for number in range(done, done + many):
                before = clock()
                try:
                    vector = assemble(segment, ids[number % len(ids)])
                    took[number] = clock() - before
                    bad[1] += (vector != vector[0]).any()
                except QuorinError:
                    bad[0] += 1
                times[number] = before
            done += many
            Path(notes).with_suffix(".ready").touch() if done == many else None
            due += many / rate
            time.sleep(max(0.0, due - time.perf_counter()))
    np.savez(notes, times=times[:done], took=took[:done], bad=bad)


def _lost_pushes(registry: SegmentRegistry, entities: int, noted: dict[str, Any], begin: int) -> int:
    """How many entities have neither the replaced row nor the last one that was pushed since the load began."""
    with WALProducer(registry.backend, registry=registry) as producer:
        producer.wait(SCHEMA, noted["positions"][-1], timeout_ms=60_000)
    expected = np.full(entities, NEW, np.float32)
    for number, position in enumerate(noted["positions"]):
        if position > begin:
            start, stop = _pushed(number, entities)
            expected[start:stop] = FIRST_PUSHED + number
    with registry.open_current(SCHEMA) as segment:
        found = assemble_batch(segment, _ids(0, entities))[0][:, 0]
    return int((found != expected).sum())


def _table(figures: dict[str, float], arguments: argparse.Namespace) -> Table:
    title = f"Replacing {arguments.entities:,} rows of {FIELDS} floats under {arguments.rate:,} reads/s and pushes"
    table = Table(title=title, title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("measured", justify="right")
    ratio = figures["read_during_p99"] / figures["read_quiet_p99"]
    rows = {
        "from the call to the flip": f"{figures['replace_seconds']:.2f} s",
        "reads that failed": f"{figures['failed_reads']:,.0f} of {figures['reads']:,.0f}",
        "rows of two generations": f"{figures['mixed_rows']:,.0f}",
        "pushed rows that were lost": f"{figures['lost_pushes']:,.0f} of {figures['rows_pushed']:,.0f}",
        "reads/s during the replacement": f"{figures['reads_per_s']:,.0f}",
        "assemble p50 / p99, before": measuring.p50_and_p99(figures, "read_quiet"),
        "assemble p50 / p99, during": f"{measuring.p50_and_p99(figures, 'read_during')} ({ratio:.1f}x)",
        f"rolled back on {arguments.nodes} nodes": f"{figures['rollback_seconds']:.2f} s",
        "rows that are not as they were": f"{figures['rollback_wrong']:,.0f}",
    }
    for name, cell in rows.items():
        table.add_row(name, cell)
    return table


if __name__ == "__main__":
    main()
