"""Of the same rows every way to write keeps the same one, with nulls, ties and times at the ends of the calendar."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.infra.passthrough_provider import PassthroughProvider
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feast_quorin.provider import QuorinProvider
from feast_quorin.views import CREATED, StoredView, stored_view
from feast_quorin.write import log
from feast_quorin.write.tables import TableReader
from quorin import layout
from quorin.wal import WALProducer
from tests.feast.repos import day, make_store

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
ZONES = [None, "UTC", "Asia/Kathmandu", "America/New_York"]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
FIRST, LAST = -(2**63) + 1, 2**63 - 1
YEARS = [-2_208_988_800, -9_214_560_000, 0, 1_714_564_800, 7_226_582_400]
"""1900, 1678, 1970, 2024 and 2199, in seconds."""
NUMBERS = itertools.count(1)


class Row(NamedTuple):
    """A row's value, its event time and its created time in nanoseconds."""

    n: int
    time: int
    created: int | None


class Case(NamedTuple):
    """Rows, and how their times are given."""

    rows: list[Row]
    unit: str
    zone: str | None
    as_text: bool

    def times(self, values: list[int | None]) -> pa.Array:
        if self.as_text:
            known = [None if value is None else EPOCH + dt.timedelta(microseconds=value // 1000) for value in values]
            return pa.array([None if time is None else time.isoformat(timespec="microseconds") for time in known])
        numbers = [None if value is None else value // UNITS[self.unit] for value in values]
        return pa.array(numbers, pa.int64()).cast(pa.timestamp(self.unit, self.zone))

    def table(self, thing: int) -> pa.Table:
        return pa.table(
            {
                "thing": [thing] * len(self.rows),
                "n": [row.n for row in self.rows],
                "at": self.times([row.time for row in self.rows]),
                "created": self.times([row.created for row in self.rows]),
            }
        )

    def datetime(self, value: int | None) -> dt.datetime | None:
        if value is None:
            return None
        zone = ZoneInfo(self.zone or "UTC")
        time = (EPOCH + dt.timedelta(microseconds=value // 1000)).astimezone(zone)
        if self.unit == "ns":  # pandas has no local times beyond its range.
            time = pd.Timestamp(value, tz="UTC")
        return time if self.zone else time.replace(tzinfo=None)

    def feast_rows(self, thing: int) -> list[Any]:
        key = EntityKey(join_keys=["thing"], entity_values=[Value(int64_val=thing)])
        return [
            (key, {"n": Value(int64_val=row.n)}, self.datetime(row.time), self.datetime(row.created))
            for row in self.rows
        ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    unit = draw(st.sampled_from(list(UNITS)))
    step = UNITS[unit]
    begin = max(step, UNITS["us"])  # Feast cuts times of nanoseconds, and cut the first ones are out of range.
    ends = [-(-FIRST // begin) * begin, LAST // step * step]
    years = st.sampled_from(YEARS).flatmap(lambda year: st.integers(0, 2).map(lambda n: year * 10**9 + n * step))
    times = st.sampled_from(ends) | years
    pool = draw(st.lists(times, min_size=1, max_size=3))
    drawn = draw(st.lists(st.tuples(st.sampled_from(pool), st.none() | times), min_size=1, max_size=6))
    rows = [Row(n, time, created) for n, (time, created) in enumerate(drawn, 1)]
    return Case(rows, unit, draw(st.sampled_from(ZONES)), unit != "ns" and draw(st.booleans()))


def row_by_row(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    for row in case.feast_rows(thing):
        store._get_provider().online_write_batch(store.config, view, [row], None)


def rows_at_once(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    store._get_provider().online_write_batch(store.config, view, case.feast_rows(thing), None)


def table(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    online(store).write_table(store.config, view, case.table(thing), None)


def compute_engine(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    newest = TableReader(stored_view(store.config, view), view).newest(case.table(thing))
    assert newest.num_rows == 1
    online(store).write_table(store.config, view, newest, None)


def our_provider(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    QuorinProvider(store.config).ingest_df(view, case.table(thing).to_pandas())


def our_provider_row_by_row(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    provider, frame = QuorinProvider(store.config), case.table(thing).to_pandas()
    for row in range(len(frame)):
        provider.ingest_df(view, frame[row : row + 1].reset_index(drop=True))


def feasts_provider(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    PassthroughProvider(store.config).ingest_df(view, case.table(thing).to_pandas())


def feasts_provider_row_by_row(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    provider, frame = PassthroughProvider(store.config), case.table(thing).to_pandas()
    for row in range(len(frame)):
        provider.ingest_df(view, frame[row : row + 1].reset_index(drop=True))


def producer_write(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    session, stored = online(store)._session_for(store.config), stored_view(store.config, view)
    producer = WALProducer(session.registry.backend, registry=session.registry)
    for row in case.rows:
        log.settle(session, stored, producer.write(stored.schema, str(thing), values(stored, row), row.time))


def producer_write_many(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    session, stored = online(store)._session_for(store.config), stored_view(store.config, view)
    producer = WALProducer(session.registry.backend, registry=session.registry)
    log.settle(session, stored, producer.write_many(stored.schema, engine_table(stored, case, thing)))


def insert_many(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    stored = stored_view(store.config, view)
    with online(store)._session_for(store.config).consumer_of(stored).writer() as segment:
        layout.insert_many(segment, engine_table(stored, case, thing))


def insert_one_by_one(store: FeatureStore, view: FeatureView, case: Case, thing: int) -> None:
    stored = stored_view(store.config, view)
    with online(store)._session_for(store.config).consumer_of(stored).writer() as segment:
        for row in case.rows:
            packed = layout.pack_row(stored.schema, **values(stored, row))
            layout.insert(segment, str(thing), packed, event_time_ns=row.time)


WAYS: list[Callable[[FeatureStore, FeatureView, Case, int], None]] = [
    row_by_row,
    rows_at_once,
    table,
    compute_engine,
    our_provider,
    our_provider_row_by_row,
    feasts_provider,
    feasts_provider_row_by_row,
    producer_write,
    producer_write_many,
    insert_many,
    insert_one_by_one,
]
CUT_TO_MICROSECONDS = {feasts_provider, feasts_provider_row_by_row}
"""Feast itself turns the times of frames into Python's before a store sees them."""


def online(store: FeatureStore) -> Any:
    return store._get_provider().online_store


def values(stored: StoredView, row: Row) -> dict[str, Any]:
    known = {stored.features["n"].field: row.n, CREATED: row.created}
    return {field.name: known[field.name] for field in stored.schema.fields}


def engine_table(stored: StoredView, case: Case, thing: int) -> pa.Table:
    """The rows as the engine takes them: times in their unit and zone, unless they are texts."""
    made = [values(stored, row) for row in case.rows]
    times = [row.time for row in case.rows]
    columns = {name: pa.array([row[name] for row in made], pa.int64()) for name in made[0]}
    at = pa.array(times, pa.int64()) if case.as_text else case.times([*times])
    return pa.table({"entity_id": [str(thing)] * len(made), "event_time_ns": at, **columns})


def winner(rows: list[Row], *, has_created: bool, step: int) -> int:
    """The value of the row of the newest event time, then the newest created, null being the oldest, then the last."""

    def order(row: Row) -> tuple[int, int, int]:
        created = FIRST - 10**9 if row.created is None or not has_created else row.created // step * step
        return row.time // step * step, created, row.n

    return max(rows, key=order).n


NAMES = {True: "with_created", False: "without"}
"""The views by whether their source has a column of created times."""


def definitions(folder: Path) -> list[Any]:
    """The two views."""
    pq.write_table(pa.table({"thing": [1], "n": [0], "at": [day(0)], "created": [day(0)]}), folder / "made.parquet")
    thing = Entity(name="thing", join_keys=["thing"], value_type=ValueType.INT64)
    made: list[Any] = [thing]
    for has_created, name in NAMES.items():
        created = {"created_timestamp_column": "created"} if has_created else {}
        source = FileSource(path=str(folder / "made.parquet"), timestamp_field="at", **created)
        made.append(FeatureView(name=name, entities=[thing], schema=[Field(name="n", dtype=Int64)], source=source))
    return made


def check_that_ways_keep_the_same_row(
    ways: Any, store: FeatureStore, by_created: dict[bool, FeatureView], case: Case, *, has_created: bool
) -> None:
    """Write a case in each of some ways, each time for another thing: all keep the row that wins."""
    view = by_created[has_created]
    things = {way: next(NUMBERS) for way in ways}
    for way, thing in things.items():
        way(store, view, case, thing)
    answer = store.get_online_features([f"{view.name}:n"], {"thing": list(things.values())}).to_dict()["n"]
    expected = [
        winner(case.rows, has_created=has_created, step=1000 if way in CUT_TO_MICROSECONDS else 1) for way in ways
    ]
    assert dict(zip([way.__name__ for way in ways], answer, strict=True)) == dict(
        zip([way.__name__ for way in ways], expected, strict=True)
    )


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FeatureStore, dict[bool, FeatureView]]]:
    folder = tmp_path_factory.mktemp("same_row")
    (folder / "segments").mkdir()
    settings_ = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(folder / "segments")}
    store = make_store(folder / "repo", settings_, data=folder)
    store.apply(definitions(folder))
    yield store, {has_created: store.get_feature_view(name) for has_created, name in NAMES.items()}
    store.teardown()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases(), has_created=st.booleans())
def test_every_way_to_write_keeps_the_same_row(
    views: tuple[FeatureStore, dict[bool, FeatureView]], case: Case, has_created: bool
) -> None:
    check_that_ways_keep_the_same_row(WAYS, *views, case, has_created=has_created)
