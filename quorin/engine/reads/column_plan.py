"""Where a read puts the fields that are requested: as columns in one buffer, which the kernel fills in one pass.

Event times come first, then log positions if they are requested, the cells, largest alignment first, the validity bits
last. :class:`quorin.engine.reads.columns.Columns` is such a buffer, filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from quorin.engine.format import segment as fmt
from quorin.engine.format.abi import MISSING_ZEROS, P_SPANS, RAW_BYTES, SPAN_CODE, SPAN_ITEMS, SPAN_TARGET, ZEROS
from quorin.engine.memory.plans import read_plan, with_ages
from quorin.engine.rows.compatibility import fits
from quorin.errors import InvalidRowError
from quorin.schema import FeatureField, dtype

if TYPE_CHECKING:
    from quorin.engine.arrays import Int64s
    from quorin.engine.memory.view import SegmentView


EVENT_TIME_BYTES = POSITION_BYTES = 8
_MAX_PLANS = 64


class Run(NamedTuple):
    """Columns of single numbers of one dtype that lie behind each other in the buffer: the fields, by their index, and
    where the first begins in a row.
    """

    fields: list[int]
    start: int


class ColumnPlan:
    """A choice of fields of one view: where each column begins, in bytes a row, and the kernel's plan for any count.

    It does not refer to the view, which keeps it: memory is unmapped when the last reference goes, not when Python's
    collector comes by.
    """

    def __init__(self, view: SegmentView, fields: Sequence[FeatureField], *, positions: bool = False) -> None:
        body, layout = view.layout.body_offset, fmt.body_layout(view.stored)
        cells = {cell.field.name: cell for cell in layout.cells}
        self.cells = [_cell(cells.get(field.name), field, layout) for field in fields]
        self.fields = tuple(cell.field for cell in self.cells)
        self.lacks_fields = not all(cell.null_mask for cell in self.cells)
        sources = [(fmt.row_offset("event_time_ns"), EVENT_TIME_BYTES, RAW_BYTES)]
        self.starts = [0] * len(self.fields)
        end = EVENT_TIME_BYTES
        self.has_positions = positions
        if positions:
            sources.append((fmt.row_offset("position"), POSITION_BYTES, RAW_BYTES))
            end += POSITION_BYTES
        order = sorted(range(len(self.fields)), key=lambda i: -fmt.alignment(self.fields[i]))
        for index in order:
            cell = self.cells[index]
            sources.append((body + cell.offset, cell.byte_count, RAW_BYTES if cell.null_mask else ZEROS))
            self.starts[index] = end
            end += cell.byte_count
        self.runs = _runs(self.fields, order, self.starts)
        self.run_of = {index: (run, number) for run in self.runs for number, index in enumerate(run.fields)}
        """By index of a field, its run and its number there."""
        self.bits_start, self.bits_count = end, layout.bitmap_bytes
        sources.append((body + layout.bitmap_offset, layout.bitmap_bytes, RAW_BYTES))
        self.row_bytes = end + layout.bitmap_bytes
        self.column_bytes = [count for _, count, _ in sources[:-1]]
        self._starts = np.cumsum([0, *self.column_bytes])
        spans = [[source, 0, count, count, code] for source, count, code in sources]
        self._words = read_plan(view.descriptor, self.row_bytes, spans, [], MISSING_ZEROS)
        self._targets = slice(P_SPANS + SPAN_TARGET, P_SPANS + SPAN_ITEMS * len(spans), SPAN_ITEMS)
        self._words_by_count: dict[tuple[int, tuple[int, ...] | None], Int64s] = {}
        self.null_bits = [(cell.null_byte - layout.bitmap_offset, cell.null_mask) for cell in self.cells]
        self.required_bits = np.zeros(layout.bitmap_bytes, np.uint8)
        for byte, mask in self.null_bits:
            self.required_bits[byte] |= mask
        count = len(view.stored.fields)
        self.all_bits = np.packbits(np.ones(count, np.bool_), bitorder="little").tobytes()

    def words(self, count: int, ages: tuple[int, ...] | None = None) -> Int64s:
        """The kernel's plan for a buffer of ``count`` rows: a column begins at ``count`` times its offset in a row.
        ``ages`` are the age limits of the fields in ns, 0 for none.
        """
        words = self._words_by_count.get((count, ages))
        if words is None:
            if len(self._words_by_count) >= _MAX_PLANS:
                self._words_by_count.clear()
            words = self._words.copy()
            words[self._targets] = self._starts * count
            if ages is not None:
                words = with_ages(words, self._limits(count, ages))
            self._words_by_count[count, ages] = words  # only now, as other threads take it from here
        return words

    def _limits(self, count: int, ages: tuple[int, ...]) -> list[tuple[int, ...]]:
        limits: list[tuple[int, ...]] = []
        bits_start = self.bits_start * count
        for age, start, cell, (byte, mask) in zip(ages, self.starts, self.cells, self.null_bits, strict=True):
            size = cell.byte_count
            limits.append((age, start * count, size, size, 0, bits_start + byte, self.bits_count, mask))
        return limits

    def spans(self) -> list[tuple[int, int, int]]:
        """The plan for the oracle: for each span its offset in the stored row, its offset in a row of the buffer, and
        its bytes.
        """
        table = self._words[P_SPANS:].reshape(-1, SPAN_ITEMS)
        return [
            (int(span[0]), int(start), int(span[3]))
            for span, start in zip(table, self._starts, strict=True)
            if span[SPAN_CODE] == RAW_BYTES
        ]


def _runs(fields: Sequence[FeatureField], order: Sequence[int], starts: Sequence[int]) -> list[Run]:
    runs: list[Run] = []
    last = None
    for index in order:
        field = fields[index]
        is_number = not (field.is_variable or field.shape or field.dtype is dtype.bool)
        if is_number and field.dtype is last:
            runs[-1].fields.append(index)
        elif is_number:
            runs.append(Run([index], starts[index]))
        last = field.dtype if is_number else None
    return runs


def _cell(stored: fmt.Cell | None, field: FeatureField, layout: fmt.BodyLayout) -> fmt.Cell:
    """Where a field is stored; for one that is not (any more), a cell without a null bit, so that it is always null."""
    if stored is not None and fits(stored.field, field):
        return stored
    return fmt.Cell(field, 0, layout.bitmap_offset, 0)


def column_plan(view: SegmentView, names: Sequence[str] | None, *, positions: bool = False) -> ColumnPlan:
    """The plan for the named fields (all, if None), and for log positions if ``positions``; cached in the view.

    :raises InvalidRowError: for a name that is no field of the schema.
    """
    key = (None if names is None else tuple(names), positions)
    plan: ColumnPlan | None = view.column_plans.get(key)
    if plan is None:
        fields = {field.name: field for field in view.schema.fields}
        requested = list(fields) if names is None else list(names)
        unknown = [name for name in requested if name not in fields]
        if unknown:
            raise InvalidRowError(f"{view.schema.__name__} has no fields {unknown}; it has {list(fields)}")
        if len(view.column_plans) >= _MAX_PLANS:
            view.column_plans.clear()
        plan = view.column_plans[key] = ColumnPlan(view, [fields[name] for name in requested], positions=positions)
    return plan
