"""What was materialized, pushed or only logged is read by the next process, whatever else stands in the log.

Several views of several projects share each log, with entries of strangers before, between and behind theirs.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from feast import FeatureStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from feast_quorin.apply import apply_view
from feast_quorin.catalogue import Catalogue
from feast_quorin.views import stored_view
from feast_quorin.write import log
from feast_quorin.write.rows import rows_to_batch
from quorin.engine.backend import connect
from quorin.engine.log.record_fast import encode_row
from quorin.engine.ops.observe import Observer
from quorin.errors import SegmentConflictError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.wal import WALProducer
from tests.feast.repos import CUSTOMERS, DRIVERS, END, START, day, definitions, make_store
from tests.support.world import make_current, until

STRANGER = make_schema("Stranger", [FeatureField("n", dtype.int64)])
FEATURES = ["driver_stats:trips", "pair_stats:rides", "customer_stats:score", "world:fuel_price"]
ROWS = {"driver_id": DRIVERS[:2], "customer": CUSTOMERS[1:3]}


def session_of(store: FeatureStore) -> Any:
    online_store: Any = store._get_provider().online_store
    return online_store._session_for(store.config)


def connection_of(store: FeatureStore) -> str:
    connection: str = store.config.online_store.connection(store.config.repo_path)
    return connection


def strangers(store: FeatureStore, count: int) -> None:
    """Entries of another project's schema, one a row: more than any look at a log reads at once."""
    backend, entry = connect(connection_of(store)), encode_row(STRANGER, "s", {"n": 1}, 1)
    for _ in range(0, count, 500):
        backend.log().append([("Stranger", entry)] * 500)
    backend.close()


def next_process(store: FeatureStore, data: Path, *, project: str = "shop", **settings: Any) -> FeatureStore:
    """A store with nothing open, as in a process that has just started."""
    online = store.config.online_store.model_dump(exclude_unset=True) | settings
    return make_store(Path(store.repo_path or ""), online, project=project, data=data)


def answers(store: FeatureStore) -> dict[str, list[Any]]:
    response = store.get_online_features(FEATURES, ROWS, full_feature_names=True)
    values: dict[str, list[Any]] = response.to_dict()
    return values


def log_only(store: FeatureStore, customer: str, rides: int) -> None:
    """What a process leaves that is killed between the append and the apply."""
    view = stored_view(store.config, store.get_feature_view("pair_stats"))
    batch = rows_to_batch(view, [row(customer, rides)], list(view.features))
    with WALProducer(connection_of(store)) as producer:
        producer.write_many(view.schema, batch)


def row(customer: str, rides: int) -> Any:
    key = EntityKey(join_keys=["customer", "driver_id"], entity_values=[Value(string_val=customer), Value(int64_val=1)])
    return key, {"rides": Value(int32_val=rides)}, day(1), None


def rides(store: FeatureStore, customer: str) -> Any:
    found = store.get_online_features(["pair_stats:rides"], {"driver_id": [1], "customer": [customer]})
    return found.to_dict()["rides"][0]


def test_after_a_reboot_every_view_of_every_project_is_as_it_was(
    store: FeatureStore, data: Path, tmp_path: Path, online_store: dict[str, Any]
) -> None:
    if "redis_url" not in online_store:
        online_store = {**online_store, "path": connection_of(store)}
    other = make_store(tmp_path / "other", online_store, project="other", data=data)
    other.apply(definitions(data))
    strangers(store, 3000)
    other.materialize(START, END)
    store.materialize(START, END)
    strangers(store, 3000)
    expected = answers(store)
    assert all(None not in values for values in expected.values())
    for path in Path(online_store["shm_dir"]).iterdir():
        path.unlink()
    assert answers(next_process(store, data)) == expected
    assert answers(next_process(other, data, project="other")) == expected
    other.teardown()


@pytest.mark.parametrize("behind", [0, 3000])
def test_what_was_only_logged_is_read_by_the_next_process(store: FeatureStore, data: Path, behind: int) -> None:
    store.materialize(START, END)
    expected = answers(store)
    strangers(store, 3000)
    log_only(store, "new", 7)
    strangers(store, behind)
    reader = next_process(store, data)
    assert rides(reader, "new") == 7
    assert answers(reader) == expected


def test_other_views_entries_are_passed_over_once(store: FeatureStore, data: Path) -> None:
    store.materialize(START, END)
    strangers(store, 3000)
    session = session_of(store)
    last = session.registry.backend.log().bounds().last
    assert answers(next_process(store, data)) == answers(store)
    if "redis_url" in store.config.online_store.model_dump(exclude_unset=True):
        with Observer(session.registry.backend, shm_dir=store.config.online_store.shm_dir) as observer:
            until(lambda: _positions(observer) == {last})


def _positions(observer: Observer) -> set[int]:
    states = observer.observe(readers=False, events=False).segments
    return {state.stats["position"] for state in states if state.stats}


def test_what_a_bounded_look_did_not_see_is_not_called_nothing(store: FeatureStore, data: Path) -> None:
    strangers(store, 3000)
    log_only(store, "new", 7)
    backend = session_of(store).registry.backend
    with Observer(backend, shm_dir=store.config.online_store.shm_dir) as observer:
        [lag] = [state.lag for state in observer.observe(readers=False).segments if "pair_stats" in state.schema_name]
    assert lag is not None
    assert lag.rows == 1 or not lag.is_exact


def test_a_full_memory_does_not_keep_a_new_process_from_reading(
    store: FeatureStore, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.materialize(START, END)
    expected = answers(store)
    view = stored_view(store.config, store.get_feature_view("pair_stats"))
    keys = [row(f"c{number}", number) for number in range(20_000)]
    with WALProducer(connection_of(store)) as producer:
        producer.write_many(view.schema, rows_to_batch(view, keys, list(view.features)))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        assert answers(next_process(store, data)) == expected
    reader = next_process(store, data)
    assert rides(reader, "c19999") == 19_999
    assert answers(reader) == expected


# Two processes at the same time


def meanwhile(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Any) -> None:
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        act()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("step", ["current_schema", "create"])
def test_of_two_that_apply_a_view_for_the_first_time_both_work_on_one_segment(
    store: FeatureStore, data: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    view = stored_view(store.config, store.get_feature_view("pair_stats"))
    first, second = session_of(store), session_of(next_process(store, data))
    first.discard(view.schema.__name__)

    def first_is_quicker() -> None:
        apply_view(first, view, drops=True)
        log.settle(first, view, log.write(first, view, rows_to_batch(view, [row("new", 7)], list(view.features))))

    meanwhile(monkeypatch, second.catalogue, step, first_is_quicker)
    apply_view(second, view, drops=True)
    assert second.prepare(view).name == first.prepare(view).name
    assert second.read(view, [], ["rides__int32"])[0] == ["rides__int32"]
    assert rides(store, "new") == rides(next_process(store, data), "new") == 7


def test_of_two_that_make_a_lost_segment_again_one_does(
    store: FeatureStore, data: Path, monkeypatch: pytest.MonkeyPatch, online_store: dict[str, Any]
) -> None:
    store.materialize(START, END)
    expected = answers(store)
    for path in Path(online_store["shm_dir"]).iterdir():
        path.unlink()
    second, other = next_process(store, data), next_process(store, data)
    meanwhile(monkeypatch, session_of(second).registry, "create", lambda: answers(other))
    assert answers(second) == answers(other) == expected
    # The background threads of the stores may still be discarding what they built and another was first with.
    until(lambda: len(list(Path(online_store["shm_dir"]).glob("quorin_*"))) == 4)


def test_a_view_that_is_removed_while_its_lost_segment_is_made_again_stays_removed(
    store: FeatureStore, data: Path, online_store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = stored_view(store.config, store.get_feature_view("pair_stats"))
    for path in Path(online_store["shm_dir"]).iterdir():
        path.unlink()
    session, name = session_of(next_process(store, data)), view.schema.__name__
    catalogue = session.catalogue
    meanwhile(monkeypatch, session.registry, "create", lambda: session_of(store).discard(name))
    with pytest.raises(SegmentConflictError):
        catalogue.restore(name)
    assert not catalogue.is_known(name)


def test_what_is_made_while_a_lost_segment_is_removed_stays(
    store: FeatureStore, data: Path, online_store: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    view = stored_view(store.config, store.get_feature_view("pair_stats"))
    name = view.schema.__name__
    for path in Path(online_store["shm_dir"]).iterdir():
        path.unlink()
    first, second = session_of(store), session_of(next_process(store, data))
    original = Catalogue._drop

    def drop(self: Any, *args: Any) -> None:
        monkeypatch.setattr(Catalogue, "_drop", original)
        first.catalogue.restore(name)
        original(self, *args)

    monkeypatch.setattr(Catalogue, "_drop", drop)
    second.discard(name)
    with first.registry.open_stored(name) as segment:
        assert first.catalogue.is_known(name)
        assert segment.schema.__name__ == name


def test_a_process_leaves_a_segment_that_is_not_in_force_any_more(store: FeatureStore, data: Path) -> None:
    """Whatever brought it about: what it writes then, and reads, is of the segment that others read."""
    view = stored_view(store.config, store.get_feature_view("pair_stats"))
    first = session_of(store)
    log.settle(first, view, log.write(first, view, rows_to_batch(view, [row("a", 1)], list(view.features))))
    registry = first.registry
    new = registry.create(view.schema, capacity=64, max_id_bytes=1024, set_current=False)
    assert make_current(registry, view.schema.__name__, new.name, expected=first.prepare(view).name)
    log.settle(first, view, log.write(first, view, rows_to_batch(view, [row("a", 2)], list(view.features))))
    until(lambda: first.prepare(view).name == new.name)  # One that applies in a thread finds out at its next look.
    assert rides(store, "a") == rides(next_process(store, data), "a") == 2
    for path in Path(store.config.online_store.shm_dir).iterdir():
        if "pair_stats" in path.name and path.name != new.name:
            path.unlink()
    new.close()
