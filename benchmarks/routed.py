"""A batch that two nodes with half of the partitions answer together, beside the same batch from one node with all.

Three ``quorin serve`` processes on this machine, a client on a connection that is kept: `POST /v1/assemble` of entities
that are spread over all partitions, in Arrow. `held` is a batch of ids that the asked node holds. A round asks each
server in turn.
"""

from __future__ import annotations

import argparse
import http.client
import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks import machine, measuring, report
from benchmarks.servers import Running, serving
from quorin.engine.format.partition import partition_of
from quorin.engine.ops.holders import publish_holders, report_of
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

PARTITIONS, BATCH = 16, 100
NAMES = [f"f{number}" for number in range(4)]
RoutedRow = make_schema("RoutedRow", [FeatureField(name, dtype.float32) for name in NAMES])
FULL, ROUTED, HELD = "one node with all", "two nodes, half each", "a node's own half"
_ARROW = "application/vnd.apache.arrow.stream"


def main() -> None:
    """Measure, print a table, and with `--json` and `--docs` write it."""
    arguments = _arguments()
    console = Console(highlight=False, width=110)
    where = machine.describe()
    console.print(machine.one_line(where), style="dim", soft_wrap=True)
    with ExitStack() as stack:
        cases = _cases(stack, arguments.entities)
        calls = dict.fromkeys(cases, arguments.requests)
        samples = measuring.interleave(cases, rounds=arguments.rounds, calls=calls)
    figures = measuring.summary([samples])
    table = _table(figures)
    console.print(table)
    report.keep(arguments, "routed", where, {"routed": figures}, [table])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.routed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--entities", type=int, default=100_000, help="rows (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=200, help="requests a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine and figures there")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table into this Markdown file")
    return parser.parse_args()


def _cases(stack: ExitStack, entities: int) -> dict[str, Callable[[], object]]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    shm = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    nodes = {name: _Node(folder, shm / name, held) for name, held in (("full", None), ("low", "0-7"), ("high", "8-15"))}
    ids = [f"entity-{number}" for number in range(entities)]
    values = dict.fromkeys(NAMES, np.random.default_rng(0).random(entities, np.float32))
    with WALProducer(str(folder / "store"), partitions=PARTITIONS) as producer:
        producer.write_many(RoutedRow, pa.table({"entity_id": ids, **values}))
    for node in nodes.values():
        stack.callback(node.registry.backend.close)
        node.drain(entities)
    urls = {name: stack.enter_context(node.serving()).url for name, node in nodes.items()}
    for node in nodes.values():
        node.report()
    for node in nodes.values():
        publish_holders(node.registry.backend.control, node.registry.node)
    own = [one for one in ids if partition_of(one, PARTITIONS) < PARTITIONS // 2]
    return {
        FULL: _Client(urls["full"], ids[:BATCH]),
        ROUTED: _Client(urls["low"], ids[:BATCH]),
        HELD: _Client(urls["low"], own[:BATCH]),
    }


class _Node:
    """A node with some of the partitions."""

    def __init__(self, folder: Path, shm_dir: Path, held: str | None) -> None:
        shm_dir.mkdir()
        self._words = ["-c", str(folder / "store"), "--shm-dir", str(shm_dir)]
        self._is_asked = held is not None
        self.registry = SegmentRegistry(folder / "store", shm_dir=shm_dir, partitions=PARTITIONS, held=held)

    def drain(self, capacity: int) -> None:
        """Apply the log."""
        with WALConsumer(self.registry.backend, [RoutedRow], registry=self.registry, capacity=capacity) as consumer:
            consumer.drain()

    def report(self) -> None:
        """What a consumer that runs would report."""
        node, partitioning = self.registry.node, self.registry.partitioning
        entry = {"role": "consumer", "node": node.id, "heartbeat_ns": 0, "schemas": {"RoutedRow": {"lag_seconds": 0}}}
        text = json.dumps(entry | report_of(node, partitioning.count, partitioning.held))
        self.registry.backend.control.announce(f"{node.id}:1:1", text, node=node.id, positions={})

    def serving(self) -> AbstractContextManager[Running]:
        """A server of the node."""
        words = ["quorin", "serve", *self._words, "-p", "{port}", "--peer-timeout", "10s"]
        if self._is_asked:
            words += ["--advertise", "http://127.0.0.1:{port}"]
        return serving(words)


class _Client:
    """Sends one request again and again."""

    def __init__(self, url: str, ids: list[str]) -> None:
        schema = pa.schema({"id": pa.string()}, {"request": json.dumps({"schemas": [{"schema": "RoutedRow"}]})})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch([ids], schema=schema))
        self._body = sink.getvalue().to_pybytes()
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)
        found = self()
        with pa.ipc.open_stream(found) as stream:
            missing = stream.read_next_batch().column("found").values.to_pylist().count(False)
        if missing:
            raise SystemExit(f"expected {len(ids)} rows, {missing} are missing")

    def __call__(self) -> bytes:
        """The answer."""
        headers = {"Content-Type": _ARROW, "Accept": _ARROW}
        self._connection.request("POST", "/v1/assemble", self._body, headers)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise SystemExit(f"{response.status}: {body.decode()}")
        return body


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title=f"POST /v1/assemble of {BATCH} ids, {len(NAMES)} fields, in Arrow", title_justify="left")
    for column in ("answered by", "p50", "p99"):
        table.add_column(column, justify="left" if column == "answered by" else "right")
    for name, row in figures.items():
        table.add_row(name, measuring.duration(row["p50"]), measuring.duration(row["p99"]))
    return table


if __name__ == "__main__":
    main()
