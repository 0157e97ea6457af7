"""A new node copies the rows of another over HTTP: how long it takes, and what the donor's readers notice.

The donor is `quorin serve --connection` with one worker; a client reads single rows from it at a steady rate, quietly
first and then during transfers, one after the other. Donor, client and the new node share the cores of this machine.
The new node, which in a fleet is on another machine, runs here only when nothing else wants a processor.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report, servers
from quorin.hydration import rebuild_segment
from quorin.schema import FeatureField, FeatureSchema, dtype
from quorin.shm import SegmentRegistry
from quorin.snapshot import Peers
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

NAMES = ("a", "b", "c", "d")
SHARES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
spawn = multiprocessing.get_context("spawn")


class BootstrapRow(FeatureSchema):
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
    report.keep(arguments, "bootstrap", where, {"bootstrap": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bootstrap", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of four scalars (default: %(default)s)")
    parser.add_argument("--rate", type=int, default=500, help="reads a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of quiet reads (default: %(default)s)")
    parser.add_argument("--transfers", type=int, default=5, help="one after the other (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _measure(arguments: argparse.Namespace) -> dict[str, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_shared_memory())))
        store, donor, new = str(folder / "store"), folder / "donor", folder / "new"
        donor.mkdir()
        new.mkdir()
        size = _fill(store, donor, arguments.rows)
        words = ["quorin", "serve", "-c", store, "--shm-dir", str(donor), "-p", "{port}"]
        url = stack.enter_context(servers.serving(words)).url
        reading = stack.enter_context(_reading(url, arguments))
        time.sleep(1)
        reading.send("begin")
        time.sleep(arguments.seconds)
        quiet = _answer(reading)
        registry = SegmentRegistry(store, shm_dir=new)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        reading.send("begin")
        times = [_copy(registry, url) for _ in range(arguments.transfers)]
        busy = _answer(reading)
        registry.backend.close()
    figures = {f"read_quiet_{name}": float(np.quantile(quiet, share)) for name, share in SHARES.items()}
    figures |= {f"read_transfer_{name}": float(np.quantile(busy, share)) for name, share in SHARES.items()}
    median = float(np.median(times))
    return {**figures, "transfer_s": median, "transfer_longest_s": max(times), "bytes": size, "per_s": size / median}


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - where segments usually are


def _fill(store: str, shm_dir: Path, rows: int) -> int:
    """Write the donor's rows; the size of its segment."""
    registry = SegmentRegistry(store, shm_dir=shm_dir)
    values = {name: np.arange(rows, dtype=np.float32) for name in NAMES}
    with WALProducer(registry.backend) as producer:
        producer.write_many(BootstrapRow, pa.table({"entity_id": [f"e{number}" for number in range(rows)], **values}))
    with WALConsumer(registry.backend, [BootstrapRow], registry=registry, capacity=rows) as consumer:
        consumer.drain()
    with registry.open_current(BootstrapRow) as segment:
        size = int(segment.stats()["bytes"])
    registry.backend.close()
    return size


def _copy(registry: SegmentRegistry, url: str) -> float:
    """Seconds until a new node has a segment with the donor's rows."""
    started = time.perf_counter()
    segment = rebuild_segment(BootstrapRow, registry, beginning=None, capacity=16, max_id_bytes=64, peers=Peers([url]))
    took = time.perf_counter() - started
    if not len(segment):
        raise SystemExit("the new node got no rows")
    registry.discard(segment)
    return took


@contextmanager
def _reading(url: str, arguments: argparse.Namespace) -> Iterator[Connection]:
    pipe, other = spawn.Pipe()
    process = spawn.Process(target=_read, args=(url, arguments.rate, arguments.rows, other), daemon=True)
    process.start()
    try:
        pipe.recv()
        yield pipe
    finally:
        process.kill()
        process.join()


def _answer(reading: Connection) -> Any:
    reading.send("end")
    return np.array(reading.recv())


def _read(url: str, rate: int, rows: int, pipe: Connection) -> None:
    """Read single rows at a rate; between `begin` and `end` keep their times in ns."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    ids = np.random.default_rng(0).integers(0, rows, 10_000)
    times: list[int] = []
    due, number = time.monotonic_ns(), 0
    pipe.send("ready")
    while True:
        if pipe.poll():
            if pipe.recv() == "end":
                pipe.send(times)
            times = []
        due += 1_000_000_000 // rate
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        began = time.monotonic_ns()
        body = json.dumps({"schema": "BootstrapRow", "entity_ids": [f"e{ids[number % len(ids)]}"]})
        connection.request("POST", "/v1/read", body, {"Content-Type": "application/json"})
        connection.getresponse().read()
        times.append(time.monotonic_ns() - began)
        number += 1


def _table(figures: dict[str, float], arguments: argparse.Namespace) -> Table:
    title = f"A new node copies {arguments.rows:,} rows of four scalars from another over HTTP"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("", justify="right")
    for label, phase in (("quiet", "quiet"), ("during transfers", "transfer")):
        cells = " / ".join(measuring.duration(figures[f"read_{phase}_{name}"]) for name in SHARES)
        table.add_row(f"the donor's readers, {arguments.rate:,} rows/s, {label}, p50 / p99 / p99.9", cells)
    table.add_row(
        "a transfer, median / longest", f"{figures['transfer_s']:.2f} s / {figures['transfer_longest_s']:.2f} s"
    )
    table.add_row("its size, and rate", f"{figures['bytes'] / 1e6:,.0f} MB, {figures['per_s'] / 1e6:,.0f} MB/s")
    return table


if __name__ == "__main__":
    main()
