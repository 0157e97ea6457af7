"""What earlier versions wrote is read by this one, to the same values; what is damaged raises the error of its kind."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from quorin import assembly, errors, layout, serving
from quorin.engine.log.record import decode
from quorin.offline import ParquetDatasetStore
from quorin.shm import SegmentRegistry
from quorin.snapshot import restore
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer
from tests.fixtures.v1.definitions import IDS, SCHEMAS, UNDECODABLE, FixtureClicks, FixtureEverything, rows, vector

V1 = Path(__file__).parents[1] / "fixtures" / "v1"
EXPECTED = json.loads((V1 / "expected.json").read_text())
DAMAGED = json.loads((V1 / "damaged.json").read_text())


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The fixtures as the version before left them, in a directory that the test may write to."""
    for path in V1.rglob("*"):
        target = tmp_path / path.relative_to(V1)
        if path.suffix in (".gz", ".parquet"):
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".gz":
                target.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            else:
                shutil.copyfile(path, target)
    return tmp_path


@pytest.fixture
def registry(copy: Path) -> Iterator[SegmentRegistry]:
    registry = SegmentRegistry(copy / "store", shm_dir=copy / "shm")
    yield registry
    registry.backend.close()


@pytest.fixture
def filled_redis(redis_url: str) -> str:
    """A Redis that holds what one held when the version before wrote to it."""
    with redis.Redis.from_url(redis_url) as client:
        for key, (kind, held, *last) in json.loads((V1 / "redis.json").read_text()).items():
            if kind == "stream":
                for stream_id, fields in held:
                    client.xadd(key, {name: base64.b64decode(value) for name, value in fields.items()}, id=stream_id)
                assert client.xinfo_stream(key)["last-generated-id"].decode() == last[0]
            elif kind == "hash":
                client.hset(key, mapping={name: base64.b64decode(value) for name, value in held.items()})
            else:
                client.set(key, base64.b64decode(held))
    return redis_url


def test_segments_hold_the_same_rows(registry: SegmentRegistry) -> None:
    assert served(registry, positions=True) == EXPECTED["embedded"]["applied"]


def test_the_oracle_reads_the_same_vectors(registry: SegmentRegistry) -> None:
    for schema in SCHEMAS:
        with registry.open_current(schema) as segment:
            vectors, mask = serving.assemble_batch(segment, IDS[schema])
        expected = EXPECTED["embedded"]["applied"][schema.__name__]
        assert (vector(vectors), mask.tolist()) == (expected["vectors"], expected["found"])


def test_segments_are_written_on(registry: SegmentRegistry) -> None:
    """One of them by a writer that takes over from one that died."""
    for schema in SCHEMAS:
        before = served(registry)[schema.__name__]["rows"]
        empty = {field.name: pa.nulls(200) for field in schema.fields}
        added = pa.table(empty | {"entity_id": [f"new {number}" for number in range(200)]})
        with registry.open_current(schema, read_only=False) as segment:
            layout.insert_many(segment, added)
            assert len(segment) == EXPECTED["embedded"]["applied"][schema.__name__]["entities"] + 200
            assert assembly.read(segment, ["new 199"]).column("found").to_pylist() == [True]
        assert served(registry)[schema.__name__]["rows"] == before


def test_the_log_holds_the_same_entries(registry: SegmentRegistry) -> None:
    assert logged(registry.backend.log()) == EXPECTED["embedded"]["log"]


def test_what_was_not_applied_is_applied(registry: SegmentRegistry, copy: Path) -> None:
    drain(registry, copy)
    assert served(registry, positions=True) == EXPECTED["embedded"]["drained"]


def test_the_log_is_written_on_behind_its_end(registry: SegmentRegistry, copy: Path) -> None:
    with WALProducer(registry.backend, registry=registry) as producer:
        position = producer.write(FixtureClicks, "new", dict.fromkeys("abcd", 1), 1)
    assert position > EXPECTED["embedded"]["log"]["bounds"][1]
    drain(registry, copy)
    with registry.open_current(FixtureClicks) as segment:
        assert segment.position == position
        assert assembly.assemble(segment, "new").tolist() == [1, 1, 1, 1]


def test_the_history_holds_the_same_rows(copy: Path) -> None:
    with ParquetDatasetStore(copy / "history", strict=True) as store:
        assert history(store) == EXPECTED["embedded"]["history"]


def test_the_history_is_compacted(copy: Path) -> None:
    with ParquetDatasetStore(copy / "history", strict=True) as store:
        assert [store.compact(schema) for schema in SCHEMAS] == [1, 1]
        assert history(store) == EXPECTED["embedded"]["history"]


def test_a_snapshot_is_restored(registry: SegmentRegistry, copy: Path) -> None:
    for schema in SCHEMAS:
        with registry.open_current(schema, read_only=False) as segment:
            registry.discard(segment)
    assert restore(copy / "everything.snapshot", registry).entity_count == 8
    with registry.open_current(FixtureEverything) as segment:
        expected = EXPECTED["embedded"]["applied"]["FixtureEverything"]
        assert rows(assembly.read(segment, IDS[FixtureEverything])) == expected["rows"]
        assert segment.position == expected["position"]


def test_the_log_of_a_redis_holds_the_same_entries(filled_redis: str, tmp_path: Path) -> None:
    registry = SegmentRegistry(filled_redis, shm_dir=tmp_path)
    assert logged(registry.backend.log()) == EXPECTED["redis"]["log"]
    registry.backend.close()


def test_the_log_of_a_redis_is_applied(filled_redis: str, copy: Path) -> None:
    """The machine is another one, so its segments begin with the history, and go on with the log."""
    from quorin.hydration import hydrate

    for path in (copy / "shm").iterdir():
        path.unlink()
    registry = SegmentRegistry(filled_redis, shm_dir=copy / "shm")
    with WALConsumer(registry.backend, None, registry=registry) as consumer:
        consumer.drain()
    logged_since = served(registry)
    for schema in SCHEMAS:
        with registry.open_current(schema, read_only=False) as segment:
            registry.discard(segment)
        hydrate(schema, ParquetDatasetStore(copy / "history"), registry)
    assert {name: found["entities"] for name, found in served(registry).items()} == {
        name: found["entities"] for name, found in EXPECTED["embedded"]["applied"].items()
    }
    for schema in SCHEMAS:
        expected = EXPECTED["redis"]["drained"][schema.__name__]["rows"]
        in_log = {row for row in logged_since[schema.__name__]["rows"] if '"found": true' in row}
        assert in_log, "the log has rows that were not trimmed"
        assert in_log <= set(expected)
    registry.backend.close()


@pytest.mark.parametrize("damage", DAMAGED, ids=[damage["what"] for damage in DAMAGED])
def test_what_is_damaged_is_told(damage: dict[str, Any], copy: Path, registry: SegmentRegistry) -> None:
    record = next(payload for _, payload in registry.backend.log().read(0).entries)
    registry.backend.close()
    (copy / "record").write_bytes(record)
    [path] = copy.glob(damage["file"])
    path.write_bytes(damaged(path.read_bytes(), damage))
    open_it = OPENED[damage["what"].partition(":")[0]]
    with pytest.raises(getattr(errors, damage["error"])):
        open_it(copy)


def test_a_damaged_entry_becomes_a_dead_letter(registry: SegmentRegistry, copy: Path) -> None:
    log = registry.backend.log()
    buried = len(log.dead_letters())
    payload = next(payload for _, payload in log.read(0).entries)
    damages = [damage for damage in DAMAGED if damage["file"] == "record"]
    log.append([("FixtureEverything", damaged(payload, damage)) for damage in damages])
    drain(registry, copy)
    assert len(log.dead_letters()) == buried + len(damages)
    assert served(registry)["FixtureEverything"]["rows"] == EXPECTED["embedded"]["drained"]["FixtureEverything"]["rows"]


def test_a_damaged_file_of_the_history_is_left_out(copy: Path) -> None:
    [path] = copy.glob("history/FixtureEverything/*/00000000000000000000-*")
    path.write_bytes(path.read_bytes()[:-100])
    with ParquetDatasetStore(copy / "history") as store:
        ids = store.distinct_entity_ids(FixtureEverything).to_pylist()
    assert "plain" not in ids
    assert "greatest" in ids


def damaged(content: bytes, damage: dict[str, Any]) -> bytes:
    if "keep" in damage:
        return content[: damage["keep"]]
    changed, at = bytearray(content), damage["at"] % len(content)
    for offset, mask in enumerate(bytes.fromhex(damage["xor"])):
        changed[at + offset] ^= mask
    return bytes(changed)


def open_segment(copy: Path) -> None:
    registry = SegmentRegistry(copy / "store", shm_dir=copy / "shm")
    registry.open_current(FixtureEverything)


def open_snapshot(copy: Path) -> None:
    registry = SegmentRegistry(copy / "other store", shm_dir=copy / "shm")
    restore(copy / "everything.snapshot", registry)


def open_control_plane(copy: Path) -> None:
    registry = SegmentRegistry(copy / "store", shm_dir=copy / "shm")
    logged(registry.backend.log())


def open_history(copy: Path) -> None:
    with ParquetDatasetStore(copy / "history", strict=True) as store:
        store.latest_features(FixtureEverything)


OPENED = {
    "segment": open_segment,
    "snapshot": open_snapshot,
    "control plane": open_control_plane,
    "history": open_history,
    "record": lambda copy: decode((copy / "record").read_bytes()),
}


def drain(registry: SegmentRegistry, copy: Path) -> None:
    with (
        ParquetDatasetStore(copy / "history") as store,
        WALConsumer(registry.backend, None, registry=registry, offline=store, trims=False) as consumer,
    ):
        consumer.drain()


def served(registry: SegmentRegistry, *, positions: bool = False) -> dict[str, Any]:
    """What the current segments hold of the ids that were written."""
    found: dict[str, Any] = {}
    for schema in SCHEMAS:
        with registry.open_current(schema) as segment:
            vectors, mask = assembly.assemble_batch(segment, IDS[schema])
            found[schema.__name__] = {
                "entities": len(segment),
                "rows": rows(assembly.read(segment, IDS[schema])),
                "vectors": vector(vectors),
                "found": mask.tolist(),
            }
            if positions:
                found[schema.__name__]["position"] = segment.position
    return found


def logged(log: Any) -> dict[str, Any]:
    """What a log holds, as the generator kept it."""
    entries = [(position, decode(payload)) for position, payload in log.read(0).entries if payload not in UNDECODABLE]
    return {
        "identity": log.identity(),
        "bounds": [log.bounds().first, log.bounds().last, log.bounds().trimmed],
        "sizes": list(log.sizes()),
        "entries": [[at, int(record.kind), record.schema_name, rows(record.batch)] for at, record in entries],
        "dead": [[letter.position, letter.payload.hex(), letter.reason] for letter in log.dead_letters()],
    }


def history(store: ParquetDatasetStore) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for schema in SCHEMAS:
        ids = IDS[schema]
        queries = pa.table({"entity_id": ids * 2, "as_of_time_ns": [1_500] * len(ids) + [4_000] * len(ids)})
        found[schema.__name__] = {
            "latest": sorted(rows(store.latest_features(schema))),
            "as of": rows(store.read_point_in_time(schema, queries)),
            "ids": store.distinct_entity_ids(schema).to_pylist(),
            "flushed": store.flushed_position(schema),
        }
    return found
