"""A schema upgrade of a million entities while a consumer, a producer and a reader go on, and the watchdog's ticks.

The consumer is a `quorin consumer` process on Redis. The producer writes the old version throughout, a reader times
`assemble` on random ids through the old version; both are processes of their own. "Quiet" is the same load without an
upgrade; "during the copy" is from the first sign of the new segment to its flip. At the end every entity must have the
last value that was written for it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from quorin import layout
from quorin.assembly import assemble, assemble_batch
from quorin.errors import QuorinError
from quorin.evolution import upgrade_schema
from quorin.schema import FeatureField, Schema, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.watchdog import WatchdogState

NAMES = ("a", "b", "c", "d")
CHUNK_ROWS = 1000
PAUSE_SECONDS = 0.01
MOST_SAMPLES = 8_000_000

spawn = multiprocessing.get_context("spawn")


def version(number: int, fields: int = len(NAMES)) -> Schema:
    """Version 1 has float32 fields; in version 2 the first is float64, the last is gone and one is new."""
    names = [*NAMES, *(f"f{index}" for index in range(fields - len(NAMES)))]
    if number == 1:
        return make_schema("Upgraded", [FeatureField(name, dtype.float32) for name in names])
    widened = [FeatureField(name, dtype.float64 if name == "a" else dtype.float32) for name in names if name != "d"]
    return make_schema("Upgraded", [*widened, FeatureField("new", dtype.int64, default=7.0)], version=2)


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with console.status("copies ..."):
        figures = {
            "copy_4_per_s": _copy_rate(4, arguments.entities),
            "copy_200_per_s": _copy_rate(200, arguments.entities // 10),
        }
    with console.status("upgrade under load ..."):
        figures |= _under_load(arguments.entities, arguments.quiet_seconds)
    with console.status("dead holders ..."):
        figures |= _dead_holders(arguments.holders)
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "evolution", where, {"evolution": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evolution", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entities", type=int, default=1_000_000, help="rows of the segment (default: %(default)s)")
    parser.add_argument(
        "--quiet-seconds", type=float, default=4.0, help="how long reads are timed before (default: %(default)s)"
    )
    parser.add_argument("--holders", type=int, default=20, help="processes that are killed (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _copy_rate(fields: int, entities: int) -> float:
    """Rows a second of an upgrade by a process that nobody disturbs, from call to return."""
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(Path(directory) / "store")
        _fill(registry, version(1, fields), entities)
        try:
            result = upgrade_schema(version(1, fields), version(2, fields), registry)
        finally:
            registry.discard(registry.open_stored("Upgraded", read_only=False))
            registry.backend.close()
    return result.entity_count / result.elapsed_seconds


def _fill(registry: SegmentRegistry, schema: Schema, entities: int) -> None:
    rng = np.random.default_rng(1)
    with registry.create(schema, capacity=entities) as segment:
        for start in range(0, entities, 100_000):
            ids = _ids(start, min(start + 100_000, entities))
            columns = {field.name: rng.standard_normal(len(ids), dtype=np.float32) for field in schema.fields}
            columns["a"] = np.zeros(len(ids), np.float32)
            layout.insert_many(segment, pa.table({"entity_id": ids, **columns}), event_time_ns=1)


def _ids(start: int, stop: int) -> list[str]:
    return [f"user_{number:08}" for number in range(start, stop)]


def _under_load(entities: int, quiet_seconds: float) -> dict[str, float]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connection = f"redis://{stack.enter_context(servers.redis_server())}"
        registry = SegmentRegistry(connection)
        _fill(registry, version(1), entities)
        stack.callback(lambda: registry.discard(registry.open_stored("Upgraded", read_only=False)))
        consumer = subprocess.Popen(
            [sys.executable, "-m", "quorin", "consumer", "--connection", connection], stderr=subprocess.DEVNULL
        )
        stack.callback(consumer.wait, 60)
        stack.callback(consumer.terminate)
        stop = spawn.Event()
        seen, wrote = directory / "seen.npz", directory / "wrote.json"
        processes = [
            spawn.Process(target=_produce, args=(connection, entities, stop, str(wrote))),
            spawn.Process(target=_read, args=(connection, entities, stop, str(seen))),
        ]
        for process in processes:
            process.start()
        while not (seen.with_suffix(".ready").exists() and wrote.with_suffix(".ready").exists()):
            if not all(process.is_alive() for process in processes):
                raise SystemExit("the reader or the producer ended early")
            time.sleep(0.01)
        time.sleep(quiet_seconds)
        began: list[int] = []
        asked = time.perf_counter_ns()
        upgrade_schema(version(1), version(2), registry, progress=lambda *_: began.append(time.perf_counter_ns()))
        flipped = time.perf_counter_ns()
        time.sleep(1.0)
        stop.set()
        for process in processes:
            process.join(60)
        noted = json.loads(wrote.read_text())
        lost = _lost_writes(registry, entities, noted)
        with np.load(seen) as samples:
            times, took, failed = samples["times"], samples["took"], int(samples["failed"])
    copy = took[(times >= began[0]) & (times <= flipped)]
    quiet = took[(times >= asked - int(quiet_seconds * 0.9e9)) & (times < asked)]
    figures = {
        f"read_{name}_{label}": float(np.quantile(part, q)) if len(part) else float("nan")
        for name, part in (("quiet", quiet), ("copy", copy))
        for label, q in (("p50", 0.5), ("p99", 0.99))
    }
    return figures | {
        "failed_reads": failed,
        "lost_writes": lost,
        "reads": len(took),
        "reads_during_copy": len(copy),
        "rows_written": noted["rounds"] * CHUNK_ROWS,
        "copy_seconds": (flipped - began[0]) / 1e9,
        "upgrade_seconds": (flipped - asked) / 1e9,
    }


def _produce(connection: str, entities: int, stop: Any, notes: str) -> None:
    """Write the old version, a thousand entities a round, each with the number of the round."""
    schema, rounds, position = version(1), 0, 0
    with WALProducer(connection) as producer:
        while not stop.is_set():
            rounds += 1
            start = (rounds * CHUNK_ROWS * 7) % (entities - CHUNK_ROWS + 1)
            columns = dict.fromkeys(NAMES, np.full(CHUNK_ROWS, rounds, np.float32))
            rows = pa.table({"entity_id": _ids(start, start + CHUNK_ROWS), **columns})
            position = producer.write_many(schema, rows, event_time_ns=1 + rounds)
            Path(notes).with_suffix(".ready").touch()
            time.sleep(PAUSE_SECONDS)
    Path(notes).write_text(json.dumps({"rounds": rounds, "position": position}))


def _read(connection: str, entities: int, stop: Any, notes: str) -> None:
    """Time reads of random ids through the old version until told to stop."""
    import gc

    registry = SegmentRegistry(connection)
    order = np.random.default_rng(3).integers(entities, size=100_000)
    ids = [f"user_{number:08}" for number in order]
    times, took = np.zeros(MOST_SAMPLES, np.int64), np.zeros(MOST_SAMPLES, np.int64)
    times[:], took[:] = 0, 0
    clock, done, failed = time.perf_counter_ns, 0, 0
    gc.disable()
    with registry.open_current(version(1)) as segment:
        while not stop.is_set() and done + 1000 < MOST_SAMPLES:
            for entity_id in ids[done % 100_000 : done % 100_000 + 1000]:
                before = clock()
                try:
                    vector = assemble(segment, entity_id)
                    failed += len(vector) != len(NAMES)
                except QuorinError:
                    failed += 1
                times[done], took[done] = before, clock() - before
                done += 1
            if done == 1000:
                Path(notes).with_suffix(".ready").touch()
    np.savez(notes, times=times[:done], took=took[:done], failed=failed)


def _lost_writes(registry: SegmentRegistry, entities: int, noted: dict[str, int]) -> int:
    """How many entities do not have the last value that was written for them."""
    with WALProducer(registry.backend, registry=registry) as producer:
        producer.wait(version(2), noted["position"], timeout_ms=60_000)
    expected = np.zeros(entities, np.float32)
    for number in range(1, noted["rounds"] + 1):
        start = (number * CHUNK_ROWS * 7) % (entities - CHUNK_ROWS + 1)
        expected[start : start + CHUNK_ROWS] = number
    with registry.open_current(version(2)) as segment:
        found = assemble_batch(segment, _ids(0, entities))[0][:, 0]
    return int((found != expected).sum())


def _dead_holders(holders: int) -> dict[str, float]:
    """Ticks from the death of a process to the removal of its segment and its announcement."""
    ticks = []
    with tempfile.TemporaryDirectory() as directory:
        registry = SegmentRegistry(Path(directory) / "store", shm_dir=directory)
        for _ in range(holders):
            ready = Path(directory) / "ready"
            holder = spawn.Process(target=_hold, args=(str(Path(directory) / "store"), directory, str(ready)))
            holder.start()
            while not ready.exists():
                time.sleep(0.005)
            ready.unlink()
            with WatchdogState(registry.backend, shm_dir=directory) as watchdog:
                for _ in range(3):
                    alive = watchdog.run_one_tick()
                    if alive.reclaimed or alive.dead_processes:
                        raise SystemExit("the watchdog took from the living")
                os.kill(holder.pid or 0, signal.SIGKILL)
                holder.join()
                count = 0
                while True:
                    count += 1
                    result = watchdog.run_one_tick()
                    if result.reclaimed and result.dead_processes:
                        break
                ticks.append((count, result.elapsed_seconds))
        registry.backend.close()
    return {"ticks_most": max(count for count, _ in ticks), "tick_seconds": max(seconds for _, seconds in ticks)}


def _hold(connection: str, shm_dir: str, ready: str) -> None:
    from quorin.engine.ops import presence

    registry = SegmentRegistry(connection, shm_dir=shm_dir)
    presence.announce(registry.backend.control, "holder", registry.node.id, {})
    segment = registry.create(version(1), capacity=100, set_current=False)
    Path(ready).touch()
    time.sleep(600)
    segment.close()


def _table(figures: dict[str, float], arguments: argparse.Namespace) -> Table:
    title = f"Upgrading {arguments.entities:,} entities, 4 fields: one widened, one dropped, one added"
    table = Table(title=title, title_justify="left")
    table.add_column("what", no_wrap=True)
    table.add_column("measured", justify="right")
    quiet, copy = (f"read_{name}" for name in ("quiet", "copy"))
    ratio = figures[f"{copy}_p99"] / figures[f"{quiet}_p99"]
    rows = {
        "copy, nothing else running, 4 fields": f"{figures['copy_4_per_s'] / 1e6:.2f} M rows/s",
        "copy, nothing else running, 200 fields": f"{figures['copy_200_per_s'] / 1e6:.2f} M rows/s",
        "under load: from the call to the flip": f"{figures['upgrade_seconds']:.2f} s",
        "under load: the copy": f"{figures['copy_seconds']:.2f} s",
        "reads that failed": f"{figures['failed_reads']:,.0f} of {figures['reads']:,.0f}",
        "writes that were lost": f"{figures['lost_writes']:,.0f} of {figures['rows_written']:,.0f}",
        "assemble p50 / p99, before": measuring.p50_and_p99(figures, quiet),
        "assemble p50 / p99, during the copy": f"{measuring.p50_and_p99(figures, copy)} ({ratio:.1f}x)",
        "dead holder: ticks until all of it is reclaimed": f"{figures['ticks_most']:.0f}",
        "one tick of the watchdog": f"{figures['tick_seconds'] * 1e3:.1f} ms",
    }
    for name, cell in rows.items():
        table.add_row(name, cell)
    return table


if __name__ == "__main__":
    main()
