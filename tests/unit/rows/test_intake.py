"""One door for tables and one for ids: every form goes through every way to write and to read, with one result."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorin import assembly, layout, serving, vector
from quorin.engine.rows.batch import to_batch
from quorin.engine.rows.intake import arrow_column, id_array
from quorin.errors import EntityIdError, InvalidRowError
from quorin.schema import FeatureField, dtype, make_schema
from quorin.shm import Segment, SegmentRegistry
from quorin.wal import WALProducer
from quorin.wal_consumer import WALConsumer

TRIP = make_schema(
    "Trip",
    [
        FeatureField("n", dtype.int64),
        FeatureField("x", dtype.float32),
        FeatureField("s", dtype.string),
        FeatureField("flag", dtype.bool),
        FeatureField("place", dtype.float32, shape=(2,)),
        FeatureField("tags", dtype.string, shape=(None,)),
    ],
)
IDS = ["a", "Zoë", "b" * 40]
COLUMNS: dict[str, list[Any]] = {
    "entity_id": IDS,
    "event_time_ns": [5, 6, 7],
    "n": [1, None, -(2**60)],
    "x": [0.5, 1.5, None],
    "s": ["", "é", None],
    "flag": [True, None, False],
    "place": [[1.0, 2.0], [3.0, 4.0], None],
    "tags": [["t", ""], [], None],
}
TABLE = pa.table(COLUMNS)
CATEGORIES = pl.Enum(["unused", *IDS])


def exported(method: str, table: Any) -> Any:
    """An object of an unknown library, which only exports Arrow."""
    export = {method: lambda _, requested_schema=None: getattr(table, method)(requested_schema)}
    return type("Exported", (), export)()


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in COLUMNS.items()}).assign(**columns)


def of_duckdb(columns: str = "*") -> Any:
    connection = duckdb.connect()
    connection.register("trips", TABLE)
    return connection.sql(f"select {columns} from trips")


def masked(values: list[Any], code: Any) -> Any:
    gaps = [value is None for value in values]
    kept = next(value for value in values if value is not None)
    return np.ma.masked_array([kept if value is None else value for value in values], gaps, code)


TABLES: dict[str, Callable[[], Any]] = {
    "table": lambda: TABLE,
    "chunks": lambda: pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)]),
    "batch": lambda: TABLE.to_batches()[0],
    "batches": lambda: [batch for part in (TABLE.slice(0, 2), TABLE.slice(2)) for batch in part.to_batches()],
    "reader": lambda: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches()),
    "structs": lambda: TABLE.to_struct_array().combine_chunks(),
    "any stream": lambda: exported("__arrow_c_stream__", TABLE),
    "any array": lambda: exported("__arrow_c_array__", TABLE.to_batches()[0]),
    "views": lambda: TABLE.set_column(0, "entity_id", TABLE["entity_id"].cast(pa.string_view())),
    "dictionary": lambda: TABLE.set_column(0, "entity_id", TABLE["entity_id"].dictionary_encode()),
    "dictionaries": lambda: pa.concat_tables(
        TABLE[row : row + 1].set_column(0, "entity_id", TABLE["entity_id"][row : row + 1].dictionary_encode())
        for row in range(3)
    ),
    "duckdb": of_duckdb,
    "duckdb enum": lambda: of_duckdb(f"* replace (entity_id::enum({', '.join(map(repr, IDS))}) as entity_id)"),
    "pandas": frame,
    "pandas types": lambda: frame(n=pd.array(COLUMNS["n"], "Int64"), flag=pd.array(COLUMNS["flag"], "boolean")),
    "pandas category": lambda: frame(entity_id=pd.Categorical(IDS), s=pd.Categorical(COLUMNS["s"])),
    "pandas string": lambda: frame(entity_id=pd.array(IDS, "string"), s=pd.array(COLUMNS["s"], "string")),
    "pandas of arrow": lambda: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.DataFrame(COLUMNS),
    "polars categorical": lambda: pl.DataFrame(COLUMNS).with_columns(pl.col("entity_id", "s").cast(pl.Categorical)),
    "polars enum": lambda: pl.DataFrame(COLUMNS).with_columns(pl.col("entity_id").cast(CATEGORIES)),
    "polars rechunked": lambda: pl.concat(
        [
            pl.DataFrame(COLUMNS).with_columns(pl.col("entity_id").cast(pl.Categorical))[row : row + 1]
            for row in range(3)
        ],
        rechunk=False,
    ),
    "lists": lambda: COLUMNS,
    "rows": TABLE.to_pylist,
    "numpy": lambda: {
        **COLUMNS,
        "entity_id": np.array(IDS),
        "event_time_ns": np.array([5, 6, 7], "datetime64[ns]"),
        "n": masked(COLUMNS["n"], np.int64),
        "x": masked(COLUMNS["x"], np.float64),
        "flag": np.array(COLUMNS["flag"], object),
        "place": np.ma.masked_array([[1, 2], [3, 4], [0, 0]], [[False, False], [False, False], [True, True]]),
    },
    "mixed": lambda: {
        **COLUMNS,
        "entity_id": pd.Categorical(IDS),
        "n": pl.Series(COLUMNS["n"]),
        "x": pa.array(COLUMNS["x"]),
        "s": pa.chunked_array([["", "é"], [None]]),
        "flag": pd.Series(COLUMNS["flag"], dtype="boolean"),
        "tags": pa.array(COLUMNS["tags"]),
    },
}

ID_FORMS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "generator": iter,
    "dict keys": lambda ids: dict.fromkeys(ids).keys() if len(set(ids)) == len(ids) else ids,
    "list of bytes": lambda ids: [None if value is None else value.encode() for value in ids],
    "numpy object": lambda ids: np.array(ids, object),
    "numpy masked": lambda ids: masked(ids, None) if ids else np.ma.masked_array([], dtype="U1"),
    "arrow string": lambda ids: pa.array(ids, pa.string()),
    "arrow large_string": lambda ids: pa.array(ids, pa.large_string()),
    "arrow string_view": lambda ids: pa.array(ids, pa.string_view()),
    "arrow binary": lambda ids: pa.array(ids, pa.string()).cast(pa.binary()),
    "arrow binary_view": lambda ids: pa.array(ids, pa.string()).cast(pa.binary_view()),
    "arrow dictionary": lambda ids: pa.array(ids, pa.string()).dictionary_encode(),
    "arrow dictionary of views": lambda ids: pa.DictionaryArray.from_arrays(
        pa.array([None if value is None else ids.index(value) for value in ids], pa.int8()),
        pa.array(ids, pa.string_view()),
    ),
    "arrow dictionaries": lambda ids: pa.chunked_array(
        [pa.array([value], pa.string()).dictionary_encode() for value in ids],
        pa.dictionary(pa.int32(), pa.string()),
    ),
    "arrow chunks": lambda ids: pa.chunked_array([[value] for value in ids], pa.string()),
    "arrow null or string": lambda ids: pa.array(ids),
    "any stream": lambda ids: exported("__arrow_c_stream__", pa.chunked_array([ids], pa.string())),
    "any array": lambda ids: exported("__arrow_c_array__", pa.array(ids, pa.string())),
    "polars": lambda ids: pl.Series(ids, dtype=pl.String),
    "polars untyped": pl.Series,
    "polars categorical": lambda ids: pl.Series(ids, dtype=pl.Categorical),
    "polars enum": lambda ids: pl.Series(ids, dtype=CATEGORIES),
    "polars object": lambda ids: pl.Series(ids, dtype=pl.Object),
    "pandas": lambda ids: pd.Series(ids, dtype=object),
    "pandas untyped": pd.Series,
    "pandas index": lambda ids: pd.Index(ids, dtype=object),
    "pandas category": lambda ids: pd.Series(ids, dtype="category"),
    "pandas categorical": pd.Categorical,
    "pandas string": lambda ids: pd.Series(ids, dtype="string"),
    "pandas arrow string": lambda ids: pd.Series(ids, dtype="string[pyarrow]"),
    "pandas NaN": lambda ids: pd.Series([np.nan if value is None else value for value in ids], dtype=object),
    "pandas NA": lambda ids: pd.Series([pd.NA if value is None else value for value in ids], dtype=object),
}
NUMPY_TEXTS = {
    "numpy str": lambda ids: np.array(ids, "U40"),
    "numpy bytes": lambda ids: np.array([value.encode() for value in ids], "S40"),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[Path, SegmentRegistry, Segment]]:
    registry = SegmentRegistry(tmp_path / "store", shm_dir=tmp_path)
    segment = registry.create(TRIP, capacity=100, max_id_bytes=64)
    yield tmp_path / "store", registry, segment
    segment.close()
    registry.backend.close()


def read_back(segment: Segment) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = assembly.read(segment, IDS).drop_columns(["found"]).to_pylist()
    return rows


def read_table(segment: Segment, ids: Any) -> tuple[list[Any], ...]:
    """What every way to read says of some ids, in a form that can be compared."""
    batch, found = assembly.assemble_batch(segment, ids(), missing=-1)
    one_by_one, found_plainly = serving.assemble_batch(segment, ids(), missing=-1)
    of_reader, _ = assembly.reader(segment).batch(ids(), missing=-1)
    np.testing.assert_array_equal(batch, one_by_one)
    np.testing.assert_array_equal(batch, of_reader)
    assert found.tolist() == found_plainly.tolist()
    typed = assembly.read(segment, ids())
    assert typed.drop_columns(["entity_id"]).equals(serving.read(segment, ids()).drop_columns(["entity_id"]))
    near = vector.search(segment, "place", [0, 0], k=9, among=ids())
    assert near.entity_ids == vector.search_plainly(segment, "place", [0, 0], k=9, among=ids()).entity_ids
    return found.tolist(), typed["event_time_ns"].to_pylist(), near.entity_ids


@pytest.mark.parametrize("form", TABLES)
def test_every_table_is_inserted(store: Any, form: str) -> None:
    _, _, segment = store
    assert layout.insert_many(segment, TABLES[form]()) == 3
    assert read_back(segment) == TABLE.to_pylist()


@pytest.mark.parametrize("form", TABLES)
def test_every_table_is_written_to_the_log(store: Any, form: str) -> None:
    connection, registry, segment = store
    with WALProducer(connection) as producer, WALConsumer(connection, [TRIP], registry=registry) as consumer:
        assert producer.write_many(TRIP, TABLES[form]()) > 0
        consumer.drain()
    assert read_back(segment) == TABLE.to_pylist()


@pytest.mark.parametrize("form", [*ID_FORMS, *NUMPY_TEXTS])
def test_every_form_of_ids_is_written_and_read(store: Any, form: str) -> None:
    _, _, segment = store
    make = (ID_FORMS | NUMPY_TEXTS)[form]
    assert layout.insert_many(segment, {**COLUMNS, "entity_id": make(IDS)}) == 3
    assert read_back(segment) == TABLE.to_pylist()
    assert read_table(segment, lambda: make(IDS)) == ([True] * 3, [5, 6, 7], ["a", "Zoë"])
    assert read_table(segment, lambda: make([IDS[2]])) == ([True], [7], [])
    assert read_table(segment, lambda: make([])) == ([], [], [])
    assert to_batch(TRIP, {name: make([]) if name == "entity_id" else [] for name in COLUMNS}).num_rows == 0


@pytest.mark.parametrize("form", ID_FORMS)
def test_a_null_among_ids_is_refused_with_its_row(store: Any, form: str) -> None:
    _, _, segment = store
    ids = ["a", None, "Zoë"]
    for attempt in (
        lambda given: assembly.assemble_batch(segment, given),
        lambda given: assembly.read(segment, given),
        lambda given: serving.assemble_batch(segment, given),
        lambda given: vector.search(segment, "place", [0, 0], k=1, among=given),
        lambda given: layout.insert_many(segment, {**COLUMNS, "entity_id": given}),
    ):
        with pytest.raises(EntityIdError, match="row 1"):
            attempt(ID_FORMS[form](ids))


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (np.array([["a", "b"]]), r"one dimension, got an array of shape \(1, 2\)"),
        (np.array("a"), r"one dimension, got an array of shape \(\)"),
        (np.empty((0, 2), "U1"), r"one dimension, got an array of shape \(0, 2\)"),
        (pd.DataFrame({"a": ["x"]}), r"one dimension, got an array of shape \(1, 1\)"),
        (pl.DataFrame({"a": ["x"]}), r"one dimension, got an array of shape \(1, 1\)"),
        ([["a"], ["b"]], r"row 0, .* got \['a'\] of type list"),
        (["a", b"\xff"], "row 1, .* is not UTF-8"),
        (np.array([1, 2]), "must be text, got row 0: 1 in an Arrow array of int64"),
        (pa.array([None, 2.5]), "must be text, got row 1: 2.5 in an Arrow array of double"),
        (pl.Series([2**100], dtype=pl.Int128), "'entity_id'.*Int128"),
        (pl.Series([1, 2], dtype=pl.Object), "got row 0: 1 in an Arrow array of int64"),
        (5, "got 5"),
    ],
)
def test_ids_that_are_none_are_refused(store: Any, ids: Any, text: str) -> None:
    _, _, segment = store
    for attempt in (
        lambda: assembly.assemble_batch(segment, ids),
        lambda: serving.read(segment, ids),
        lambda: to_batch(TRIP, {**COLUMNS, "entity_id": ids}),
    ):
        with pytest.raises(EntityIdError, match=text):
            attempt()


def test_bytes_that_are_no_utf8_are_refused_as_ids_of_a_table() -> None:
    for ids in (np.array([b"a", b"\xff", b"b"]), pa.array([b"a", b"\xff", b"b"])):
        with pytest.raises(EntityIdError, match=r"row 1, .* is not UTF-8"):
            to_batch(TRIP, {**COLUMNS, "entity_id": ids})


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pl.Series([1, 2, 3], dtype=pl.Int128), "column 'n'.*Int128.*cast it"),
        (pa.array([Decimal(1)] * 3), r"row 0, column 'n'.*Decimal\('1'\).*decimal128\(1, 0\)"),
        (pa.array([1.5, 2, 3]), "row 0, column 'n'.*1.5.*double"),
        ([1, True, 2], "row 1, column 'n'.*True"),
        (pd.Series([1, True, 2], dtype=object), "row 1, column 'n'.*True"),
        (np.array([1j] * 3), "row 0, column 'n'.*1j"),
        (np.ma.masked_array([[1], [2], [3]]), r"row 0, column 'n'.*\[1\]"),
        ([1, 2, 2**64], "row 2, column 'n'"),
    ],
)
def test_columns_that_do_not_fit_are_named(column: Any, text: str) -> None:
    tables: list[Any] = [{**COLUMNS, "n": column}]
    if isinstance(column, pl.Series):
        tables.append(pl.DataFrame(COLUMNS).with_columns(n=column))
    for table in tables:
        with pytest.raises(InvalidRowError, match=text):
            to_batch(TRIP, table)
    with pytest.raises(InvalidRowError, match=r"'n'.*decimal128"):
        to_batch(TRIP, of_duckdb("* replace (n::hugeint as n)"))


def test_python_values_are_what_they_are_one_by_one() -> None:
    """Arrow alone would take a bool beside floats for a number, and a str beside bytes for bytes."""
    for code, values in (
        (dtype.float64, [1.5, True]),
        (dtype.bytes, [b"a", "b"]),
        (dtype.bytes, ["a", bytearray(b"b")]),
    ):
        schema = make_schema("One", [FeatureField("v", code)])
        for column in (values, np.array(values, object), pd.Series(values, dtype=object)):
            with pytest.raises(InvalidRowError, match="column 'v'"):
                to_batch(schema, {"entity_id": ["a", "b"], "v": column})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("az09~\x00é"), max_size=5), min_size=90, max_size=110),
    st.sampled_from(["=U5", ">U5", "S10"]),
    st.sampled_from([1, 2, -1]),
    st.booleans(),
)
def test_numpy_texts_are_the_texts_that_numpy_shows(texts: list[str], kind: str, step: int, is_plain: bool) -> None:
    texts = [text.replace("é", "").replace("\x00", "") for text in texts] if is_plain else texts
    array = np.array([text.encode() for text in texts] if kind[0] == "S" else texts, kind)[::step]
    column = arrow_column(array, "s")
    column.validate(full=True)
    assert column.to_pylist() == array.tolist()
    assert column.type == (pa.binary() if kind[0] == "S" else pa.string())


@pytest.mark.parametrize("kind", ["U5", "S5"])
@pytest.mark.parametrize("rows", [2, 120])
def test_masked_empty_and_no_texts_of_numpy(kind: str, rows: int) -> None:
    texts = np.ma.masked_array(np.array(["a", ""] * (rows // 2), kind), [True, False] * (rows // 2))
    assert arrow_column(texts, "s").to_pylist() == [None, np.array([""], kind).tolist()[0]] * (rows // 2)
    assert arrow_column(np.array([""] * rows, kind), "s").to_pylist() == np.array([""] * rows, kind).tolist()
    assert arrow_column(np.array([], kind), "s").type in {pa.string(), pa.binary()}


def test_a_surrogate_among_ids_of_numpy_is_refused_with_its_row() -> None:
    with pytest.raises(EntityIdError, match="row 1"):
        id_array(np.array(["a", "b\udc80"]))


def test_big_endian_arrays_and_arrays_of_lists_keep_their_values() -> None:
    given = {**COLUMNS, "n": np.array([1, 2, 3], ">i8"), "place": np.arange(6.0).reshape(3, 2)}
    batch = to_batch(TRIP, given)
    assert batch["n"].to_pylist() == [1, 2, 3]
    assert batch["place"].to_pylist() == [[0, 1], [2, 3], [4, 5]]
    half_masked = np.ma.masked_array([[1, 2]] * 3, [[False, False], [False, True], [False, False]])
    with pytest.raises(InvalidRowError, match="row 1, column 'place'"):
        to_batch(TRIP, {**COLUMNS, "place": half_masked})


@pytest.mark.parametrize(
    "days",
    [
        pa.array([0, 1, 19_000], pa.date32()),
        pa.array([0, 1, 19_000], pa.date32()).cast(pa.date64()),
        [dt.date(1970, 1, 1), dt.date(1970, 1, 2), dt.date(2022, 1, 8)],
        pl.Series([0, 1, 19_000]).cast(pl.Date),
        np.array([0, 1, 19_000], "datetime64[D]"),
    ],
)
def test_dates_are_event_times_at_midnight_in_utc(days: Any) -> None:
    times = to_batch(TRIP, {**COLUMNS, "event_time_ns": days})["event_time_ns"].to_pylist()
    assert times == [0, 86_400 * 10**9, 19_000 * 86_400 * 10**9]


def test_dates_that_are_missing_or_out_of_range_are_refused() -> None:
    for days in (pa.array([0, None, 1], pa.date32()), pa.array([0, 1, 2**30], pa.date32())):
        with pytest.raises(InvalidRowError, match="event_time_ns"):
            to_batch(TRIP, {**COLUMNS, "event_time_ns": days})


def test_no_rows_in_any_form() -> None:
    tables: list[Any] = [[], (), TABLE[:0], TABLE[:0].to_pandas(), pl.DataFrame(COLUMNS)[:0]]
    for table in tables:
        assert to_batch(TRIP, table).num_rows == 0
    assert to_batch(TRIP, [], event_time_ns=5).num_rows == 0
