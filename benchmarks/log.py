"""The log, from a write to its visibility in shared memory: through Redis, by TCP on the loopback and by a Unix socket,
and through the embedded SQLite file.

A `quorin consumer` runs as a process of its own throughout, and trims what it has applied. Rows have four float32
fields. `visible` ends when the segment's own header has passed the last position. Reads beside a busy consumer: it is
started on a log with a backlog and applies it as fast as it can, while another process times `assemble` on random ids.

Yardsticks, taken in the same run, make the figures of different machines comparable: `write` stands beside a PING on
one connection of redis-py, which is what the log writes through, `write_sync` beside an entry's way from XADD into a
process that is blocked in XREAD, with bare clients, and beside SQLite's insert and commit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers, yardsticks
from quorin.assembly import assemble
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer

KINDS = {"redis": "Redis, TCP", "unix": "Redis, Unix socket", "embedded": "embedded"}
NAMES = ("a", "b", "c", "d")
VALUES = dict.fromkeys(NAMES, 1.5)
CHUNK = 1_000_000
TIMEOUT_MS = 300_000.0


class LogRow(FeatureSchema):
    """Four scalars."""

    version = 1
    fields = [FeatureField(name, dtype.float32) for name in NAMES]


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    figures = {}
    for kind in arguments.only or KINDS:
        with console.status(f"{kind} ..."):
            figures[kind] = _measure(kind, arguments)
    table = _table(figures, arguments)
    console.print(table)
    report.keep(arguments, "log", where, {"log": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.log", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="rows written in bulk (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=1_000_000, help="different ids (default: %(default)s)")
    parser.add_argument("--writes", type=int, default=20_000, help="single writes (default: %(default)s)")
    parser.add_argument("--syncs", type=int, default=5_000, help="calls of write_sync (default: %(default)s)")
    parser.add_argument("--only", choices=list(KINDS), action="append", help="this log alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measure(kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        connection = stack.enter_context(_log_of(kind, directory))
        registry = SegmentRegistry(connection)
        registry.create(LogRow, capacity=arguments.entities).close()
        stack.callback(lambda: registry.discard(registry.open_current(LogRow, read_only=False)))
        producer = stack.enter_context(WALProducer(registry.backend, registry=registry))
        if kind == "embedded":
            figures = yardsticks.of_sqlite(directory / "yardstick.db", calls=arguments.syncs)
        else:
            figures = yardsticks.of_redis(connection, calls=arguments.syncs)
        _write_rate(producer, _ids(arguments)[:50])  # imports and connections are not part of the time
        figures["write_alone_per_s"] = _write_rate(producer, _ids(arguments))[0]
        with _consumer(connection, producer) as pid:
            figures |= _single_writes(producer, arguments) | _bulk(producer, pid, arguments)
        return figures | _reads(registry, producer, connection, arguments)


@contextmanager
def _log_of(kind: str, directory: Path) -> Iterator[str]:
    """What a backend is connected with."""
    if kind == "embedded":
        yield str(directory / "store")
    else:
        path = directory / "redis.sock"
        with servers.redis_server(socket_path=path) as address:
            yield f"redis://{address}" if kind == "redis" else f"unix://{path}"


@contextmanager
def _consumer(connection: str, producer: WALProducer | None) -> Iterator[int]:
    """A consumer process; with a producer, once it applies."""
    command = [sys.executable, "-m", "quorin", "consumer", "--connection", connection, "--trim"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stderr=said)
        try:
            if producer is not None:
                producer.write_sync(LogRow, "first", VALUES, timeout_ms=TIMEOUT_MS)
            yield process.pid
        finally:
            process.terminate()
            if process.wait(60):
                said.seek(0)
                raise SystemExit(f"the consumer ended with {process.returncode}:\n{said.read()}")


def _single_writes(producer: WALProducer, arguments: argparse.Namespace) -> dict[str, float]:
    count, ids = arguments.writes, _ids(arguments)
    write, position = _write_rate(producer, ids)
    producer.wait(LogRow, position, timeout_ms=TIMEOUT_MS)
    started = time.perf_counter()
    with producer.pipeline(LogRow) as pipe:
        for _ in range(10):
            for entity_id in ids:
                pipe.write(entity_id, VALUES)
    pipelined = 10 * count / (time.perf_counter() - started)
    producer.wait(LogRow, pipe.position, timeout_ms=TIMEOUT_MS)
    call = cycle(ids)
    samples = measuring.interleave(
        {"sync": lambda: producer.write_sync(LogRow, next(call), VALUES, timeout_ms=TIMEOUT_MS)},
        rounds=5,
        calls={"sync": max(1, arguments.syncs // 5)},
    )
    sync = measuring.summary([samples])["sync"]
    return {"write_per_s": write, "pipeline_per_s": pipelined, "sync_p50": sync["p50"], "sync_p99": sync["p99"]}


def _write_rate(producer: WALProducer, ids: list[str]) -> tuple[float, int]:
    """Single writes a second, and the last one's position."""
    started = time.perf_counter()
    for entity_id in ids:
        position = producer.write(LogRow, entity_id, VALUES)
    return len(ids) / (time.perf_counter() - started), position


def _ids(arguments: argparse.Namespace) -> list[str]:
    return [f"user_{number:08}" for number in range(arguments.writes)]


def _bulk(producer: WALProducer, consumer_pid: int, arguments: argparse.Namespace) -> dict[str, float]:
    memory = []
    started = time.perf_counter()
    for table in _tables(arguments.rows, arguments.entities):
        position = producer.write_many(LogRow, table)
        memory.append(_private_bytes(consumer_pid))
    appended = time.perf_counter() - started
    producer.wait(LogRow, position, timeout_ms=TIMEOUT_MS)
    visible = time.perf_counter() - started
    memory.append(_private_bytes(consumer_pid))
    return {
        "bulk_appended_per_s": arguments.rows / appended,
        "bulk_visible_per_s": arguments.rows / visible,
        "consumer_bytes_first": memory[0],
        "consumer_bytes_most": max(memory),
        "consumer_bytes_last": memory[-1],
    }


def _reads(
    registry: SegmentRegistry, producer: WALProducer, connection: str, arguments: argparse.Namespace
) -> dict[str, float]:
    rng = np.random.default_rng(3)
    ids = cycle([f"user_{number:08}" for number in rng.integers(min(arguments.entities, arguments.rows), size=200_000)])
    with registry.open_current(LogRow) as segment:
        case = {"read": lambda: assemble(segment, next(ids))}
        quiet = measuring.interleave(case, rounds=20, calls={"read": 5_000})
        for table in _tables(arguments.rows, arguments.entities):
            position = producer.write_many(LogRow, table)
        before = segment.position
        runs: list[measuring.Samples] = []
        with _consumer(connection, None):
            while segment.position == before:
                time.sleep(0.001)
            while not runs or segment.position < position:
                runs.append(measuring.interleave(case, rounds=1, calls={"read": 5_000}))
    found = {"quiet": measuring.summary([quiet])["read"], "busy": measuring.summary(runs)["read"]}
    return {f"read_{name}_{label}": found[name][label] for name in found for label in ("p50", "p99")}


def _tables(rows: int, entities: int) -> Iterator[pa.Table]:
    """Tables of at most a million rows, over the entities again and again, in an order without any order."""
    rng = np.random.default_rng(2)
    order = rng.permutation(entities)
    ids = pa.array([f"user_{number:08}" for number in order])
    chunk = min(CHUNK, rows, entities)
    values = {name: rng.standard_normal(chunk, dtype=np.float32) for name in NAMES}
    for start in range(0, rows, chunk):
        count = min(chunk, rows - start)
        offset = start % max(1, entities - chunk + 1)
        part = {name: column[:count] for name, column in values.items()}
        yield pa.table({"entity_id": ids.slice(offset, count), **part})


def _private_bytes(pid: int) -> int:
    """What a process has for itself: no shared memory, no files."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def _table(figures: dict[str, dict[str, float]], arguments: argparse.Namespace) -> Table:
    title = f"The log: 4 float32 fields, {arguments.rows:,} rows in bulk over {arguments.entities:,} entities"
    table = Table(title=title, title_justify="left")
    table.add_column("what", no_wrap=True)
    for kind in figures:
        table.add_column(KINDS[kind], justify="right")
    rows = {
        "write, one thread, no consumer": lambda f: f"{f['write_alone_per_s']:,.0f}/s",
        "write, one thread, beside a consumer": lambda f: f"{f['write_per_s']:,.0f}/s",
        "pipeline": lambda f: f"{f['pipeline_per_s']:,.0f} rows/s",
        "write_many, appended": lambda f: f"{f['bulk_appended_per_s'] / 1e6:.2f} M rows/s",
        "write_many, visible": lambda f: f"{f['bulk_visible_per_s'] / 1e6:.2f} M rows/s",
        "write_sync p50 / p99": lambda f: measuring.p50_and_p99(f, "sync"),
        "yardstick p50: PING on one connection": lambda f: measuring.duration(f["ping_p50"]) if "ping_p50" in f else "",
        "yardstick p50: bare hand-over / SQLite commit": lambda f: measuring.duration(_yardstick(f)),
        "write_sync against that": lambda f: f"{f['sync_p50'] / _yardstick(f):.2f}×",
        "assemble p50 / p99, quiet": lambda f: measuring.p50_and_p99(f, "read_quiet"),
        "assemble p50 / p99, consumer at full speed": lambda f: measuring.p50_and_p99(f, "read_busy"),
        "consumer's private memory, first / most / last": lambda f: (
            " / ".join(f"{f[f'consumer_bytes_{when}'] / 2**20:.0f}" for when in ("first", "most", "last")) + " MiB"
        ),
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(figures[kind]) for kind in figures))
    return table


def _yardstick(figures: dict[str, float]) -> float:
    return figures["hand_over_p50"] if "hand_over_p50" in figures else figures["insert_p50"]


if __name__ == "__main__":
    main()
