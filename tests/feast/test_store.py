"""What the store promises beyond what other stores do: event order, changed features, isolation, lifetimes."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Float64, Int32, Int64, String, UnixTimestamp

from feast_quorin.views import stored_view
from quorin.errors import (
    ConnectionFailedError,
    EntityIdTooLongError,
    InvalidRowError,
    SchemaError,
    SegmentNotFoundError,
    WriterLeaseHeldError,
    WriteSyncTimeoutError,
)
from quorin.schema import schema_to_json
from quorin.wal_consumer import WALConsumer
from tests.feast.repos import DAYS, DRIVERS, END, START, definitions, make_store
from tests.support.followers import end_followers

NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
MICROSECOND = dt.timedelta(microseconds=1)


def view(store: FeatureStore, name: str = "pair_stats") -> Any:
    return store.get_feature_view(name)


def provider(store: FeatureStore) -> Any:
    return store._get_provider().online_store


def key(customer: str, driver: int = 1) -> EntityKey:
    values = [Value(int64_val=driver), Value(string_val=customer)]
    return EntityKey(join_keys=["driver_id", "customer"], entity_values=values)


def write(store: FeatureStore, *rows: tuple[EntityKey, int, dt.datetime, dt.datetime | None]) -> None:
    data = [(entity, {"rides": Value(int32_val=rides)}, time, created) for entity, rides, time, created in rows]
    provider(store).online_write_batch(store.config, view(store), data, None)


def read(store: FeatureStore, *keys: EntityKey) -> list[Any]:
    return provider(store).online_read(store.config, view(store), list(keys))


def rides(store: FeatureStore, entity: EntityKey) -> int:
    return read(store, entity)[0][1]["rides"].int32_val


def test_the_newest_event_wins_whatever_the_order(store: FeatureStore) -> None:
    write(store, (key("a"), 1, NOON, None), (key("a"), 2, NOON - MICROSECOND, None))
    assert rides(store, key("a")) == 1
    write(store, (key("a"), 3, NOON - dt.timedelta(days=1), None))
    assert rides(store, key("a")) == 1
    write(store, (key("a"), 4, NOON + MICROSECOND, None))
    assert rides(store, key("a")) == 4
    assert read(store, key("a"))[0][0] == NOON + MICROSECOND


def test_of_equal_events_the_later_row_wins_where_the_source_has_no_created_times(store: FeatureStore) -> None:
    hour = dt.timedelta(hours=1)
    write(store, (key("a"), 1, NOON, NOON + hour), (key("a"), 2, NOON, NOON), (key("a"), 3, NOON, None))
    assert rides(store, key("a")) == 3
    write(store, (key("b"), 1, NOON, None), (key("b"), 2, NOON, None))
    assert rides(store, key("b")) == 2
    write(store, (key("b"), 3, NOON, None))
    assert rides(store, key("b")) == 3


def test_naive_times_are_utc(store: FeatureStore) -> None:
    write(store, (key("a"), 1, NOON.replace(tzinfo=None), None))
    assert read(store, key("a"))[0][0] == NOON


def test_only_the_requested_features_are_read(store: FeatureStore) -> None:
    store.materialize(START, END)
    entity = EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=DRIVERS[0])])
    stored = view(store, "driver_stats")
    [(_, features)] = provider(store).online_read(store.config, stored, [entity], ["trips", "acc"])
    assert set(features) == {"trips", "acc"}


def test_progress_counts_every_row(store: FeatureStore) -> None:
    counted: list[int] = []
    data = [(key(f"c{i}"), {"rides": Value(int32_val=i)}, NOON, None) for i in range(9000)]
    provider(store).online_write_batch(store.config, view(store), data, counted.append)
    assert sum(counted) == len(data)
    assert rides(store, key("c8999")) == 8999


def test_an_empty_batch_is_nothing(store: FeatureStore) -> None:
    provider(store).online_write_batch(store.config, view(store), [], None)
    assert read(store) == []


def test_features_left_out_stay_as_they_are(store: FeatureStore) -> None:
    table = view(store, "customer_stats")
    entity = EntityKey(join_keys=["customer"], entity_values=[Value(string_val="a")])
    both = {"score": Value(double_val=1.0), "city": Value(string_val="Oslo")}
    rows = [
        (entity, both, NOON, None),
        (entity, {"score": Value(double_val=2.0), "unknown": Value(int64_val=1)}, NOON + MICROSECOND, None),
        (entity, {"unknown": Value(int64_val=1)}, NOON + 2 * MICROSECOND, None),
    ]
    provider(store).online_write_batch(store.config, table, rows, None)
    [(time, features)] = provider(store).online_read(store.config, table, [entity])
    assert (time, features) == (NOON + MICROSECOND, {**both, "score": Value(double_val=2.0)})


def test_a_key_that_is_too_long_is_refused_before_the_log(store: FeatureStore) -> None:
    write(store, (key("x" * 4000), 1, NOON, None))
    assert rides(store, key("x" * 4000)) == 1
    with pytest.raises(EntityIdTooLongError, match=r"view 'pair_stats', row 0 .*at most 4096 bytes, got 50"):
        write(store, (key("x" * 5000), 1, NOON, None))
    assert read(store, key("x" * 5000)) == [(None, None)]


def test_a_value_of_another_type_names_feature_and_view(store: FeatureStore) -> None:
    data = [(key("a"), {"rides": Value(string_val="many")}, NOON, None)]
    with pytest.raises(
        InvalidRowError, match=r"view 'pair_stats', row 0 .*, feature 'rides': expected int32_val, got str"
    ):
        provider(store).online_write_batch(store.config, view(store), data, None)
    assert read(store, key("a")) == [(None, None)]


def test_a_changed_view_keeps_what_kept_name_and_type(store: FeatureStore, data: Path) -> None:
    objects = {getattr(thing, "name", ""): thing for thing in definitions(data)}
    store.materialize(START, END)
    request = {"entity_rows": {"driver_id": DRIVERS}}
    before = store.get_online_features(["driver_stats:trips", "driver_stats:tags"], **request).to_dict()
    reader = make_store(store.repo_path, store.config.online_store.model_dump(exclude_unset=True), data=data)
    assert reader.get_online_features(["driver_stats:trips"], **request).to_dict()["trips"] == before["trips"]
    changed = FeatureView(
        name="driver_stats",
        entities=[objects["driver"]],
        schema=[
            Field(name="fresh", dtype=Float64),
            Field(name="trips", dtype=Int64),
            Field(name="small", dtype=Int64),
            Field(name="tags", dtype=Array(String)),
            Field(name="counts", dtype=Array(UnixTimestamp)),
        ],
        source=objects["driver_stats"].batch_source,
    )
    dropped = [objects["boosted"], objects["rides"]]
    store.apply([changed], objects_to_delete=dropped, partial=False)
    names = ["trips", "tags", "fresh", "small", "counts"]
    for each in (store, reader):
        each.refresh_registry()
        after = each.get_online_features([f"driver_stats:{name}" for name in names], **request).to_dict()
        assert {name: after[name] for name in ("trips", "tags")} == {name: before[name] for name in ("trips", "tags")}
        assert after["fresh"] == after["small"] == after["counts"] == [None] * len(DRIVERS)


def test_a_reader_with_older_definitions_goes_on(store: FeatureStore, data: Path) -> None:
    store.materialize(START, END)
    reader = make_store(store.repo_path, store.config.online_store.model_dump(exclude_unset=True), data=data)
    features = ["customer_stats:score", "customer_stats:city"]
    rows = {"customer": ["alice"]}
    before = reader.get_online_features(features, rows).to_dict()
    objects = {getattr(thing, "name", ""): thing for thing in definitions(data)}
    narrowed = objects["customer_stats"]
    narrowed.schema  # noqa: B018 - computed before the features change
    narrowed.features = [field for field in narrowed.features if field.name == "score"]
    narrowed.projection.features = list(narrowed.features)
    store.apply([narrowed])
    after = reader.get_online_features(features, rows)
    assert after.to_dict() == {**before, "city": [None]}


def test_a_flip_that_was_not_announced_does_not_matter_and_is_mended(store: FeatureStore, data: Path) -> None:
    """As if the applying process had died after the flip, before it told the control plane of the new fields."""
    write(store, (key("a"), 1, NOON, None))
    session, old = provider(store)._session_for(store.config), stored_view(store.config, view(store))
    changed = view(store)
    changed.features = [*changed.features, Field(name="more", dtype=Int64)]
    provider(store).update(store.config, [], [changed], [], [], True)
    session.registry.backend.control.put_schema(old.schema.__name__, schema_to_json(old.schema))
    reader = make_store(store.repo_path, store.config.online_store.model_dump(exclude_unset=True), data=data)
    assert rides(reader, key("a")) == 1
    provider(store).update(store.config, [], [changed], [], [], True)
    assert rides(reader, key("a")) == 1


def test_applying_again_changes_nothing(store: FeatureStore, data: Path, online_store: dict[str, Any]) -> None:
    store.materialize(START, END)
    files = sorted(path.name for path in Path(online_store["shm_dir"]).glob("quorin_*"))
    store.apply(definitions(data))
    assert sorted(path.name for path in Path(online_store["shm_dir"]).glob("quorin_*")) == files
    assert store.get_online_features(["driver_stats:small"], {"driver_id": [1001]}).to_dict()["small"] == [-1001]


def test_a_removed_view_is_gone_and_comes_back_empty(store: FeatureStore, data: Path) -> None:
    write(store, (key("a"), 1, NOON, None))
    removed, engine = view(store), provider(store)
    store.apply([], objects_to_delete=[removed], partial=False)
    with pytest.raises(SegmentNotFoundError, match=r"'pair_stats'.*feast apply"):
        engine.online_read(store.config, removed, [key("a")])
    store.apply(definitions(data))
    assert read(store, key("a")) == [(None, None)]


SHOP = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
WORD = Entity(name="word", join_keys=["customer"], value_type=ValueType.STRING)
NUMBER = Entity(name="number", join_keys=["customer"], value_type=ValueType.INT64)


def by_other_keys(store: FeatureStore, entity: Entity) -> FeatureView:
    """The view of pairs by another entity, applied."""
    old = view(store)
    changed = FeatureView(name=old.name, entities=[entity], schema=old.features, source=old.batch_source, ttl=old.ttl)
    store.apply([entity, changed])
    return store.get_feature_view("pair_stats")


def put_seven(store: FeatureStore, table: FeatureView, rides: int, time_: dt.datetime) -> None:
    """A row by the key 7, as the view has it, a number or a text."""
    (column,) = table.entity_columns
    seven = Value(int64_val=7) if column.dtype == Int64 else Value(string_val="7")
    entity_key = EntityKey(join_keys=[column.name], entity_values=[seven])
    rows = [(entity_key, {"rides": Value(int32_val=rides)}, time_, None)]
    provider(store).online_write_batch(store.config, table, rows, None)


def rides_of_seven(store: FeatureStore, entity: Entity) -> int | None:
    seven = 7 if entity.value_type is ValueType.INT64 else "7"
    answer = store.get_online_features(["pair_stats:rides"], {entity.join_key: [seven]}).to_dict()
    return answer["rides"][0]


@pytest.mark.parametrize(("before", "after"), [(WORD, SHOP), (WORD, NUMBER), (NUMBER, WORD)])
def test_rows_by_other_keys_are_no_rows_of_the_view(store: FeatureStore, before: Entity, after: Entity) -> None:
    old = by_other_keys(store, before)
    put_seven(store, old, 1, NOON)
    assert rides_of_seven(store, before) == 1
    new = by_other_keys(store, after)
    assert rides_of_seven(store, after) is None
    put_seven(store, new, 2, NOON - MICROSECOND)
    assert rides_of_seven(store, after) == 2
    with pytest.raises(
        SchemaError, match=rf"'pair_stats': its rows have the keys {after.join_key} .* expects {before.join_key} "
    ):
        put_seven(store, old, 3, NOON)
    assert rides_of_seven(store, after) == 2


def test_a_process_that_knows_a_view_by_its_former_keys_is_refused(store: FeatureStore, data: Path) -> None:
    settings = store.config.online_store.model_dump(exclude_unset=True)
    put_seven(store, by_other_keys(store, WORD), 1, NOON)
    reader = make_store(store.repo_path, settings, data=data)
    assert rides_of_seven(reader, WORD) == 1
    put_seven(store, by_other_keys(store, SHOP), 2, NOON)
    with pytest.raises(SchemaError, match=r"keys shop STRING.* expects customer STRING.*refresh the registry"):
        rides_of_seven(reader, WORD)
    reader.refresh_registry()
    assert rides_of_seven(reader, SHOP) == 2


def test_what_such_a_process_writes_is_not_logged(store: FeatureStore, data: Path) -> None:
    settings = store.config.online_store.model_dump(exclude_unset=True)
    old = by_other_keys(store, NUMBER)
    writer = make_store(store.repo_path, settings, data=data)
    put_seven(writer, old, 1, NOON)
    new = by_other_keys(store, WORD)
    with pytest.raises(SchemaError, match=r"keys customer STRING.* expects customer INT64"):
        put_seven(writer, old, 2, NOON)
    put_seven(store, new, 3, NOON - MICROSECOND)
    assert rides_of_seven(store, WORD) == 3


def test_keys_change_while_an_external_consumer_holds_the_segment(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    external = make_store(store.repo_path, {**online_store, "consumer": "external"}, data=data)
    session = provider(store)._session_for(store.config)
    with consuming(session, None):
        write(external, (key("a"), 7, NOON, None))
        put_seven(external, by_other_keys(external, SHOP), 8, NOON)
        assert rides_of_seven(external, SHOP) == 8
        assert external.get_online_features(["pair_stats:rides"], {"shop": ["a|1"]}).to_dict()["rides"] == [None]


def test_a_segment_that_does_not_say_its_keys_keeps_its_rows(store: FeatureStore) -> None:
    table = view(store)
    table.entity_columns = []
    provider(store).teardown(store.config, [table], [])
    provider(store).update(store.config, [], [table], [], [], False)
    write(store, (key("a"), 1, NOON, None))
    session, name = provider(store)._session_for(store.config), stored_view(store.config, table).schema.__name__
    assert session.catalogue.current_schema(name).entity is None
    provider(store).update(store.config, [], [view(store)], [], [], True)
    assert session.catalogue.current_schema(name).entity == "customer STRING, driver_id INT64"
    assert rides(store, key("a")) == 1


def test_two_projects_stay_apart(store: FeatureStore, online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    shared = dict(online_store)
    if "redis_url" not in shared:
        shared["path"] = store.config.online_store.connection(store.repo_path)
    other = make_store(tmp_path / "other", shared, project="shop__2", data=data)
    other.apply(definitions(data))
    write(store, (key("a"), 1, NOON, None))
    assert read(other, key("a")) == [(None, None)]
    write(other, (key("a"), 2, NOON, None))
    assert rides(store, key("a")) == 1
    other.teardown()
    assert rides(store, key("a")) == 1


def test_another_processs_write_and_a_recreated_segment_are_seen(store: FeatureStore, data: Path) -> None:
    reader = make_store(store.repo_path, store.config.online_store.model_dump(exclude_unset=True), data=data)
    assert read(reader, key("a")) == [(None, None)]
    write(store, (key("a"), 1, NOON, None))
    assert rides(reader, key("a")) == 1
    store.teardown()
    store.apply(definitions(data))
    assert read(reader, key("a")) == [(None, None)]
    write(store, (key("a"), 2, NOON, None))
    assert rides(reader, key("a")) == 2


def test_segments_that_were_lost_come_back_from_the_log(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    write(store, (key("a"), 1, NOON, None))
    for path in Path(online_store["shm_dir"]).iterdir():
        path.unlink()
    reader = make_store(store.repo_path, store.config.online_store.model_dump(exclude_unset=True), data=data)
    assert rides(reader, key("a")) == 1
    assert rides(store, key("a")) == 1


def test_logged_but_not_applied_rows_are_seen_by_the_next_process(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    external = make_store(store.repo_path, {**online_store, "consumer": "external", "wait": "logged"}, data=data)
    write(external, (key("a"), 7, NOON, None))
    assert read(external, key("a")) == [(None, None)]
    reader = make_store(store.repo_path, online_store, data=data)
    assert rides(reader, key("a")) == 7


def test_without_a_consumer_a_write_says_so(store: FeatureStore, online_store: dict[str, Any], data: Path) -> None:
    end_followers()  # Those of earlier tests would apply it.
    settings = {**online_store, "consumer": "external", "timeout_ms": 50}
    external = make_store(store.repo_path, settings, data=data)
    with pytest.raises(WriteSyncTimeoutError, match="50 ms"):
        write(external, (key("a"), 7, NOON, None))


@contextmanager
def consuming(session: Any, schemas: list[Any] | None) -> Iterator[threading.Thread]:
    """A consumer in a thread of its own."""
    consumer = WALConsumer(session.registry.backend, schemas, registry=session.registry)
    running = threading.Thread(target=consumer.run)
    running.start()
    try:
        yield running
    finally:
        consumer.stop()
        running.join()
        consumer.close()


def test_an_external_consumer_applies_what_is_only_logged_here(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    external = make_store(store.repo_path, {**online_store, "consumer": "external"}, data=data)
    session = provider(store)._session_for(store.config)
    schema = stored_view(store.config, view(store)).schema
    with consuming(session, [schema]):
        write(external, (key("a"), 7, NOON, None))
        assert rides(external, key("a")) == 7
        write(store, (key("a"), 8, NOON + MICROSECOND, None))
        assert rides(external, key("a")) == 8


def test_a_view_changes_while_an_external_consumer_holds_its_segment(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    external = make_store(store.repo_path, {**online_store, "consumer": "external"}, data=data)
    session = provider(store)._session_for(store.config)
    with consuming(session, None):
        write(external, (key("a"), 7, NOON, None))
        changed = view(store)
        changed.features = [*changed.features, Field(name="more", dtype=Int64)]
        provider(external).update(external.config, [], [changed], [], [], True)
        for reader in (external, store):
            rows = provider(reader).online_read(reader.config, changed, [key("a")], ["rides", "more"])
            assert rows[0][1]["rides"].int32_val == 7
            assert rows[0][1]["more"].WhichOneof("val") is None
        write(external, (key("a"), 8, NOON + MICROSECOND, None))
        assert rides(external, key("a")) == rides(store, key("a")) == 8


def test_teardown_removes_what_a_running_consumer_writes_to(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    external = make_store(store.repo_path, {**online_store, "consumer": "external"}, data=data)
    session = provider(store)._session_for(store.config)
    with consuming(session, None) as running:
        write(external, (key("a"), 7, NOON, None))
        external.teardown()
        time.sleep(0.6)
        assert session.registry.backend.control.schemas() == {}
        assert session.registry.node.currents() == {}
        assert running.is_alive()


def test_teardown_refuses_what_another_goes_on_writing_to(
    store: FeatureStore, online_store: dict[str, Any], data: Path
) -> None:
    session = provider(store)._session_for(store.config)
    name = stored_view(store.config, view(store)).schema.__name__
    hasty = make_store(store.repo_path, {**online_store, "timeout_ms": 50}, data=data)
    with session.registry.open_stored(name, read_only=False) as segment:
        segment.acquire_writer_lease()
        with pytest.raises(WriterLeaseHeldError):
            provider(hasty).update(hasty.config, [view(store)], [], [], [], True)
        assert session.catalogue.current_schema(name) is not None
    provider(hasty).update(hasty.config, [view(store)], [], [], [], True)
    assert not session.catalogue.is_known(name)


def test_versions_of_a_view_are_kept_apart(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "repo", online_store, data=data)
    store.config.registry.enable_online_feature_view_versioning = True
    store.apply(definitions(data))
    old = view(store)
    write(store, (key("a"), 1, NOON, None))
    new = view(store)
    new.current_version_number = 2
    stored = provider(store)
    stored.update(store.config, [], [new], [], [], True)
    assert stored.online_read(store.config, new, [key("a")]) == [(None, None)]
    assert stored.online_read(store.config, old, [key("a")])[0][1]["rides"].int32_val == 1
    store.teardown()


def test_precomputed_vectors_need_no_apply(store: FeatureStore) -> None:
    stored = provider(store)
    entity = key("a")
    assert stored.read_precomputed_vectors(store.config, "rides", "shop", [entity]) == [None]
    stored.write_precomputed_vector(store.config, "rides", "shop", entity, b"vector")
    assert stored.read_precomputed_vectors(store.config, "rides", "shop", [entity, key("b")]) == [b"vector", None]


def test_async_writes_and_the_server_hooks(store: FeatureStore) -> None:
    stored = provider(store)
    assert stored.async_supported.read
    assert stored.async_supported.write

    async def scenario() -> Any:
        await stored.initialize(store.config)
        data = [(key("a"), {"rides": Value(int32_val=5)}, NOON, None)]
        await stored.online_write_batch_async(store.config, view(store), data, None)
        found = await stored.online_read_async(store.config, view(store), [key("a")])
        await stored.close()
        return found

    [(_, features)] = asyncio.run(scenario())
    assert features["rides"].int32_val == 5
    assert rides(store, key("a")) == 5


def test_teardown_of_what_was_never_applied_is_quiet(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "repo", online_store, data=data)
    provider(store).teardown(store.config, [], [])


def test_an_unreachable_redis_is_named_without_its_password(tmp_path: Path, data: Path) -> None:
    settings = {"type": "feast_quorin.QuorinOnlineStore", "redis_url": "redis://:s3cret@127.0.0.1:1/0"}
    store = make_store(tmp_path / "repo", settings, data=data)
    with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:1") as caught:
        store.apply(definitions(data))
    assert "s3cret" not in str(caught.value)


def test_a_directory_that_cannot_be_is_named(tmp_path: Path, data: Path) -> None:
    settings = {"type": "feast_quorin.QuorinOnlineStore", "path": str(tmp_path / "no" / "such" / "place")}
    store = make_store(tmp_path / "repo", settings, data=data)
    with pytest.raises(ConnectionFailedError, match="no/such/place"):
        store.apply(definitions(data))


def test_any_names_will_do(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "repo", online_store, project="my__project", data=data)
    customer = Entity(name="customer", join_keys=["customer"], value_type=ValueType.STRING)
    source = FileSource(path=str(data / "customers.parquet"), timestamp_field="at", field_mapping={"score": "schema"})
    named = FeatureView(
        name="stats-of.customers",
        entities=[customer],
        schema=[Field(name="schema", dtype=Float64), Field(name="city", dtype=String)],
        source=source,
    )
    store.apply([customer, named])
    store.materialize(START, END)
    answer = store.get_online_features(["stats-of.customers:schema"], {"customer": ["alice"]}).to_dict()
    assert answer["schema"] == [1 + (DAYS - 1) / 4]
    store.teardown()


def test_int32_keys_are_keys(online_store: dict[str, Any], data: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "repo", online_store, data=data)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT32)
    source = FileSource(path=str(data / "drivers.parquet"), timestamp_field="at")
    stats = FeatureView(name="s", entities=[driver], schema=[Field(name="small", dtype=Int32)], source=source)
    store.apply([driver, stats])
    frame = source_frame()
    store.write_to_online_store("s", frame)
    assert store.get_online_features(["s:small"], {"driver_id": [5, 6]}).to_dict()["small"] == [-5, None]
    store.teardown()


def source_frame() -> Any:
    import pandas as pd

    return pd.DataFrame({"driver_id": [5], "at": pd.to_datetime([NOON]), "small": [-5]})
