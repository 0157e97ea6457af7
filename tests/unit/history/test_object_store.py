"""The history on an object store: a server that speaks S3, reached by URL as a bucket in the cloud would be."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from quorin.assembly import read
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import delete_batch
from quorin.errors import HistoryUnavailableError
from quorin.hydration import hydrate
from quorin.offline import ParquetDatasetStore
from quorin.shm import SegmentRegistry
from tests.support.passwords import urls_with_passwords, without_password
from tests.support.s3 import KEY, QUOTED, SECRET, new_bucket, running, url
from tests.support.schemas import Scalars

IDS = [f"id{number}" for number in range(50)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as address:
        yield address


@pytest.fixture
def base(server: str, tmp_path: Path) -> str:
    """A history in a bucket of its own."""
    return new_bucket(server, tmp_path.name)


def batch(number: int) -> pa.RecordBatch:
    """Every entity, with a number in all of its fields, which is its event time as well."""
    values = {field.name: np.full(len(IDS), number, np.float32) for field in Scalars.fields}
    return pa.record_batch({"entity_id": IDS, "event_time_ns": np.full(len(IDS), number), **values})


def positions(number: int, count: int = len(IDS)) -> pa.Array:
    return pa.array(np.full(count, number))


def filled(base: str, numbers: range) -> ParquetDatasetStore:
    store = ParquetDatasetStore(base)
    for number in numbers:
        store.append(Scalars, batch(number), positions(number))
        store.flush()
    return store


def test_rows_are_flushed_compacted_and_read_as_of_any_time(base: str) -> None:
    store = filled(base, range(1, 6))
    store.append(Scalars, delete_batch(IDS[:1], 6), positions(6, 1), kind=Kind.delete)
    store.flush()
    for removed in (5, 0):
        assert store.compact(Scalars) == removed
        reader = ParquetDatasetStore(base, strict=True)
        assert reader.flushed_position(Scalars) == 6
        assert reader.distinct_entity_ids(Scalars).to_pylist() == IDS
        newest = reader.latest_features(Scalars)
        assert newest.num_rows == len(IDS) - 1
        assert set(newest["a"].to_pylist()) == {5.0}
        asked = pa.table({"entity_id": ["id1", "id0", "id0", "nobody"], "as_of_time_ns": [3, 5, 9, 9]})
        found = reader.read_point_in_time(Scalars, asked)
        assert found["b"].to_pylist() == [3.0, 5.0, None, None]


def test_a_history_exists_once_something_is_flushed(base: str) -> None:
    assert not ParquetDatasetStore(base).exists()
    assert filled(base, range(1, 2)).exists()


def test_a_replay_leaves_out_what_is_there_already(base: str) -> None:
    filled(base, range(1, 3))
    again = filled(base, range(1, 4))
    assert again.flushed_position(Scalars) == 3
    assert again.load(Scalars).row_count == 3 * len(IDS)


def test_a_segment_is_built_from_it(base: str, registry: SegmentRegistry) -> None:
    result = hydrate(Scalars, filled(base, range(1, 4)), registry)
    assert (result.entity_count, result.position) == (len(IDS), 3)
    with registry.open_current(Scalars) as segment:
        assert set(read(segment, IDS)["d"].to_pylist()) == {3.0}
        registry.discard(registry.open_current(Scalars, read_only=False))


def test_no_text_has_the_keys(base: str, server: str) -> None:
    shown = base.partition("?")[0].replace(f"{KEY}:{QUOTED}@", "")
    assert secretless(repr(ParquetDatasetStore(base))) == f"<ParquetDatasetStore {shown}>"
    for wrong, text in (
        (url(server, "no-bucket-of-this-name"), "NO_SUCH_BUCKET"),
        (base.replace("s3:", "s9:"), "neither a path nor a URL that pyarrow.fs knows"),
        (f"{base}&nonsense=1", "nonsense"),
    ):
        with pytest.raises(HistoryUnavailableError, match=text) as caught:
            filled(wrong, range(1, 2))
        secretless("".join(traceback.format_exception(caught.value)))


def test_what_pyarrow_cannot_reach_is_named() -> None:
    """A filesystem that needs a library or a server which is not there."""
    with pytest.raises(HistoryUnavailableError, match=r"base 'hdfs://127\.0\.0\.1:1/x' cannot be reached") as caught:
        ParquetDatasetStore(f"hdfs://{KEY}:{QUOTED}@127.0.0.1:1/x")
    secretless("".join(traceback.format_exception(caught.value)))


@given(
    urls_with_passwords(
        "s3://KEY:PASSWORD@bucket/x?region=eu",
        "s3://KEY:PASSWORD@bucket/x?region=eu&nonsense=1",
        "s3://KEY:PASSWORD@bucket:port/x",
        "s3://KEY:12PASSWORD@bucket/x?region=eu",
        "s3://KEY:PASSWORD",
        "s9://KEY:PASSWORD@bucket/x",
        "file://u:PASSWORD@host/x",
    )
)
def test_nothing_of_an_unescaped_key_is_in_a_text(url: str) -> None:
    try:
        without_password(repr(ParquetDatasetStore(url)))
    except HistoryUnavailableError as error:
        without_password(error)


def test_keys_that_must_be_escaped_are_explained() -> None:
    with pytest.raises(HistoryUnavailableError, match=r"base 's3://…' is malformed: expected scheme://.*%2F for /"):
        ParquetDatasetStore(f"s3://{KEY}:{SECRET}@bucket/x")


def secretless(text: str) -> str:
    for secret in (KEY, SECRET, QUOTED):
        assert secret not in text
    return text
