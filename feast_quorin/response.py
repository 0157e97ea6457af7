"""The answer to a compiled request: what was read, turned into what is asked for when it is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse, _convert_uuids_for_arrow
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse

from feast_quorin import wire
from feast_quorin.tensors import TensorResponse, tensor_of
from quorin.assembly import OneRow

if TYPE_CHECKING:
    from feast_quorin.on_demand import Computed
    from feast_quorin.plan import Feature, Plan
    from feast_quorin.request import Column
    from quorin.assembly import Columns, Rows

_SECOND_NS = 1_000_000_000
_LEAST_BLOCK = 8
_MOST_BESIDE_BLOCK = 8


class LazyResponse(TensorResponse):
    """Feast's response without its protobuf, which is built when somebody asks for ``proto``.

    Dictionaries, frames, tables and tensors come from what was read, and are what Feast makes of its protobuf. It was
    all read, and computed, when the request was made; nothing that is written later shows.

    ``given`` are the values of the columns ``keys``, normalised. ``features`` are the plan's that are to be in it, by
    default those of the answer.
    """

    def __init__(
        self,
        plan: Plan,
        keys: Sequence[Column],
        given: list[list[Any]],
        reads: list[Any],
        features: tuple[Feature, ...] | None = None,
        computed: Sequence[Computed] = (),
    ) -> None:
        # Feast's own __init__ would want the protobuf.
        self._plan = plan
        self._keys = keys
        self._given = given
        self._reads = reads
        self._features = plan.features if features is None else features
        self._computed = computed
        self._proto: Any = None
        self._feature_types = plan.feature_types

    @classmethod
    def of(cls, *parts: Any, **more: Any) -> LazyResponse:
        """A response to what may lack some fields of the plan, which the protobuf knows how to say."""
        response = cls(*parts, **more)
        for view, read in zip(response._plan.views, response._reads, strict=True):
            if type(read) is not OneRow and len(read.fields) < len(view.codecs):
                response._proto = response._to_proto()
        return response

    @property
    def proto(self) -> Any:
        """The ``GetOnlineFeaturesResponse``. From here on it is what everything else comes from, as in Feast."""
        if self._proto is None:
            self._proto = self._to_proto()
        return self._proto

    @proto.setter
    def proto(self, proto: Any) -> None:
        self._proto = proto

    def seeing(self, computed: Sequence[Computed]) -> LazyResponse:
        """The same with these computed features."""
        return LazyResponse.of(self._plan, self._keys, self._given, self._reads, self._features, tuple(computed))

    def __reduce__(self) -> tuple[Any, ...]:
        return TensorResponse, (self.proto, dict(self._feature_types))

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Lists of Python values by name."""
        if self._proto is not None:
            return super().to_dict(include_event_timestamps)
        if include_event_timestamps:
            return dict(self._columns("values", with_times=True))
        result: dict[str, Any] = {
            key.name: key.python(values) for key, values in zip(self._keys, self._given, strict=True)
        }
        for name, view, place, decoder in self._features:
            read = self._reads[view]
            if type(read) is not OneRow:
                result[name] = decoder.values(read, place)
            else:
                result[name] = [decoder.value(read, place) if read.is_valid(place) else None]
        for column in self._computed:
            result[column.name] = column.values(self._feature_types.get(column.name))
        return result

    def to_df(self, include_event_timestamps: bool = False) -> pd.DataFrame:
        """A frame with the columns and dtypes that pandas infers from :meth:`to_dict`."""
        if self._proto is not None:
            return super().to_df(include_event_timestamps)
        return _frame(dict(self._columns("for_frame", include_event_timestamps)))

    def to_arrow(self, include_event_timestamps: bool = False) -> pa.Table:
        """A table with the columns and types that Arrow infers from :meth:`to_dict`."""
        if self._proto is not None:
            return super().to_arrow(include_event_timestamps)
        columns = dict(self._columns("for_table", include_event_timestamps))
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        return pa.Table.from_pydict(columns | _convert_uuids_for_arrow(lists))

    def to_tensor(
        self, kind: str = "torch", default_value: Any = float("nan"), *, stack_lists: bool | Collection[str] = False
    ) -> dict[str, Any]:
        """Tensors of numbers and booleans, and of lists where ``stack_lists`` says so; lists of everything else."""
        if self._proto is not None or kind != "torch":
            return super().to_tensor(kind, default_value, stack_lists=stack_lists)
        stacks = self.stacks(stack_lists)
        columns = {**dict(self._tensor_columns(stacks, default_value)), **stacks}
        return {name: tensor_of(name, values, default_value) for name, values in columns.items()}

    def _tensor_columns(self, stacks: Collection[str], default_value: Any) -> Iterator[tuple[str, Any]]:
        """What the other tensors are made from; None in the place of those of ``stacks``."""
        for key, values in zip(self._keys, self._given, strict=True):
            yield key.name, key.for_frame(values)
        for name, view, place, decoder in self._features:
            is_other = name not in stacks
            yield name, decoder.for_tensor(self._many(view), place, default_value) if is_other else None
        for column in self._computed:
            yield column.name, column.values(self._feature_types.get(column.name))

    def _names(self) -> Collection[str]:
        if self._proto is not None:
            return super()._names()
        return [column.name for columns in (self._keys, self._features, self._computed) for column in columns]

    def _number_lists(self, wanted: frozenset[str]) -> Iterator[tuple[str, pa.ListArray, int]]:
        if self._proto is not None:
            yield from super()._number_lists(wanted)
            return
        for name, view, place, decoder in self._features:
            lists = decoder.lists(self._many(view), place) if name in wanted else None
            if lists is not None:
                yield name, lists, self._vector_length(name)
        for column in self._computed:
            lists = column.lists() if column.name in wanted else None
            if lists is not None:
                yield column.name, lists, 0

    def _vector_length(self, name: str) -> int:
        for feature in self._features:
            if feature.name == name:
                view = self._plan.views[feature.view]
                field_name = list(view.codecs)[feature.place]
                return next((field.vector_length for field in view.table.features if field.name == field_name), 0)
        return 0

    def _columns(self, form: str, with_times: bool) -> Iterator[tuple[str, Any]]:
        """Every column in order: ``form`` names what a decoder is to give."""
        for key, values in zip(self._keys, self._given, strict=True):
            yield key.name, key.for_frame(values) if form == "for_frame" else key.python(values)
            if with_times:
                yield key.name + TIMESTAMP_POSTFIX, [0] * len(values)
        for feature in self._features:
            columns = self._many(feature.view)
            yield feature.name, getattr(feature.decoder, form)(columns, feature.place)
            if with_times:
                yield feature.name + TIMESTAMP_POSTFIX, (columns.event_time_ns // _SECOND_NS).tolist()
        for column in self._computed:
            yield column.name, column.values(self._feature_types.get(column.name))
            if with_times:
                yield column.name + TIMESTAMP_POSTFIX, [0] * len(column)

    def _many(self, view: int) -> Columns:
        """What was read of a view, as columns also where it was one row."""
        read = self._reads[view]
        if type(read) is OneRow:
            read = self._reads[view] = read.columns()
        columns: Columns = read
        return columns

    def _to_proto(self) -> Any:
        response = GetOnlineFeaturesResponse()
        names, vectors = response.metadata.feature_names.val, []
        for key, values in zip(self._keys, self._given, strict=True):
            names.append(key.name)
            vectors.append(wire.vector(key.wire(values), wire.row_states([FieldStatus.PRESENT] * len(values), None)))
        states = [_state(read) if type(read) is OneRow else _states(read) for read in self._reads]
        for feature in self._features:
            names.append(feature.name)
            vectors.append(self._vector(feature, states[feature.view]))
        for column in self._computed:
            names.append(column.name)
            present = wire.row_states([FieldStatus.PRESENT] * len(column), None)
            vectors.append(wire.vector(column.wire(), present))
        if self._plan.with_versions:
            self._add_versions(response.metadata.feature_view_metadata)
        response.MergeFromString(b"".join(vectors))
        return response

    def _vector(self, feature: Feature, states: bytes) -> bytes:
        view, read, index = self._plan.views[feature.view], self._reads[feature.view], feature.place
        if type(read) is OneRow:
            values = feature.decoder.wire_one(read, index) if read.is_valid(index) else wire.nulls(1)
            return wire.vector(values, states)
        columns: Columns = read
        if len(columns.fields) < len(view.codecs):
            field = view.fields[list(view.codecs)[index]]
            index = next((place for place, stored in enumerate(columns.fields) if stored.name == field), -1)
        if index >= 0:
            return wire.vector(feature.decoder.wire(columns, index), states)
        count = len(columns.found)
        absent = wire.row_states([FieldStatus.NOT_FOUND] * count, columns.event_time_ns)
        return wire.vector(wire.nulls(count), absent)

    def _add_versions(self, metadata: Any) -> None:
        for view in self._plan.views:
            projection = view.table.projection
            name = projection.name_alias or projection.name
            if name not in [known.name for known in metadata]:
                metadata.add(name=name, version=getattr(view.table, "current_version_number", 0) or 0)


class RowResponse(LazyResponse):
    """The response for one entity, of whom all views were read at once. ``given`` are one value each."""

    _computed = ()
    _proto = None

    def __init__(self, plan: Plan, keys: Sequence[Column], given: list[list[Any]], rows: Rows) -> None:
        self._plan = plan
        self._keys = keys
        self._given = given
        self._rows = rows
        self._features = plan.features
        self._feature_types = plan.feature_types

    @cached_property
    def _reads(self) -> list[Any]:  # type: ignore[override]
        return [self._rows[number] for number in range(len(self._plan.views))]

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Lists of Python values by name."""
        plan, rows = self._plan, self._rows
        if include_event_timestamps or self._proto is not None or not plan.has_numbers_only or not rows.complete:
            return super().to_dict(include_event_timestamps)
        result = {key.name: key.python(values) for key, values in zip(self._keys, self._given)}  # noqa: B905 - hot
        values = rows.values
        for name, slot in plan.slots(rows.layout):
            result[name] = [values[slot]]
        return result

    # Of so few values frames and tables are soonest made as Feast makes them, from the dictionary.
    to_df = OnlineResponse.to_df
    to_arrow = OnlineResponse.to_arrow


def _state(row: OneRow) -> bytes:
    """What all features of a view have in common in the protobuf."""
    if not row.values:
        return wire.row_state(FieldStatus.NOT_FOUND, 0)
    return wire.row_state(FieldStatus.PRESENT, row.values[0])


def _states(columns: Columns) -> bytes:
    """The same for many rows."""
    statuses = np.where(columns.found, FieldStatus.PRESENT, FieldStatus.NOT_FOUND).astype(np.uint8)
    if columns.hidden is not None:
        statuses[columns.hidden] = FieldStatus.OUTSIDE_MAX_AGE
    return wire.row_states(statuses.tobytes(), columns.event_time_ns)


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    """A frame of arrays and lists. Where most columns are float64 they become one block at once, as pandas would make
    of them in the end, and the others take the place of columns of that block.
    """
    floats = [isinstance(values, np.ndarray) and values.dtype == np.float64 for values in columns.values()]
    others = len(floats) - sum(floats)
    lengths = {*map(len, columns.values())}
    if sum(floats) < _LEAST_BLOCK or others > _MOST_BESIDE_BLOCK or len(lengths) > 1:
        return pd.DataFrame(columns)  # If lengths differ, it knows what to say.
    block = np.empty((len(floats), *lengths))
    for place, values in enumerate(columns.values()):
        block[place] = values if floats[place] else 0.0
    frame = pd.DataFrame(block.T, columns=_labels(tuple(columns)).view(), copy=False)
    for place, values in enumerate(columns.values()):
        if not floats[place]:
            frame.isetitem(place, values)
    return frame


@lru_cache(maxsize=256)
def _labels(names: tuple[str, ...]) -> pd.Index:
    """The names of a frame's columns. A frame gets a view, as it may give its columns a name."""
    return pd.Index(names)
