"""Every byte of a segment, defined once.

A segment is one file. Its sections follow each other, each aligned to a cache line (``header_bytes`` is 4096, or 12288
with several partitions)::

    0         header_bytes     index_offset     free_offset      rows_offset     heap_offset      file_bytes
    ├─ header ─┼─ schema (JSON) ─┼─ index ────────┼─ free ring ────┼─ rows ────────┼─ heap ─────────┤
    │          │ as written     │ slot_count     │ row_limit      │ row_limit     │ heap_bytes     │
    │          │ at creation    │ x u64          │ x u32          │ x row_stride  │ append-only    │

A slot is one word, ``0`` while no key has claimed it; a key keeps its slot for the life of the segment::

    63            32 31             0
    ├── hash tag ───┼── row + 1 ────┤

A row is a header, the key, the body::

    0       8                16         24          26      28          body_offset        row_stride
    ├ stamp ─┼ event_time_ns ─┼ position ─┼ key_bytes ─┼ flags ─┼ key ───────┼ body ──────────────┤

A key longer than ``key_inline`` bytes is in the heap, and the row holds its heap offset at ``LONG_KEY_OFFSET``. The
body holds the cells of the fields, largest alignment first, then the validity bitmap (bit set: not null). A
variable-size field's cell is a :data:`VAR_CELL` that points into the heap. The last values of fields with a history
(:class:`Ring`) follow the body, in the row itself, so that they change with it in one step.

**The commit rule.** A row that a slot points to is immutable. An update takes a free row, makes its stamp odd, writes
it, makes its stamp even, and publishes it with one release store of the slot word; only then is the old row free.
Stamps only grow, so a reader that finds the slot word and an even stamp unchanged after its copy has copied one
version, whole. ``docs/format.md`` gives the argument instruction by instruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quorin.engine.caches import per_schema
from quorin.engine.format.log_positions import CLOSED_DTYPE, MAX_CLOSED, PARTITION_DTYPE
from quorin.engine.format.partition import MAX_PARTITIONS

if TYPE_CHECKING:
    from quorin.engine.format.field import FeatureField
    from quorin.schema import Schema

MAGIC = b"QUORIN\x1a\n"
PARTITIONED_VERSION = 3
FORMAT_VERSIONS = 1, 2, PARTITIONED_VERSION
"""3 if the deployment has several partitions; else 2 if a field has a history, whose bytes follow the body; else 1."""
BYTE_ORDER_MARK = 0x01020304
CACHE_LINE = 64
WORD_BYTES = 8

NAME_BYTES = 192
_HEADER_FIELDS: tuple[tuple[str, Any, int], ...] = (
    # Written once, before the file gets its name, and covered by static_crc.
    ("magic", "S8", 0),
    ("byte_order", "<u4", 8),
    ("format_version", "<u4", 12),
    ("header_bytes", "<u4", 16),
    ("static_crc", "<u4", 20),
    ("file_bytes", "<u8", 24),
    ("fingerprint", "<u8", 32),
    ("schema_bytes", "<u4", 40),
    ("schema_version", "<u4", 44),
    ("seed", ("<u8", 2), 48),
    ("capacity", "<u8", 64),
    ("row_limit", "<u8", 72),
    ("slot_count", "<u8", 80),
    ("heap_bytes", "<u8", 88),
    ("index_offset", "<u8", 96),
    ("free_offset", "<u8", 104),
    ("rows_offset", "<u8", 112),
    ("heap_offset", "<u8", 120),
    ("row_stride", "<u4", 128),
    ("key_inline", "<u4", 132),
    ("max_id_bytes", "<u4", 136),
    ("body_bytes", "<u4", 140),
    ("created_ns", "<i8", 144),
    ("name", f"S{NAME_BYTES}", 152),
    ("owner", "<u8", 344),
    # 0 and no bits in versions 1 and 2, which have one partition.
    ("partition_count", "<u2", 352),
    ("held", ("<u8", MAX_PARTITIONS // 64), 360),
    # Written once, at the flip, by an atomic exchange; read by every read.
    ("successor", "<u8", 512),
    # Written when the writer changes, the heartbeat by the writer as it goes on.
    ("epoch", "<u8", 768),
    ("writer_pid", "<u8", 776),
    ("writer_active", "<u8", 784),
    ("writer_since_ns", "<i8", 792),
    ("writer_heartbeat_ns", "<i8", 800),
    # Set by who found the lease taken, cleared by who looks at the log once more for it.
    ("writer_called", "<u8", 808),
    # Written with every row, by the writer alone.
    ("entity_count", "<u8", 832),
    ("deleted_count", "<u8", 840),
    ("rows_fresh", "<u8", 848),
    ("ring_head", "<u8", 856),
    ("ring_tail", "<u8", 864),
    ("heap_used", "<u8", 872),
    ("heap_garbage", "<u8", 880),
    ("stamp", "<u8", 888),
    # Written with every log entry; in versions 1 and 2 the first is in use.
    ("partitions", (PARTITION_DTYPE, 16), 896),
)


def _header_dtype(partitions: int, size: int, *more: tuple[str, Any, int]) -> np.dtype[Any]:
    *others, (name, (kind, _), offset) = _HEADER_FIELDS
    names, formats, offsets = zip(*others, (name, (kind, partitions), offset), *more, strict=True)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


HEADER_DTYPE = _header_dtype(16, 4096)
HEADER_BYTES = HEADER_DTYPE.itemsize
PARTITIONED_HEADER_DTYPE = _header_dtype(MAX_PARTITIONS, 12288, ("closed", (CLOSED_DTYPE, MAX_CLOSED), 9088))
"""The header of version 3: the same, but for the table of partitions, and that of closed logs: the one of partition
``p`` of ``c`` is at ``c + p``, which is less by 56 in a segment of 256 partitions."""
HEADER_DTYPES = {dtype.itemsize: dtype for dtype in (HEADER_DTYPE, PARTITIONED_HEADER_DTYPE)}
RESERVED = {HEADER_BYTES: ((520, 768), (816, 832), (1408, 4096)), 12288: ((520, 768), (816, 832))}
"""Bytes behind the static part that no field has, by the size of the header; zero in this version."""
STATIC_BYTES = 512
"""The part of the header that never changes once the file has its name."""

ROW_HEADER_DTYPE = np.dtype(
    {
        "names": ["stamp", "event_time_ns", "position", "key_bytes", "flags"],
        "formats": ["<u8", "<i8", "<u8", "<u2", "<u2"],
        "offsets": [0, 8, 16, 24, 26],
        "itemsize": 28,
    }
)
KEY_OFFSET = ROW_HEADER_DTYPE.itemsize
LONG_KEY_OFFSET = 32
KEY_INLINE_CHOICES = (12, 20, 28)
"""Room for a key in the row: each choice makes the body start at a multiple of eight."""

FLAG_DELETED = 1
FLAG_HAS_NULLS = 2

RING_HEAD = np.dtype([("is_cleared", "<u8"), ("cleared_ns", "<i8"), ("cleared_position", "<u8")])
"""Before the last values of a row's fields: 1 if the entity was deleted once, and the event time and position of the
newest deletion, up to which it has none."""

VAR_CELL = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("count", "<u4")])
"""A variable-size value: its offset in the heap, its size in bytes, its elements. A list of strings stores ``count``
u32 end offsets, then the bytes."""

MAX_ID_BYTES = 0xFFFF
MAX_ROWS = 0xFFFFFFFE
HEAP_ALIGNMENT = 8


def header_offset(field: str, item: int = 0) -> int:
    """Byte offset of a header field, counted from the start of the file."""
    offset = HEADER_DTYPE.fields[field][1]  # type: ignore[index]
    return int(offset) + item * PARTITION_DTYPE.itemsize


def header_word(field: str) -> int:
    """Which of the header's 64-bit words a field is."""
    return header_offset(field) // WORD_BYTES


def partition_offset(field: str, partition: int = 0) -> int:
    """Byte offset of a field of a partition in the header, counted from the start of the file."""
    return header_offset("partitions", partition) + int(PARTITION_DTYPE.fields[field][1])  # type: ignore[index]


def row_offset(field: str) -> int:
    """Byte offset of a row header field, counted from the start of the row."""
    return int(ROW_HEADER_DTYPE.fields[field][1])  # type: ignore[index]


def cell_offset(part: str) -> int:
    """Byte offset of a part of a :data:`VAR_CELL`."""
    return int(VAR_CELL.fields[part][1])  # type: ignore[index]


def align(size: int, to: int) -> int:
    """The next multiple of ``to`` (a power of two) at or above ``size``."""
    return (size + to - 1) & ~(to - 1)


@dataclass(frozen=True)
class Cell:
    """Where one field's value is in the body."""

    field: FeatureField
    offset: int
    null_byte: int
    null_mask: int

    @property
    def byte_count(self) -> int:
        """Bytes in the body: the values themselves, or a :data:`VAR_CELL`."""
        return VAR_CELL.itemsize if self.field.is_variable else self.field.byte_count


@dataclass(frozen=True)
class Ring:
    """Where the last values of a field are behind the body: a u64 count, then one array each of event times (i64),
    positions (u64), tie-breakers (i64, with their sign flipped, so that none is 0; -1 if the schema has no
    tie-breaker), values, and validity (a byte, 1 if not null), newest first. Offsets are in bytes from the start of the
    body.
    """

    cell: Cell
    count: int
    times: int
    positions: int
    ties: int
    values: int
    validity: int
    end: int

    @property
    def capacity(self) -> int:
        """How many values are kept."""
        return self.cell.field.history or 0


@dataclass(frozen=True)
class BodyLayout:
    """The body of a schema's rows: cells in declaration order, the size of it all, and the rings that follow it, up to
    ``end``; ``ring_head`` is where their :data:`RING_HEAD` begins.
    """

    cells: tuple[Cell, ...]
    bitmap_offset: int
    bitmap_bytes: int
    byte_count: int
    ring_head: int
    rings: tuple[Ring, ...]
    end: int


@per_schema
def body_layout(schema: Schema) -> BodyLayout:
    """Lay out the cells: largest alignment first, declaration order within one alignment, the validity bitmap last."""
    offsets: dict[int, int] = {}
    end = 0
    for index in sorted(range(len(schema.fields)), key=lambda i: -alignment(schema.fields[i])):
        offsets[index] = end
        field = schema.fields[index]
        end += VAR_CELL.itemsize if field.is_variable else field.byte_count
    bitmap_bytes = (len(schema.fields) + 7) // 8
    cells = tuple(
        Cell(field, offsets[index], end + index // 8, 1 << index % 8) for index, field in enumerate(schema.fields)
    )
    byte_count = end + bitmap_bytes
    ring_head = align(byte_count, WORD_BYTES)
    rings: list[Ring] = []
    for cell in cells:
        if cell.field.history:
            start = rings[-1].end if rings else ring_head + RING_HEAD.itemsize
            rings.append(_ring(cell, start, has_ties=schema.tie_breaker is not None))
    return BodyLayout(
        cells, end, bitmap_bytes, byte_count, ring_head, tuple(rings), rings[-1].end if rings else byte_count
    )


def _ring(cell: Cell, start: int, *, has_ties: bool) -> Ring:
    capacity = cell.field.history or 0
    times = start + WORD_BYTES
    positions = times + WORD_BYTES * capacity
    ties = positions + WORD_BYTES * capacity
    values = ties + WORD_BYTES * capacity * has_ties
    validity = values + cell.byte_count * capacity
    end = align(validity + capacity, WORD_BYTES)
    return Ring(cell, start, times, positions, ties if has_ties else -1, values, validity, end)


@dataclass(frozen=True)
class SegmentLayout:
    """Sizes and offsets of a segment's sections, in bytes from the start of the file."""

    format_version: int
    header_bytes: int
    partition_count: int
    capacity: int
    row_limit: int
    slot_count: int
    heap_bytes: int
    schema_bytes: int
    index_offset: int
    free_offset: int
    rows_offset: int
    heap_offset: int
    file_bytes: int
    row_stride: int
    key_inline: int
    max_id_bytes: int
    body_bytes: int

    @property
    def body_offset(self) -> int:
        """Where the body starts in a row."""
        return KEY_OFFSET + self.key_inline

    def bytes_of_rows(self, count: int) -> int:
        """How far the file goes up to the end of its first ``count`` rows."""
        return self.rows_offset + self.row_stride * min(count, self.row_limit)


def segment_layout(
    schema: Schema, *, capacity: int, max_id_bytes: int, schema_bytes: int, heap_bytes: int, partition_count: int = 1
) -> SegmentLayout:
    """Lay out a segment for ``capacity`` entities (deleted ones included) and ``heap_bytes`` of variable-size data.

    A few rows are spare, because an update needs a free row before it frees the old one; slots are half as many again
    as entities, which keeps probe sequences within a cache line or two.
    """
    body = body_layout(schema)
    key_inline = next((n for n in KEY_INLINE_CHOICES if n >= max_id_bytes), KEY_INLINE_CHOICES[-1])
    row_stride = align(KEY_OFFSET + key_inline + body.end, 8)
    row_limit = capacity + max(64, min(capacity // 64, 65536))
    slot_count = align(max(64, capacity + capacity // 2), 8)
    version = format_version(schema, partition_count)
    index_offset = align(header_bytes(version) + schema_bytes, CACHE_LINE)
    free_offset = align(index_offset + 8 * slot_count, CACHE_LINE)
    rows_offset = align(free_offset + 4 * row_limit, CACHE_LINE)
    heap_offset = align(rows_offset + row_stride * row_limit, CACHE_LINE)
    return SegmentLayout(
        format_version=version,
        header_bytes=header_bytes(version),
        partition_count=partition_count,
        capacity=capacity,
        row_limit=row_limit,
        slot_count=slot_count,
        heap_bytes=align(heap_bytes, CACHE_LINE),
        schema_bytes=schema_bytes,
        index_offset=index_offset,
        free_offset=free_offset,
        rows_offset=rows_offset,
        heap_offset=heap_offset,
        file_bytes=heap_offset + align(heap_bytes, CACHE_LINE),
        row_stride=row_stride,
        key_inline=key_inline,
        max_id_bytes=max_id_bytes,
        body_bytes=body.byte_count,
    )


def format_version(schema: Schema, partition_count: int) -> int:
    """The version of the format that a segment of a schema has."""
    return PARTITIONED_VERSION if partition_count > 1 else FORMAT_VERSIONS[bool(body_layout(schema).rings)]


def header_bytes(version: int) -> int:
    """The size of the header in a version of the format."""
    return (PARTITIONED_HEADER_DTYPE if version == PARTITIONED_VERSION else HEADER_DTYPE).itemsize


def alignment(field: FeatureField) -> int:
    """What a field's cell is aligned to, in bytes."""
    return 8 if field.is_variable else field.dtype.item_size


def _check_layout() -> None:
    """Fields of the header and of a row follow each other without overlap, words are aligned, sizes are as promised."""
    for record in (*HEADER_DTYPES.values(), ROW_HEADER_DTYPE):
        end = 0
        for name in record.names or ():
            field: tuple[Any, ...] = record.fields[name]  # type: ignore[index]
            kind, offset = field[0], field[1]
            _check(offset >= end, f"{name} overlaps its neighbour")
            size = kind.base.itemsize
            _check(size not in (2, 4, 8) or offset % size == 0, f"{name} is not aligned")
            end = offset + kind.itemsize
        _check(end <= record.itemsize, f"{record.names} is longer than {record.itemsize} bytes")
    sizes = (HEADER_BYTES, PARTITION_DTYPE.itemsize, VAR_CELL.itemsize)
    _check(sizes == (4096, 32, 16), f"a header, a partition and a cell have {sizes} bytes")
    end = header_offset("partitions", 16)
    _check(end == RESERVED[HEADER_BYTES][-1][0], f"the table of partitions ends at {end}")
    end = header_offset("partitions", MAX_PARTITIONS) + MAX_CLOSED * CLOSED_DTYPE.itemsize
    _check(end == PARTITIONED_HEADER_DTYPE.itemsize, f"the table of closed logs ends at {end}")
    _check(header_offset("successor") == STATIC_BYTES, "successor must follow the static part")
    for first_of_line in ("successor", "epoch", "entity_count", "partitions"):
        _check(header_offset(first_of_line) % CACHE_LINE == 0, f"{first_of_line} must begin a cache line")
    _check(all((KEY_OFFSET + n) % 8 == 0 for n in KEY_INLINE_CHOICES), "what follows the key is not aligned")
    _check(
        KEY_OFFSET + min(KEY_INLINE_CHOICES) >= LONG_KEY_OFFSET + 8, "a long key's fields need more than a short key"
    )


def _check(holds: bool, problem: str) -> None:
    """As ``assert``, but under ``python -O`` as well, which must not change a source of the kernels: see
    :func:`quorin.engine.kernels.cache.digest`.
    """
    if not holds:
        raise AssertionError(problem)


_check_layout()
