"""The answer to a compiled request: what was read, turned into what is asked for when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from feast import utils
from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse, _convert_uuids_for_arrow
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse

from feast_quorin.reading import Rows, add_to_response
from quorin.assembly import OneRow

if TYPE_CHECKING:
    from feast_quorin.plan import Feature, Shape
    from quorin.assembly import Columns

_SECOND_NS = 1_000_000_000
_LEAST_BLOCK = 8
_MOST_BESIDE_BLOCK = 8


class LazyResponse(OnlineResponse):
    """Feast's response without its protobuf, which is built when somebody asks for ``proto``.

    Dictionaries, frames and tables come from what was read, and are what Feast makes of its protobuf. It was all read
    when the request was made; nothing that is written later shows.
    """

    def __init__(self, shape: Shape, keys: list[list[Any]], reads: list[Any]) -> None:
        # Feast's own __init__ would want the protobuf.
        self._shape = shape
        self._keys = keys
        self._reads = reads
        self._proto: Any = None
        self._feature_types = shape.plan.feature_types

    @classmethod
    def of(cls, shape: Shape, keys: list[list[Any]], reads: list[Columns]) -> LazyResponse:
        """A response to columns that may lack some fields of the plan, which the protobuf knows how to say."""
        response = cls(shape, keys, reads)
        if any(len(read.fields) < len(view.codecs) for view, read in zip(shape.plan.views, reads, strict=True)):
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

    def __reduce__(self) -> tuple[Any, ...]:
        return OnlineResponse, (self.proto, dict(self._feature_types))

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """Lists of Python values by name."""
        if self._proto is not None:
            return super().to_dict(include_event_timestamps)
        if include_event_timestamps:
            return dict(self._columns("values", with_times=True))
        reads = self._reads
        result: dict[str, Any] = {key.name: values[:] for key, values in zip(self._shape.keys, self._keys, strict=True)}
        complete = [read.complete for read in reads]
        for name, view, place, decoder in self._shape.plan.features:
            read = reads[view]
            if type(read) is not OneRow:
                result[name] = decoder.values(read, place)
            elif complete[view] or read.is_valid(place):
                result[name] = [decoder.value(read, place)]
            else:
                result[name] = [None]
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

    def _columns(self, form: str, with_times: bool) -> Iterator[tuple[str, Any]]:
        """Every column in order: ``form`` names what a decoder is to give."""
        for key, values in zip(self._shape.keys, self._keys, strict=True):
            yield key.name, values[:]
            if with_times:
                yield key.name + TIMESTAMP_POSTFIX, [0] * len(values)
        for feature in self._shape.plan.features:
            columns = self._many(feature)
            yield feature.name, getattr(feature.decoder, form)(columns, feature.place)
            if with_times:
                yield feature.name + TIMESTAMP_POSTFIX, (columns.event_time_ns // _SECOND_NS).tolist()

    def _many(self, feature: Feature) -> Columns:
        """What was read of a feature's view, as columns also where it was one row."""
        read = self._reads[feature.view]
        if type(read) is OneRow:
            read = self._reads[feature.view] = read.columns()
        return read

    def _to_proto(self) -> Any:
        plan = self._shape.plan
        response = GetOnlineFeaturesResponse()
        keys = {key.name: key.protos(values) for key, values in zip(self._shape.keys, self._keys, strict=True)}
        utils._populate_result_rows_from_columnar(response, keys)
        for view, read in zip(plan.views, self._reads, strict=True):
            columns = read.columns() if type(read) is OneRow else read
            stored = {field.name for field in columns.fields}
            codecs = {name: codec for name, codec in view.codecs.items() if view.fields[name] in stored}
            rows = Rows(columns.to_batch(), codecs)
            add_to_response(
                response,
                view.table,
                view.requested,
                rows,
                full_feature_names=plan.full_names,
                with_version=plan.with_versions,
            )
        utils._drop_unneeded_columns(response, {*plan.result_names, *keys})
        return response


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    """A frame of arrays and lists. Where most columns are float64 they become one block at once, as pandas would make
    of them in the end.
    """
    floats = [name for name, values in columns.items() if isinstance(values, np.ndarray) and values.dtype == np.float64]
    if len(floats) < _LEAST_BLOCK or len(columns) - len(floats) > _MOST_BESIDE_BLOCK:
        return pd.DataFrame(columns)
    block = np.stack([columns[name] for name in floats])
    frame = pd.DataFrame(block.T, columns=floats, copy=False)
    for place, (name, values) in enumerate(columns.items()):
        if not (isinstance(values, np.ndarray) and values.dtype == np.float64):
            frame.insert(place, name, values)
    return frame
