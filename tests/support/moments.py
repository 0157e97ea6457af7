"""Processes for tests of consistent reads: writers, consumers, and readers that note each answer with its position; and
a checker that needs none of them. It reads the log, and folds its entries in plain Python.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quorin.assembly import read_together
from quorin.engine import kernels
from quorin.engine.backend import Backend, Log, logs
from quorin.engine.format.partition import partition_of
from quorin.engine.log.record import Kind, decode
from quorin.engine.log.token import Token, json_of
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.support.forking import preload

FIELDS = [FeatureField("number", dtype.int64), FeatureField("text", dtype.string)]
VIEWS = [make_schema("Left", FIELDS), make_schema("Right", FIELDS)]
IDS = [f"id{i}" for i in range(8)]
PATIENCE_MS = 120_000.0
MAX_LINE_BYTES = 4096

Row = tuple[int, str | None] | None
"""What a row holds; None for an entity without one."""

kernels.load()  # Once, by the server that forks the processes.
preload(__name__)


def write(connection: str, seed: int) -> None:
    """Write at full speed until killed: rows in and out of the order of event times, parts of rows, deletions, and new
    ids, so that the segments grow.
    """
    rng = random.Random(seed)
    with WALProducer(connection) as producer:
        for number in itertools.count(seed << 32):
            view, kind = rng.choice(VIEWS), rng.random()
            event_time_ns = time.time_ns() - (rng.randrange(100_000_000) if kind < 0.3 else 0)
            if kind < 0.05:
                producer.delete(view, rng.choice(IDS), event_time_ns)
            elif kind < 0.15:
                producer.write(view, rng.choice(IDS), {"number": number}, event_time_ns, partial=True)
            else:
                ids = rng.sample(IDS, rng.randint(1, len(IDS))) + ([f"new{number}"] if kind > 0.9 else [])
                rows = {"entity_id": ids, "number": [number] * len(ids), "text": [f"of {number}"] * len(ids)}
                producer.write_many(view, rows, event_time_ns=event_time_ns)


def apply(connection: str, shm_dir: str, seed: int) -> None:
    """A consumer of all views, of small batches or of large ones, which takes over from another that died or froze."""
    registry = SegmentRegistry(connection, shm_dir=shm_dir)
    options = {"batch_entries": (8, 64, 1024)[seed % 3], "frozen_after_seconds": 1.0, "capacity": 16}
    WALConsumer(registry.backend, VIEWS, registry=registry, **options).run()


def read(connection: str, shm_dir: str, seed: int, notes: str) -> None:
    """Read some ids of both views over and over, and note each answer as a line of JSON."""
    registry, rng = SegmentRegistry(connection, shm_dir=shm_dir), random.Random(seed)
    segments = [registry.open_current(view) for view in VIEWS]
    with Path(notes).open("a") as lines:
        while True:
            ids = [rng.sample(IDS, rng.randint(1, len(IDS))) for _ in segments]
            found = read_together(list(zip(segments, ids, strict=True)), timeout_ms=PATIENCE_MS)
            rows = [
                [[row["number"], row["text"]] if row["found"] else None for row in batch.to_pylist()]
                for batch in found.batches
            ]
            lines.write(json.dumps([json_of(found.position), ids, rows]) + "\n")
            lines.flush()


def answers(notes: Path) -> list[Any]:
    """What a reader has noted so far, without a line that it has not ended."""
    return [json.loads(line) for line in notes.read_text().split("\n")[:-1]] if notes.exists() else []


def newest(notes: Path) -> int:
    """The position of a reader's last answer, 0 without one."""
    with notes.open("rb") if notes.exists() else io.BytesIO() as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - MAX_LINE_BYTES))
        ended = lines.read().rpartition(b"\n")[0].rpartition(b"\n")[2]
    return int(position_of(json.loads(ended))) if ended else 0


def position_of(answer: Any) -> int | Token:
    """The position of an answer; of several partitions a token."""
    return Token.parse(answer[0]) if isinstance(answer[0], str) else int(answer[0])


def check(backend: Backend, found: list[Any]) -> int:
    """Compare answers, of any order, with the log as of their positions; returns how many positions they have. With
    several partitions, the rows of each partition with its log.
    """
    for log in logs(backend):
        _check(log, found, backend.partitions())
    return len({position for position, *_ in found})


def _check(log: Log, found: list[Any], count: int) -> None:
    identity, entries = log.identity(), _entries(log)
    state: dict[tuple[str, str], tuple[int, Row]] = {}

    def own_position(answer: Any) -> int:
        position = position_of(answer)
        return dict(position.parts).get(identity, 0) if isinstance(position, Token) else position

    upcoming = next(entries, None)
    for answer in sorted(found, key=own_position):
        position, (_, ids, rows) = own_position(answer), answer
        while upcoming is not None and upcoming[0] <= position:
            _fold(state, upcoming[1])
            upcoming = next(entries, None)
        for view, of_view, given in zip(VIEWS, ids, rows, strict=True):
            own = [i for i, one in enumerate(of_view) if partition_of(one, count) == log.partition]
            expected = [state.get((view.__name__, of_view[i]), (0, None))[1] for i in own]
            read = [given[i] and tuple(given[i]) for i in own]
            assert read == expected, (position, log.partition, view.__name__, of_view)


def _entries(log: Log) -> Iterator[tuple[int, Any]]:
    after = 0
    while True:
        found = log.read(after)
        yield from ((position, decode(payload)) for position, payload in found.entries)
        if found.through <= after:
            return
        after = found.through


def _fold(state: dict[tuple[str, str], tuple[int, Row]], entry: Any) -> None:
    """Apply an entry: the newest event time counts, and of equal ones the later entry."""
    for row in entry.batch.to_pylist():
        key = entry.schema_name, row["entity_id"]
        before, old = state.get(key, (-(2**63), None))
        if row["event_time_ns"] < before:
            continue
        new: Row = None
        if entry.kind is not Kind.delete:
            kept = old[1] if entry.kind is Kind.partial and old is not None else None
            new = row["number"], row.get("text", kept)
        state[key] = row["event_time_ns"], new
