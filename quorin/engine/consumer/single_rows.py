"""Apply single rows of numbers straight from their records to a segment, without an Arrow batch in between.

Creating a batch of one row is most of its cost. But the template of a record (:mod:`quorin.engine.log.record_fast`)
has the offsets of all its parts, and the kernels take addresses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import KIND_FIXED, R_APPLIED, UPSERT
from quorin.engine.log.record import Kind
from quorin.engine.rows.batch import canonical_schema
from quorin.engine.rows.packed import ColumnTable, Located
from quorin.layout import apply_located

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quorin.engine.log.record_fast import Template
    from quorin.engine.memory.segment import Segment
    from quorin.schema import Schema


class SingleRows:
    """Applies records that fit a template to segments of a schema. Not thread-safe."""

    def __init__(self, template: Template, schema: Schema) -> None:
        self._template = template
        self._memory = np.zeros(template.size, np.uint8)
        self._bytes = memoryview(self._memory)  # type: ignore[arg-type]
        self._position = np.zeros(1, np.int64)
        start = int(self._memory.ctypes.data)
        table = ColumnTable(schema)
        (time_at, _), *values_at = template.values_at
        for cell, (at, width) in zip(fmt.body_layout(schema).cells, values_at, strict=True):
            table.add(cell, kind=KIND_FIXED, values=start + at, item_bytes=width, validity=(0, 0))
        ids = (start + template.offsets_at, 4, start + template.id_at)
        columns = ColumnTable(schema, table.words, self._memory)
        self._located = Located(columns, ids, start + time_at)
        self._position_at = (int(self._position.ctypes.data), 0)

    def _size(self) -> int:
        return self._template.size

    @staticmethod
    def can_apply(template: Template, schema: Schema) -> bool:
        """Whether records that fit a template are whole rows of exactly this schema."""
        return template.kind is Kind.upsert and template.arrow_schema.equals(canonical_schema(schema))

    def takes(self, record: bytes, max_id_bytes: int) -> bool:
        """Whether a record that fits the template can be applied without decoding it."""
        return self._template.id_size(record) <= max_id_bytes and self._template.is_valid(record)

    def apply(self, segment: Segment, rows: Iterable[tuple[int, bytes]]) -> int:
        """Apply rows with their log positions, one by one; ``segment.writing`` is held.

        Returns how many took effect. A crash in between leaves a prefix applied; applying again completes it.
        """
        applied = 0
        for position, record in rows:
            self._bytes[:] = record
            self._position[0] = position
            view = segment.writing_view()
            result = apply_located(segment, view, self._located, UPSERT, self._position_at, 1, self._size)
            applied += int(result[R_APPLIED])
        return applied
