"""The response of a remote store: the columns that ``quorin serve`` sent, decoded as those that were read here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from feast.value_type import ValueType

from feast_quorin.convert import response_wire as wire
from feast_quorin.convert.codecs import codec_for
from feast_quorin.convert.decoders import decoder_for
from feast_quorin.read.computed import Computed
from feast_quorin.read.request import INTEGER_RANGES, Column, ProtoColumn, key_column
from feast_quorin.read.resolved import Feature, Resolved
from feast_quorin.read.response import LazyResponse
from feast_quorin.remote import messages
from feast_quorin.remote.columns import ReceivedColumns

if TYPE_CHECKING:
    from feast_quorin.read.positions import Positions

_MAX_LAYOUTS = 256
_SCALARS = {*INTEGER_RANGES, ValueType.STRING}


class RemoteResponse(LazyResponse):
    """A :class:`LazyResponse` over an answer of ``quorin serve``."""

    def __init__(self, layout: _Layout, batch: pa.RecordBatch) -> None:
        keys = [_key(name, value_type, batch.column(index)) for index, (_, name, value_type) in enumerate(layout.keys)]
        values = [key.received(batch.column(index)) for index, key in enumerate(keys)]
        reads = [ReceivedColumns(batch, *view) for view in layout.views]
        self._batch = batch
        computed = [
            _Received(name, value_type, batch.column(index), kind == "exact")
            for index, (kind, name, value_type) in layout.computed
        ]
        super().__init__(layout.resolved, keys, values, reads, computed=computed)
        self._layout = layout
        self._received: list[Any] = reads

    def vector_length(self, name: str) -> int:
        """The declared length of a feature's vectors, 0 for any."""
        return self._layout.vector_lengths.get(name, 0)

    def positions(self) -> Positions:
        """The log positions of the rows, by view."""
        return {view: self._batch.column(index).to_pylist() for view, index in self._layout.positions.items()}

    def arrow_vectors(self) -> None:
        """None: what was received is not sent on."""

    def json_vectors(self) -> None:
        """None, as of :meth:`arrow_vectors`."""

    def _index(self, feature: Feature) -> int:
        return feature.column

    def _vector(self, feature: Feature, index: int, states: bytes) -> bytes:
        return wire.vector(feature.decoder.wire(self._received[feature.view], index), states)


def received(batch: pa.RecordBatch) -> RemoteResponse:
    """The response in an answer of ``quorin serve`` to an Arrow request.

    :raises BadMessageError: if the batch is no such answer.
    """
    try:
        layout = _layout(batch.schema.metadata[messages.METADATA])
        if layout.width != batch.num_columns:
            raise ValueError(f"{batch.num_columns} columns instead of {layout.width}")
        return RemoteResponse(layout, batch)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise messages.BadMessageError(f"expected an answer of `quorin serve`: {error}") from error


@dataclass(frozen=True)
class _Layout:
    """The columns of an answer: join keys, features, computed features, and for each view a status and a time.

    ``views`` has for each view the indexes of its features, of its statuses and of its times, ``positions`` by name the
    index of its log positions.
    """

    keys: list[tuple[str, str, ValueType]]
    computed: list[tuple[int, tuple[str, str, ValueType]]]
    resolved: Resolved
    views: list[tuple[tuple[int, ...], int, int]]
    positions: dict[str, int]
    vector_lengths: dict[str, int]
    width: int


@lru_cache(maxsize=_MAX_LAYOUTS)
def _layout(metadata: bytes) -> _Layout:
    about = messages.parsed(metadata)
    columns = [(kind, name, ValueType[value_type], *more) for kind, name, value_type, *more in about["columns"]]
    described = [*enumerate(columns)]
    features = [(index, column) for index, column in described if column[0] == "feature"]
    of_view: dict[int, list[int]] = {}
    for index, (_, _, _, view, _) in features:
        of_view.setdefault(view, []).append(index)
    first = len(columns)
    last = first + 2 * len(of_view)
    own = about.get("positions") or ()
    chosen = tuple(
        Feature(name, view, index, decoder_for(value_type)) for index, (_, name, value_type, view, _) in features
    )
    return _Layout(
        keys=[column for _, column in described if column[0] == "key"],
        computed=[(index, column) for index, column in described if column[0] in ("exact", "converted")],
        resolved=_resolved(
            chosen, {name: value_type for _, (_, name, value_type, _, _) in features}, about["versions"]
        ),
        views=[(tuple(of_view[view]), first + 2 * view, first + 2 * view + 1) for view in range(len(of_view))],
        positions={name: index for index, name in enumerate(own, last)},
        vector_lengths={name: length for _, (_, name, _, _, length) in features},
        width=last + len(own),
    )


def _resolved(features: tuple[Feature, ...], types: dict[str, ValueType], versions: dict[str, int] | None) -> Resolved:
    return Resolved(
        full_names=False,
        versions=versions,
        views=(),
        inputs=features,
        features=features,
        transforms=(),
        feature_types=types,
        has_numbers_only=False,
    )


def _key(name: str, value_type: ValueType, column: pa.Array) -> Column:
    is_scalar = value_type in _SCALARS and not column.null_count
    return key_column(name, value_type) if is_scalar else ProtoColumn(name, value_type)


class _Received(Computed):
    """A computed feature as it was sent."""

    __slots__ = ()

    def __init__(self, name: str, value_type: ValueType, column: pa.Array, is_exact: bool) -> None:
        self.name = name
        self._type = value_type
        self._values = column.to_pylist() if is_exact else None
        self._protos = [] if is_exact else codec_for(value_type).to_protos(column)
