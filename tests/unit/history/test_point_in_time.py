"""The join of queries with the history: equal to that of Polars, and possible in a forked process."""

from __future__ import annotations

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import polars as pl
from hypothesis import given

from quorin.engine.history.point_in_time import Keys, _newest_at

SMALLEST, LARGEST = -(2**63), 2**63 - 1
TIMES = st.one_of(st.integers(-3, 3), st.sampled_from([SMALLEST, SMALLEST + 1, LARGEST - 1, LARGEST]))
ENTITIES = st.sampled_from([0, 1, 2, 0xFFFF, 0x10000, 0x2FFFF])
ROWS = st.lists(st.tuples(ENTITIES, TIMES, st.one_of(st.just(SMALLEST), TIMES)), max_size=60)


def keys_of(rows: list[tuple[int, int, int]]) -> Keys:
    entity, time, tie = np.array(rows, np.int64).reshape(-1, 3).T.copy()
    codes = entity.astype(np.int32)
    return Keys(codes, time, tie, np.arange(len(rows)), np.ones(len(rows), np.uint8), np.full_like(codes, -1), [])


@given(ROWS, st.lists(st.tuples(ENTITIES, TIMES), max_size=60))
def test_the_newest_rows_are_those_of_the_join_of_polars(
    rows: list[tuple[int, int, int]], queries: list[tuple[int, int]]
) -> None:
    entity, times = np.array(queries, np.int64).reshape(-1, 2).T.copy()
    newest = _newest_at(keys_of(rows), entity.astype(np.int32), times)

    right = pl.DataFrame(rows, {"entity": pl.Int64, "time": pl.Int64, "tie": pl.Int64}, orient="row")
    right = right.with_row_index("row").sort("time", "tie", maintain_order=True)
    left = pl.DataFrame({"entity": entity, "time": times}).with_row_index("query").sort("time")
    joined = left.join_asof(right, on="time", by="entity", check_sortedness=False).sort("query")
    assert newest.tolist() == joined["row"].cast(pl.Int64).fill_null(-1).to_list()


FORK = """
import os, signal, sys
import pyarrow as pa
from quorin.engine.rows.batch import rows_batch
from quorin.offline import ParquetDatasetStore
from quorin.schema import FeatureField, dtype, make_schema

Pair = make_schema("Pair", [FeatureField("a", dtype.int32), FeatureField("b", dtype.string)])
store = ParquetDatasetStore(sys.argv[1])
ids = [f"e{number}" for number in range(200_000)]
batch = rows_batch(Pair, [(id, 10, 1, id) for id in ids])
for position in (1, 2):
    store.append(Pair, batch, pa.repeat(pa.scalar(position, pa.int64()), len(batch)))
    store.flush()
queries = pa.table({"entity_id": ids, "as_of_time_ns": [11] * len(ids)})

def read():
    as_of = store.read_point_in_time(Pair, queries)
    assert as_of["b"].to_pylist() == ids
    assert store.latest_features(Pair).num_rows == len(ids)
    assert len(store.distinct_entity_ids(Pair)) == len(ids)
    assert sum(len(rows) for _, rows, _ in store.newest_first(Pair)) == 2 * len(ids)
    return as_of

expected = read()
child = os.fork()
if not child:
    signal.alarm(240)
    code = 1
    try:
        code = 0 if read().equals(expected) and store.compact(Pair) == 1 and read().equals(expected) else 2
    finally:
        os._exit(code)
assert os.waitpid(child, 0)[1] == 0
assert read().equals(expected)
"""


def test_a_forked_child_reads_the_history_that_its_parent_read(tmp_path) -> None:
    command = [sys.executable, "-W", "error", "-c", FORK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
