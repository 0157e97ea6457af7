"""Readers that fill the matrix of a model from one or several segments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.models.layout import MatrixPart, matrix_layout
from quorin.engine.models.stored import layout_from_json, layout_to_json
from quorin.engine.reads.readers import ColumnReader
from quorin.engine.rows.intake import id_array
from quorin.errors import EntityNotFoundError, InvalidRowError

if TYPE_CHECKING:
    from quorin.engine.arrays import AnyArray, Mask
    from quorin.engine.models.layout import MatrixLayout
    from quorin.shm import Segment

Parts = Any
"""A segment, or pairs of a segment and the names of some of its fields, None for all."""


class ModelReader:
    """Bound to segments and the columns of a model; :func:`quorin.assembly.model_reader` makes one.

    ``reader(entity_id)`` is the matrix of one entity, shape ``(1, width)``, as models take it; ``reader.batch(ids)``
    that of many. ``names`` are the columns in order: an element of a field with a shape is called ``field[index]``.
    Threads may share it.
    """

    __slots__ = ("_layout", "_readers", "_segments")

    def __init__(self, segments: Sequence[Segment], layout: MatrixLayout) -> None:
        self._layout = layout
        self._segments = list(segments)
        self._readers = [ColumnReader(*pair) for pair in zip(segments, layout.fields, strict=True)]

    @classmethod
    def from_json(cls, parts: Parts, text: str, *, any_version: bool = False) -> ModelReader:
        """The reader that :meth:`to_json` described, of the segments in the same order.

        :raises SchemaMismatchError: if a segment has another schema than the model was saved with. With
            ``any_version`` only the fields that the model reads must have the same types.
        :raises InvalidRowError: for text that describes no reader.
        """
        segments, made = _bound(parts)
        schemas = [segment.schema for segment in segments]
        return cls(segments, layout_from_json(text, made, schemas, any_version=any_version))

    def to_json(self) -> str:
        """The columns, dtype, categories and missing values, with the schemas and their fingerprints: what to keep
        beside the model.
        """
        return layout_to_json(self._layout, [segment.schema for segment in self._segments])

    @property
    def names(self) -> list[str]:
        """The columns of the matrix, in order."""
        return list(self._layout.names)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64."""
        return self._layout.dtype

    @property
    def width(self) -> int:
        """How many columns the matrix has."""
        return self._layout.width

    def __call__(self, entity_id: str, *, out: AnyArray | None = None) -> AnyArray:
        """The matrix of one entity, shape ``(1, width)``: ``out`` if passed, else a new one. Columns of segments that
        lack the entity are missing.

        :raises EntityNotFoundError: if no segment has it. :raises EntityIdError: for an id that is empty or no text.
        :raises UnknownCategoryError: as :meth:`batch`. :raises InvalidBufferError: for an ``out`` that does not fit.
        """
        out, found = self.batch([entity_id], out=out)
        if not found[0]:
            raise EntityNotFoundError(entity_id, ", ".join(segment.name for segment in self._segments))
        return out

    def batch(self, entity_ids: Any, *, out: AnyArray | None = None) -> tuple[AnyArray, Mask]:
        """The matrix of many entities, shape ``(N, width)``, and which have a row in any segment, bool of shape
        ``(N,)``. Ids are in any form that :func:`quorin.assembly.read` takes. Releases the GIL for more than one.

        :raises UnknownCategoryError: naming row, column and value, if ``unknown="error"`` was chosen.
        :raises EntityIdError: naming the first id that is empty, null or no text. :raises InvalidBufferError: for an
            ``out`` that does not fit.
        """
        if type(entity_ids) is not list or len(entity_ids) > 1:
            entity_ids = id_array(entity_ids)
        out = self._layout.matrix(len(entity_ids), out)
        found: Mask | None = None
        for number, read in enumerate(self._readers):
            columns = read(entity_ids)
            self._layout.fill(number, columns, out)
            found = columns.found if found is None else found | columns.found
        return out, np.zeros(0, np.bool_) if found is None else found


def model_reader(
    parts: Parts,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    *,
    dtype: Any = np.float32,
    categories: Mapping[str, Any] | None = None,
    unknown: Any = math.nan,
    missing: Any = math.nan,
) -> ModelReader:
    """See :func:`quorin.assembly.model_reader`."""
    segments, made = _bound(parts)
    return ModelReader(segments, matrix_layout(made, columns, dtype, categories, unknown, missing))


def _bound(parts: Parts) -> tuple[list[Segment], list[MatrixPart]]:
    """The segments, and their fields to choose from.

    :raises InvalidRowError: for a field that a schema does not have, two segments of one schema, or none.
    """
    listed = [parts] if hasattr(parts, "schema") else list(parts)
    pairs = [(part, None) if hasattr(part, "schema") else part for part in listed]
    made = []
    for segment, names in pairs:
        by_name = {field.name: field for field in segment.schema.fields}
        wrong = [name for name in names or () if name not in by_name]
        if wrong:
            raise InvalidRowError(f"{segment.schema.__name__} has no fields {wrong}; it has {list(by_name)}")
        made.append(MatrixPart(segment.schema.__name__, {name: by_name[name] for name in names or by_name}))
    owners = [part.name for part in made]
    if not made or len({*owners}) < len(owners):
        raise InvalidRowError(f"expected segments of different schemas, at least one, got {owners}")
    return [segment for segment, _ in pairs], made
