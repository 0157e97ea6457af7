"""Tensors of answers are Feast's, and those of lists equal what NumPy and torch make of Feast's lists."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from feast_quorin.read.response import LazyResponse
from feast_quorin.read.tensors import TensorResponse, stacked
from quorin.errors import TensorError
from tests.equivalence.test_compiled import generic
from tests.feast.repos import END, make_store
from tests.feast.test_against_sqlite import typed

SCHEMA: dict[str, Any] = {
    "halves": Array(Float32),
    "wholes": Array(Float64),
    "small": Array(Int32),
    "large": Array(Int64),
    "flags": Array(Bool),
    "declared": Array(Float32),
    "ragged": Array(Int64),
    "words": Array(String),
    "times": Array(UnixTimestamp),
    "half": Float32,
    "whole": Float64,
    "count": Int64,
    "few": Int32,
    "is_so": Bool,
    "name": String,
    "time": UnixTimestamp,
}
KINDS = {
    "halves": np.float32,
    "wholes": np.float64,
    "small": np.int32,
    "large": np.int64,
    "flags": np.bool_,
    "declared": np.float32,
    "doubled": np.float64,
}
"""The features whose lists make tensors, and of what type; the last is computed on demand."""

OTHERS = [name for name in SCHEMA if name not in (*KINDS, "ragged")]
LENGTH, DECLARED = 5, 3
KEPT, WITHOUT_NULLS = 24, 12
KEYS = range(KEPT + 4)
"""The keys below ``WITHOUT_NULLS`` have no nulls, those from ``KEPT`` on no rows."""


def definitions(folder: Path) -> list[Any]:
    """A view with lists and single values of every type, one that is computed, and a service."""
    entity = Entity(name="thing", join_keys=["thing_id"], value_type=ValueType.INT64)
    more = {"declared": {"vector_length": DECLARED, "vector_index": True}}
    view = FeatureView(
        name="things",
        entities=[entity],
        schema=[Field(name=name, dtype=kind, **more.get(name, {})) for name, kind in SCHEMA.items()],
        source=FileSource(path=str(folder / "none.parquet"), timestamp_field="at"),
    )

    @on_demand_feature_view(sources=[view], schema=[Field(name="doubled", dtype=Array(Float64))], mode="python")
    def computed(inputs: dict[str, Any]) -> dict[str, Any]:
        return {"doubled": [None if values is None else [2.0 * v for v in values] for values in inputs["wholes"]]}

    aliased = FeatureService(name="aliased", features=[view[["halves", "small", "half"]].with_name("other")])
    return [entity, view, computed, aliased]


def fill(store: FeatureStore) -> None:
    """Write the rows of all keys that have one."""
    write(store, {name: [value_of(name, key) for key in range(KEPT)] for name in SCHEMA})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A filled store; where the log is makes no difference here."""
    folder = tmp_path_factory.mktemp("tensors")
    segments = folder / "segments"
    segments.mkdir()
    online = {"type": "feast_quorin.QuorinOnlineStore", "shm_dir": str(segments), "capacity": 64}
    store = make_store(folder / "repo", online, data=folder)
    store.apply(definitions(folder))
    fill(store)
    yield store
    store.teardown()
    assert list(segments.glob("quorin_*")) == []


def value_of(name: str, key: int) -> Any:
    place = [*SCHEMA].index(name)
    if key >= WITHOUT_NULLS and (key + place) % 3 == 0:
        return None
    kind = SCHEMA[name]
    if not isinstance(kind, Array):
        return single(kind, key * 31 + place)
    length = {"declared": DECLARED, "ragged": key % 4}.get(name, LENGTH)
    return [single(kind.base_type, key * 97 + place + number * 7) for number in range(length)]


def single(kind: Any, number: int) -> Any:
    if kind in (Float32, Float64):
        return number / 3 - 50
    if kind == Bool:
        return number % 2 == 0
    if kind == String:
        return f"n{number}"
    return number * 10**15 if kind == Int64 else number


def write(store: FeatureStore, values: dict[str, list[Any]]) -> None:
    """Rows of the first keys."""
    view = store.get_feature_view("things")
    types = {field.name: field.dtype.to_value_type() for field in view.features}
    columns = {name: python_values_to_proto_values(column, types[name]) for name, column in values.items()}
    rows = [
        (
            EntityKey(join_keys=["thing_id"], entity_values=[Value(int64_val=key)]),
            {name: column[key] for name, column in columns.items()},
            END,
            None,
        )
        for key in range(len(next(iter(columns.values()))))
    ]
    store._get_provider().online_write_batch(store.config, view, rows, None)


def request_of(names: list[str], keys: list[int], full_names: bool = False) -> dict[str, Any]:
    features = [f"computed:{name}" if name == "doubled" else f"things:{name}" for name in names]
    return {"features": features, "entity_rows": {"thing_id": keys}, "full_feature_names": full_names}


def generated(source: random.Random) -> dict[str, Any]:
    """A request of any features but ragged ones, and any keys."""
    names = [*KINDS, *OTHERS]
    keys = source.choices(source.choice([range(WITHOUT_NULLS), KEYS]), k=source.choice([1, 1, 2, 30]))
    return request_of(source.sample(names, source.randint(1, len(names))), keys, source.random() < 0.5)


def answers(store: FeatureStore, request: dict[str, Any]) -> list[TensorResponse]:
    """One answer in every way to have it: compiled, with its protobuf touched, and by Feast's own path."""
    fast, touched, slow = (store.get_online_features(**request), store.get_online_features(**request), None)
    assert isinstance(fast, LazyResponse)
    assert isinstance(touched, LazyResponse)
    assert len(touched.proto.results) > 1
    slow = generic(store, **request)
    assert isinstance(slow, TensorResponse)
    assert not isinstance(slow, LazyResponse)
    return [fast, touched, slow]


def bare(name: str) -> str:
    """A feature's name without its view's."""
    return name.rpartition("__")[2]


def feasts_lists(answer: OnlineResponse) -> dict[str, list[Any]]:
    """The columns of lists that make tensors and are not all null, as Feast has them."""
    columns = OnlineResponse(answer.proto, dict(answer._feature_types)).to_dict()
    return {
        name: values
        for name, values in columns.items()
        if bare(name) in KINDS and any(value is not None for value in values)
    }


def test_stacks_are_feasts_lists(store: FeatureStore) -> None:
    source = random.Random(11)
    for _ in range(40):
        request = generated(source)
        lists = feasts_lists(generic(store, **request))
        for answer in answers(store, request):
            stacks = answer.stacks(True)
            assert lists.keys() <= stacks.keys()
            for name, values in lists.items():
                stack, kind = stacks[name], KINDS[bare(name)]
                missing = [value is None for value in values]
                length = DECLARED if bare(name) == "declared" else LENGTH
                assert (stack.values.dtype, stack.values.shape) == (kind, (len(values), length))
                np.testing.assert_array_equal(
                    stack.values, np.array([[0] * length if value is None else value for value in values], kind)
                )
                assert (stack.missing is None) == (not any(missing))
                assert stack.missing is None or stack.missing.tolist() == missing


def test_notebooks_show_a_table(store: FeatureStore) -> None:
    for answer in answers(store, generated(random.Random(11))):
        assert answer._repr_html_().startswith("<table")
        assert all(f"<th>{name}</th>" in answer._repr_html_() for name in list(answer.to_df())[:5])


def test_a_list_that_was_hidden_leaves_no_element() -> None:
    """Rows past their time to live are null, though what they point to is still there."""
    elements, offsets = pa.array([1, 2, 3, 4, 5, 6], pa.int32()), pa.array([0, 2, 4, 6], pa.int32())
    lists = pa.ListArray.from_arrays(offsets, elements, mask=pa.array([False, True, False]))
    stack = stacked("hidden", lists, 0)
    assert stack.values.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert stack.missing is not None
    assert stack.missing.tolist() == [False, True, False]


def test_stacks_of_a_service_with_aliases(store: FeatureStore) -> None:
    service = store.get_feature_service("aliased")
    request = {"features": service, "entity_rows": {"thing_id": [3, 99]}, "full_feature_names": True}
    for answer in answers(store, request):
        stacks = answer.stacks(["other__small"])
        assert stacks["other__small"].values.tolist() == [value_of("small", 3), [0] * LENGTH]
        assert stacks.keys() == {"other__small"}
        assert answer.stacks(True).keys() == {"other__small", "other__halves"}


def test_the_length_where_no_row_has_a_value(store: FeatureStore) -> None:
    """The declared one is known to a compiled request."""
    request = request_of(["halves", "declared", "small"], [KEPT, KEPT + 1])
    lengths = [{name: stack.values.shape for name, stack in a.stacks(True).items()} for a in answers(store, request)]
    assert lengths[0] == lengths[1] == {"halves": (2, 0), "declared": (2, DECLARED), "small": (2, 0)}
    assert lengths[2] == {"halves": (2, 0), "declared": (2, 0), "small": (2, 0)}


def test_what_is_no_list_of_numbers_is_never_stacked(store: FeatureStore) -> None:
    for keys in ([1, 2], [KEPT]):
        for answer in answers(store, request_of(OTHERS, keys)):
            assert answer.stacks(True) == {}
            for name in OTHERS:
                with pytest.raises(TensorError, match=rf"lists of numbers or booleans, got \['{name}'\]"):
                    answer.to_tensor(stack_lists=[name])


def test_lists_of_several_lengths_are_refused(store: FeatureStore) -> None:
    for answer in answers(store, request_of(["ragged", "halves"], [0, 1, 2, KEPT])):
        for choice in (True, ["ragged"], {"halves", "ragged"}):
            with pytest.raises(TensorError, match=r"'ragged': expected lists of one length, got lengths \[0, 1, 2\]"):
                answer.to_tensor(stack_lists=choice)
        assert answer.stacks(["halves"]).keys() == {"halves"}
        assert answer.stacks([]) == answer.stacks(False) == {}
    for answer in answers(store, request_of(["ragged"], [1, 5, KEPT])):
        assert answer.stacks(True)["ragged"].values.tolist() == [value_of("ragged", 1), value_of("ragged", 5), [0]]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("halves", "expected True, False or a list of feature names, got 'halves'"),
        (1, "expected True, False or a list of feature names, got 1"),
        (None, "expected True, False or a list of feature names, got None"),
        (["halves", "nowhere"], r"the response has no features \['nowhere'\], it has \['thing_id', 'halves'\]"),
    ],
)
def test_choices_that_mean_nothing_are_refused(store: FeatureStore, choice: Any, message: str) -> None:
    for answer in answers(store, request_of(["halves"], [1])):
        with pytest.raises(TensorError, match=message):
            answer.to_tensor(stack_lists=choice)


def test_requests_that_feast_answers_have_the_keyword(store: FeatureStore) -> None:
    answer = store.get_online_features(["things:halves"], {"thing": [1, 2]})  # the entity's name for its join key
    assert not isinstance(answer, LazyResponse)
    assert answer.stacks(True)["halves"].values.shape == (2, LENGTH)


def test_stacks_of_a_copied_answer(store: FeatureStore) -> None:
    answer = store.get_online_features(**request_of(["halves", "flags"], [1, 20, KEPT]))
    copied = copy.deepcopy(answer)
    for name, stack in answer.stacks(True).items():
        np.testing.assert_array_equal(copied.stacks(True)[name].values, stack.values)


def test_a_stack_is_the_callers_own(store: FeatureStore) -> None:
    """Neither what is done to it, nor what is written later, shows anywhere else."""
    answer = store.get_online_features(**request_of(["halves", "flags"], [1, 2]))
    before = answer.to_dict()
    first, second = answer.stacks(True), answer.stacks(True)
    first["halves"].values[:] = 7
    first["flags"].values[:] = False
    np.testing.assert_array_equal(second["halves"].values, np.array(before["halves"], np.float32))
    assert second["flags"].values.tolist() == before["flags"]
    assert answer.to_dict() == before
    write(store, {name: [value_of(name, key) for key in range(KEPT)] for name in SCHEMA})
    np.testing.assert_array_equal(second["halves"].values, np.array(before["halves"], np.float32))


@pytest.mark.torch
@pytest.mark.parametrize("default", [float("nan"), -1.5, 0, -3, True, None, "x", np.float32(2.5)], ids=repr)
def test_tensors_are_feasts(store: FeatureStore, default: Any) -> None:
    source = random.Random(12)
    for _ in range(25):
        request = generated(source)
        expected = outcome(lambda answer: OnlineResponse.to_tensor(answer, "torch", default), generic(store, **request))
        for answer in answers(store, request):
            same_tensors(outcome(lambda answer: answer.to_tensor(default_value=default), answer), expected)
            same_tensors(outcome(lambda answer: answer.to_tensor("torch", default), answer), expected)


def outcome(make: Any, answer: Any) -> Any:
    """A dictionary of tensors, or the error without the name of the feature that comes first."""
    try:
        return make(answer)
    except ValueError as error:
        return type(error), str(error).partition(":")[2]


def same_tensors(ours: Any, theirs: Any) -> None:
    import torch

    if isinstance(theirs, tuple):
        assert isinstance(ours, tuple)
        return
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, equal_nan=True)
        else:
            assert typed(tensor) == typed(theirs[name])


@pytest.mark.torch
@pytest.mark.parametrize("default", [float("nan"), -1.5, 0, -3, True, np.float32(2.5), np.int64(7)], ids=repr)
def test_tensors_of_lists_are_what_torch_makes_of_feasts(store: FeatureStore, default: Any) -> None:
    import torch

    source = random.Random(13)
    for _ in range(25):
        request = generated(source)
        slow = generic(store, **request)
        lists, plain = feasts_lists(slow), slow.to_tensor(default_value=default)
        for answer in answers(store, request):
            tensors = answer.to_tensor(default_value=default, stack_lists=True)
            same_tensors({name: tensors[name] for name in plain if bare(name) not in KINDS}, others(plain))
            for name, values in lists.items():
                length = next(len(value) for value in values if value is not None)
                filled = [[default] * length if value is None else value for value in values]
                own = torch.from_numpy(np.zeros(1, KINDS[bare(name)])).dtype
                expected = torch.tensor(filled)
                if expected.dtype.is_floating_point == own.is_floating_point and own is not torch.bool:
                    expected = torch.tensor(filled, dtype=own)
                torch.testing.assert_close(tensors[name], expected, rtol=0, atol=0, equal_nan=True)


def others(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if bare(name) not in KINDS}


@pytest.mark.torch
def test_defaults_that_do_not_fit_are_refused(store: FeatureStore) -> None:
    for default in (None, "x", [1.0, 2.0], 2**40):
        for answer in answers(store, request_of(["small"], [1, KEPT])):
            with pytest.raises(TensorError, match=r"'small': expected a default_value that fits torch.int32, got "):
                answer.to_tensor(default_value=default, stack_lists=True)
            assert answer.to_tensor(default_value=5, stack_lists=True)["small"][1].tolist() == [5] * LENGTH


@pytest.mark.torch
def test_other_kinds_of_tensors_are_refused_as_by_feast(store: FeatureStore) -> None:
    for answer in answers(store, request_of(["small"], [1])):
        with pytest.raises(ValueError, match="Only 'torch' is supported"):
            answer.to_tensor("numpy", stack_lists=True)


@pytest.mark.torch
def test_floats_follow_torchs_default_as_in_feast(store: FeatureStore) -> None:
    import torch

    request = request_of(["half", "whole", "count", "few", "is_so"], [1, 2, *KEYS])
    torch.set_default_dtype(torch.float64)
    try:
        for answer in answers(store, request):
            same_tensors(answer.to_tensor(), OnlineResponse.to_tensor(generic(store, **request)))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.torch
def test_a_tensor_is_the_callers_own(store: FeatureStore) -> None:
    answer = store.get_online_features(**request_of(["halves", "half", "count"], [1, 2]))
    before = answer.to_dict()
    for tensor in answer.to_tensor(stack_lists=True).values():
        tensor.zero_()
    assert answer.to_dict() == before
    again = answer.to_tensor(stack_lists=True)
    assert again["thing_id"].tolist() == [1, 2]
    np.testing.assert_array_equal(again["halves"].numpy(), np.array(before["halves"], np.float32))
