"""The response to a compiled request: what was read, converted when a caller asks for a form of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from feast.online_response import TIMESTAMP_POSTFIX
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse

from feast_quorin import feast_private
from feast_quorin.convert import json_numbers
from feast_quorin.convert import response_wire as wire
from feast_quorin.read.tensors import TensorResponse, tensor_of
from quorin.assembly import OneRow

if TYPE_CHECKING:
    from feast.value_type import ValueType

    from feast_quorin.read.computed import Computed
    from feast_quorin.read.positions import Positions
    from feast_quorin.read.request import Column
    from feast_quorin.read.resolved import Feature, Resolved
    from quorin.assembly import Columns

_SECOND_NS = 1_000_000_000
_MIN_BLOCK_COLUMNS = 8
_MAX_OTHER_COLUMNS = 8
_MAX_LABELS = 256
_MAX_ROWS_AT_ONCE = 1_000


class Vector(NamedTuple):
    """A column of the response as JSON: its name, values for orjson, and what was read of its view with the index of
    the column there; None for join keys and computed features.
    """

    name: str
    values: Any
    read: OneRow | Columns | None
    at: int = -1


class ArrowVector(NamedTuple):
    """A column of the response in its stored type: its kind (``key``, ``feature``, or for computed ones ``exact`` or
    ``converted``, see :class:`feast_quorin.read.computed.Computed`), name, Feast type, the index of its view, -1 for
    none, and its own in what was read of the view.
    """

    kind: str
    name: str
    value_type: ValueType
    column: pa.Array
    view: int = -1
    at: int = -1


class LazyResponse(TensorResponse):
    """Feast's response without its protobuf, which is built when a caller asks for ``proto``.

    Dictionaries, frames, tables and tensors are made from what was read, and equal what Feast makes of its protobuf.
    Everything was read, and computed, at the time of the request: later writes do not show. ``key_values`` are the
    normalised values of the columns ``keys``; ``features`` are those to return, by default the requested ones.
    """

    def __init__(
        self,
        resolved: Resolved,
        keys: Sequence[Column],
        key_values: list[list[Any]],
        reads: list[Any],
        features: tuple[Feature, ...] | None = None,
        computed: Sequence[Computed] = (),
    ) -> None:
        # Feast's own __init__ takes the protobuf.
        self._resolved = resolved
        self._keys = keys
        self._key_values = key_values
        self._reads = reads
        self._features = resolved.features if features is None else features
        self._computed = computed
        self._proto: Any = None
        self._feature_types = resolved.feature_types

    @classmethod
    def of(cls, *parts: Any, **more: Any) -> LazyResponse:
        """A response whose views may lack some of the fields, which only the protobuf can express."""
        response = cls(*parts, **more)
        for view, read in zip(response._resolved.views, response._reads, strict=True):
            if type(read) is not OneRow and len(read.fields) < len(view.codecs):
                response._proto = response._to_proto()
        return response

    @property
    def proto(self) -> Any:
        """The ``GetOnlineFeaturesResponse``. Once built, everything else is made from it, as in Feast."""
        if self._proto is None:
            self._proto = self._to_proto()
        return self._proto

    @proto.setter
    def proto(self, proto: Any) -> None:
        self._proto = proto

    def with_computed(self, computed: Sequence[Computed]) -> LazyResponse:
        """The same response with these computed features."""
        parts = (self._resolved, self._keys, self._key_values, self._reads, self._features)
        return LazyResponse.of(*parts, tuple(computed))

    def positions(self) -> Positions:
        """The log positions of the writes that made the rows, by name of the view; as :class:`TensorResponse`."""
        return {view: _positions(read) for view, read in zip(self._resolved.view_names(), self._reads, strict=True)}

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Lists of Python values by name."""
        if self._proto is not None:
            return super().to_dict(include_event_timestamps)
        if include_event_timestamps:
            return dict(self._columns("values", with_times=True))
        result: dict[str, Any] = {
            key.name: key.python(values) for key, values in zip(self._keys, self._key_values, strict=True)
        }
        for name, view, index, decoder in self._features:
            read = self._reads[view]
            if type(read) is not OneRow:
                result[name] = decoder.values(read, index)
            else:
                result[name] = [decoder.value(read, index) if read.is_valid(index) else None]
        for column in self._computed:
            result[column.name] = column.values(self._feature_types.get(column.name))
        return result

    def to_df(self, include_event_timestamps: bool = False) -> pd.DataFrame:
        """A frame with the columns and dtypes that pandas infers from :meth:`to_dict`."""
        if self._proto is not None:
            return super().to_df(include_event_timestamps)
        return _frame(dict(self._columns("for_frame", include_event_timestamps)))

    def to_arrow(self, include_event_timestamps: bool = False, *, positions: bool = False) -> pa.Table:
        """A table with the columns and types that Arrow infers from :meth:`to_dict`; with ``positions`` those too, as
        :meth:`TensorResponse.to_arrow`.
        """
        if self._proto is not None:
            return super().to_arrow(include_event_timestamps, positions=positions)
        columns = dict(self._columns("for_table", include_event_timestamps))
        lists = {name: values for name, values in columns.items() if isinstance(values, list)}
        table = pa.Table.from_pydict(columns | feast_private.convert_uuids(lists))
        return self.with_positions(table) if positions else table

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
        """The inputs of the tensors by name, None for those of ``stacks``."""
        for key, values in zip(self._keys, self._key_values, strict=True):
            yield key.name, key.for_frame(values)
        for name, view, index, decoder in self._features:
            is_other = name not in stacks
            yield name, decoder.for_tensor(self._many(view), index, default_value) if is_other else None
        for column in self._computed:
            yield column.name, column.values(self._feature_types.get(column.name))

    def _names(self) -> Collection[str]:
        if self._proto is not None:
            return super()._names()
        return [column.name for columns in (self._keys, self._features, self._computed) for column in columns]

    def _number_lists(self, requested: frozenset[str]) -> Iterator[tuple[str, pa.ListArray, int]]:
        if self._proto is not None:
            yield from super()._number_lists(requested)
            return
        for name, view, index, decoder in self._features:
            lists = decoder.lists(self._many(view), index) if name in requested else None
            if lists is not None:
                yield name, lists, self.vector_length(name)
        for column in self._computed:
            lists = column.lists() if column.name in requested else None
            if lists is not None:
                yield column.name, lists, 0

    def _columns(self, form: str, with_times: bool) -> Iterator[tuple[str, Any]]:
        """Every column in order, in the form that the decoder's method ``form`` returns."""
        for key, values in zip(self._keys, self._key_values, strict=True):
            yield key.name, key.for_frame(values) if form == "for_frame" else key.python(values)
            if with_times:
                yield key.name + TIMESTAMP_POSTFIX, [0] * len(values)
        for feature in self._features:
            columns = self._many(feature.view)
            yield feature.name, getattr(feature.decoder, form)(columns, feature.column)
            if with_times:
                yield feature.name + TIMESTAMP_POSTFIX, (columns.event_time_ns // _SECOND_NS).tolist()
        for column in self._computed:
            yield column.name, column.values(self._feature_types.get(column.name))
            if with_times:
                yield column.name + TIMESTAMP_POSTFIX, [0] * len(column)

    def json_vectors(self) -> Iterator[Vector] | None:
        """Every column in order, as Feast's feature server writes it; None if only the protobuf has all of them."""
        if self._proto is not None or self._resolved.with_versions:
            return None
        return self._json_vectors()

    def _json_vectors(self) -> Iterator[Vector]:
        values: Any
        for key, values in zip(self._keys, self._key_values, strict=True):
            yield Vector(key.name, key.json(values), None)
        floats = _json_floats(self._reads, self._features)
        for name, view, index, decoder in self._features:
            read = self._reads[view]
            if type(read) is OneRow:
                values = [decoder.json_one(read, index) if read.is_valid(index) else None]
            elif (view, index) in floats:
                values = json_numbers.with_nulls(floats[view, index], None if read.complete else read.valid(index))
            else:
                values = decoder.json(read, index)
            yield Vector(name, values, read, index)
        for column in self._computed:
            yield Vector(column.name, column.json(), None)

    def arrow_vectors(self) -> Iterator[ArrowVector] | None:
        """Every column in order; None if only the protobuf has all of them."""
        has_unknown = any(column.name in self._feature_types for column in self._computed)
        return None if self._proto is not None or has_unknown else self._arrow_vectors()

    def _arrow_vectors(self) -> Iterator[ArrowVector]:
        for key, values in zip(self._keys, self._key_values, strict=True):
            yield ArrowVector("key", key.name, *key.arrow(values))
        for name, view, index, decoder in self._features:
            column = decoder.arrow(self._many(view), index)
            yield ArrowVector("feature", name, self._feature_types[name], column, view, index)
        for computed in self._computed:
            yield ArrowVector("exact" if computed.is_exact else "converted", computed.name, *computed.arrow())

    @property
    def resolved(self) -> Resolved:
        """The choice of features that this answers."""
        return self._resolved

    def vector_length(self, name: str) -> int:
        """The declared length of a feature's vectors, 0 for any."""
        for feature in self._features:
            if feature.name == name:
                view = self._resolved.views[feature.view]
                field_name = list(view.codecs)[feature.column]
                return next((field.vector_length for field in view.table.features if field.name == field_name), 0)
        return 0

    def view_columns(self, view: int) -> tuple[str, Columns]:
        """The name of a view in the response, and what was read of it."""
        return self._resolved.views[view].table.projection.name_to_use(), self._many(view)

    def _many(self, view: int) -> Columns:
        """What was read of a view as columns, even if it was one row."""
        read = self._reads[view]
        if type(read) is OneRow:
            read = self._reads[view] = read.columns()
        columns: Columns = read
        return columns

    def _to_proto(self) -> Any:
        response = GetOnlineFeaturesResponse()
        names, vectors = response.metadata.feature_names.val, []
        for key, values in zip(self._keys, self._key_values, strict=True):
            names.append(key.name)
            vectors.append(wire.vector(key.wire(values), wire.row_states([FieldStatus.PRESENT] * len(values), None)))
        states: dict[tuple[int, int], bytes] = {}
        for feature in self._features:
            read, index = self._reads[feature.view], self._index(feature)
            # Only features with the same age limit share statuses.
            shared = feature.view, read.age_limit(index) if index >= 0 else -1
            if shared not in states:
                states[shared] = _state(read, index) if type(read) is OneRow else _states(read, index)
            names.append(feature.name)
            vectors.append(self._vector(feature, index, states[shared]))
        for column in self._computed:
            names.append(column.name)
            present = wire.row_states([FieldStatus.PRESENT] * len(column), None)
            vectors.append(wire.vector(column.wire(), present))
        for name, version in (self._resolved.versions or {}).items():
            response.metadata.feature_view_metadata.add(name=name, version=version)
        response.MergeFromString(b"".join(vectors))
        return response

    def _index(self, feature: Feature) -> int:
        """The index of a feature in what was read of its view; -1 if the segment does not have it."""
        view, read = self._resolved.views[feature.view], self._reads[feature.view]
        if type(read) is OneRow or len(read.fields) == len(view.codecs):
            return feature.column
        field = view.fields[list(view.codecs)[feature.column]]
        return next((number for number, stored in enumerate(read.fields) if stored.name == field), -1)

    def _vector(self, feature: Feature, index: int, states: bytes) -> bytes:
        read = self._reads[feature.view]
        if type(read) is OneRow:
            values = feature.decoder.wire_one(read, index) if read.is_valid(index) else wire.nulls(1)
            return wire.vector(values, states)
        columns: Columns = read
        return wire.vector(
            wire.nulls(len(columns.found)) if index < 0 else feature.decoder.wire(columns, index), states
        )


def _positions(read: OneRow | Columns) -> list[int | None]:
    if type(read) is OneRow:
        return [read.position]
    columns: Any = read
    positions: list[int | None] = columns.positions.tolist()
    if columns.all_found:
        return positions
    return [own if is_found else None for own, is_found in zip(positions, columns.found.tolist(), strict=True)]


def _state(row: OneRow, index: int) -> bytes:
    """Status and event time of a feature of one row."""
    if not row.values:
        return wire.row_state(FieldStatus.NOT_FOUND, 0)
    status = FieldStatus.OUTSIDE_MAX_AGE if row.is_outdated(index) else FieldStatus.PRESENT
    return wire.row_state(status, row.values[0])


def _states(columns: Columns, index: int) -> bytes:
    """Status and event time of a feature of many rows; ``index`` is -1 for a feature that the segment does not have."""
    if index < 0:
        return wire.row_states([FieldStatus.NOT_FOUND] * len(columns.found), columns.event_time_ns)
    statuses = np.where(columns.found, FieldStatus.PRESENT, FieldStatus.NOT_FOUND).astype(np.uint8)
    outdated = columns.outdated(index)
    if outdated is not None:
        statuses[outdated] = FieldStatus.OUTSIDE_MAX_AGE
    return wire.row_states(statuses.tobytes(), columns.event_time_ns)


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    """A frame of arrays and lists. If most columns are float64 they become one block at once, as pandas would make of
    them in the end, and the others replace columns of that block.
    """
    floats = [isinstance(values, np.ndarray) and values.dtype == np.float64 for values in columns.values()]
    others = len(floats) - sum(floats)
    lengths = {*map(len, columns.values())}
    if sum(floats) < _MIN_BLOCK_COLUMNS or others > _MAX_OTHER_COLUMNS or len(lengths) > 1:
        return pd.DataFrame(columns)  # Raises if lengths differ.
    block = np.empty((len(floats), *lengths))
    for index, values in enumerate(columns.values()):
        block[index] = values if floats[index] else 0.0
    frame = pd.DataFrame(block.T, columns=_labels(tuple(columns)).view(), copy=False)
    for index, values in enumerate(columns.values()):
        if not floats[index]:
            frame.isetitem(index, values)
    return frame


@lru_cache(maxsize=_MAX_LABELS)
def _labels(names: tuple[str, ...]) -> pd.Index:
    """The labels of a frame's columns. Each frame gets a view, because a frame can name its columns."""
    return pd.Index(names)


def _json_floats(reads: Sequence[Any], features: Sequence[Feature]) -> dict[tuple[int, int], Any]:
    """The columns of floats of few rows, by view and index there, without nulls."""
    if any(type(read) is OneRow or len(read.found) > _MAX_ROWS_AT_ONCE for read in reads):
        return {}
    columns: dict[tuple[int, int], Any] = {}
    for view in dict.fromkeys(feature.view for feature in features if feature.decoder.is_float):
        for indexes, values in reads[view].runs():
            if values.dtype.kind == "f":
                columns |= zip([(view, index) for index in indexes], json_numbers.floats(values), strict=True)
    return columns
