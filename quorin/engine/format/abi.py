"""What Python hands to the kernels and gets back: flat int64 arrays and codes, item by item.

Kernels take flat arrays because one array costs a call about 30 ns and a dozen scalars cost a dozen times that. Both
sides read the indexes from here.
"""

from __future__ import annotations

# The descriptor: where everything of an attached segment is. Addresses, sizes in bytes, counts.
(
    D_HEADER, D_INDEX, D_SLOT_COUNT, D_ROWS, D_ROW_STRIDE, D_HEAP, D_HEAP_BYTES, D_SEED_0, D_SEED_1,
    D_KEY_INLINE, D_BODY_OFFSET, D_BODY_BYTES, D_FREE, D_ROW_LIMIT, D_CAPACITY, D_MAX_ID_BYTES, D_COUNTERS,
    D_PARTITION_SHIFT,
) = range(18)  # fmt: skip
DESCRIPTOR_ITEMS = 18
"""``D_COUNTERS`` is the address of a word with the address of the counters, so that a forked child can move on to
counters of its own while the plans that it inherited stay as they are. ``D_PARTITION_SHIFT`` is by how many bits the
pinned hash of an id is shifted to get its partition, 0 with one partition."""

# What reads count, as words of a process's counters. Those of batches are added to atomically, since batches run
# without the GIL; that of single reads is a plain word, which the GIL keeps to one thread at a time.
W_READS, W_BATCHES, W_BATCH_ROWS, W_MISSING = range(4)
W_READ_NS, W_BATCH_NS = 4, 5
TIME_BUCKETS = 52
W_READ_TIMES, W_BATCH_TIMES = 6, 6 + TIME_BUCKETS
READ_WORDS = 6 + 2 * TIME_BUCKETS
READ_SAMPLES, BATCH_SAMPLES = 64, 8
"""One in so many single reads, and batches, is timed."""
FIRST_BUCKET = 4
"""Times are counted in half octaves: bucket ``2 i`` holds 2^(i+4) up to 1.5 times that, ``2 i + 1`` the rest up to
2^(i+5) ns; the first and the last hold what is beyond."""

# A read plan: a descriptor, then what to copy from a row to the output, as spans, as patches for null fields, and as
# age limits, the shortest first. Row i of the output begins, for each span by itself, at its target plus i times its
# step; so a plan can fill rows as well as columns.
P_OUT_BYTES, P_SPAN_COUNT, P_PATCH_COUNT, P_MISSING, P_POSITIONS, P_AGE_COUNT, P_SPANS = range(
    DESCRIPTOR_ITEMS, DESCRIPTOR_ITEMS + 7
)
"""``P_POSITIONS`` is the address of an int64 array that the log positions of the rows go to, 0 for none."""
SPAN_SOURCE, SPAN_TARGET, SPAN_STEP, SPAN_COUNT, SPAN_CODE = range(5)
SPAN_ITEMS = 5
PATCH_NULL_BYTE, PATCH_NULL_MASK, PATCH_TARGET, PATCH_STEP, PATCH_COUNT, PATCH_BITS = range(6)
PATCH_ITEMS = 6
AGE_NS, AGE_TARGET, AGE_STEP, AGE_COUNT, AGE_BITS, AGE_NULL_TARGET, AGE_NULL_STEP, AGE_NULL_MASK = range(8)
AGE_ITEMS = 8
"""What a field reads as in a row that is older: ``AGE_COUNT`` float32 whose bits are ``AGE_BITS``, or, in a plan whose
missing rows are zeros, so many zero bytes, and a cleared validity bit."""

RAW_BYTES = 0
"""A span's code when it copies bytes as they are; else it is the code of the dtype that it turns into float32."""
CONSTANT, ZEROS = -1, -2
"""Codes of spans without a source, for fields that are not stored any more: ``SPAN_COUNT`` float32 whose bits are in
``SPAN_SOURCE``, or so many zero bytes."""

MISSING_ZEROS, MISSING_FLOAT32 = range(2)
"""What a row that is not found reads as: zero bytes, or the float32 that the caller names."""

# What a read returns.
OUTDATED, FOUND, MISSING, MOVED, CONTENDED, NOT_ASCII, BAD_ID, BAD_OUT, CORRUPT, AHEAD = range(-1, 9)
"""``OUTDATED`` is found, with a value over its age limit, so a row is there up to ``FOUND``; ``AHEAD`` was written
after the position asked for.
"""
ANY_POSITION = 2**63 - 1
"""The position asked for when a row of any will do."""
STOPPED, CODES = -1, 16
"""A batch that stopped says where and why in one negative number: ``STOPPED - CODES * row - code``."""

# What a scan reports besides the slot that it stopped at: rows copied, and FOUND or why it stopped.
S_ROWS, S_CODE = range(2)
SCAN_ITEMS = 2
LIVE_ROWS = -1
"""In place of the least position of the rows of a scan: all that are not deleted. With a position, a scan has deletions
too."""

# A column of a batch that is written, as an item of the column table.
(
    C_CELL, C_NULL_BYTE, C_NULL_MASK, C_KIND, C_VALUES, C_ITEM_BYTES, C_VALIDITY, C_VALIDITY_OFFSET,
    C_OFFSETS, C_OFFSET_BYTES, C_INNER_OFFSETS, C_INNER_OFFSET_BYTES,
) = range(12)  # fmt: skip
COLUMN_ITEMS = 12
KIND_FIXED, KIND_VARIABLE, KIND_TEXT_LIST = range(3)

# Where a column of the table is found in an Arrow batch: the batch's column, what is in the table unchanged, bytes
# an element, and the size of its lists (0: no lists, -1: of any size).
(
    A_COLUMN, A_CELL, A_NULL_BYTE, A_NULL_MASK, A_KIND, A_CELL_BYTES, A_ELEMENT_BYTES, A_LIST_SIZE,
) = range(8)  # fmt: skip
ARROW_ITEMS = 8

# A batch that is written: how many rows, how they are applied, where in the column table the tie-breaker begins (-1:
# none); addresses of the ids (an Arrow string column, with the size of its offsets), of the event times, and of the log
# positions, with the bytes from one position to the next (0: one for all rows); the address of the table of rings, and
# how many there are.
(
    B_ROWS, B_MODE, B_TIE, B_OFFSETS, B_OFFSET_BYTES, B_IDS, B_EVENT_TIMES, B_POSITIONS, B_POSITION_STEP, B_RINGS,
    B_RING_COUNT,
) = range(11)  # fmt: skip

# The table of rings, the last values of fields with a history: where their head begins in the body and how many bytes
# they all take; then for each the number of its values, where its parts begin in the body (ties -1: none), the bytes of
# a value, and where its column begins in the column table (-1: not in this batch).
G_HEAD, G_BYTES = range(2)
G_HEAD_ITEMS = 2
G_CAPACITY, G_COUNT, G_TIMES, G_POSITIONS, G_TIES, G_VALUES, G_VALIDITY, G_VALUE_BYTES, G_COLUMN = range(9)
G_RING_ITEMS = 9

# How rows are applied, and what a write returns.
UPSERT, DELETE, PARTIAL = 1, 2, 3
DONE, ROWS_FULL, HEAP_FULL = range(3)
R_NEXT, R_APPLIED, R_CREATED = range(3)
RESULT_ITEMS = 3

# How rows are carried over into the next generation: a head, then so many spans of the body, validity bits and heap
# cells. ``X_SOURCE`` and ``X_TARGET`` are offsets in the body.
X_SPAN_COUNT, X_BIT_COUNT, X_CELL_COUNT, X_FLAGS = range(4)
X_HEAD_ITEMS = 4
X_SOURCE, X_TARGET, X_COUNT, X_FROM, X_TO = range(5)
X_SPAN_ITEMS = 5
X_SOURCE_BYTE, X_SOURCE_MASK, X_TARGET_BYTE, X_TARGET_MASK = range(4)
X_BIT_ITEMS = 4
"""A span or cell with equal dtype codes in ``X_FROM`` and ``X_TO`` is copied as bytes (``X_COUNT`` of them), else as
elements that are widened. A cell has the items of a span, with the offset of a heap cell on either side."""

# A search for vectors: a descriptor, then where the vectors are in a row, and what to search for.
V_CELL, V_NULL_BYTE, V_NULL_MASK, V_VARIABLE, V_DOUBLE, V_SIZE, V_METRIC = range(DESCRIPTOR_ITEMS, DESCRIPTOR_ITEMS + 7)
SEARCH_ITEMS = DESCRIPTOR_ITEMS + 7
METRIC_L2, METRIC_COSINE, METRIC_INNER_PRODUCT = range(3)

# A model's matrix: bytes a row before the validity bits, bytes of bits a row, columns of the whole matrix, columns of
# this plan; then the columns: the dtype's code, where values begin in a row of the buffer, elements, the validity bit,
# the first column of the matrix, the float64 of what is missing, and where its categories are in the plan (-1: none).
M_BITS_START, M_BITS_BYTES, M_WIDTH, M_COLUMNS = range(4)
M_HEAD_ITEMS = 4
M_DTYPE, M_START, M_COUNT, M_NULL_BYTE, M_NULL_MASK, M_TARGET, M_MISSING, M_CATEGORIES = range(8)
M_COLUMN_ITEMS = 8
# Categories: a hash table of a power of two of slots with open addressing. A slot is where the key is among the bytes
# of all keys, its size (-1: an empty slot), and the float64 of its code.
T_SLOT_COUNT, T_UNKNOWN, T_UNKNOWN_IS_ERROR = range(3)
T_HEAD_ITEMS = 3
T_KEY, T_KEY_BYTES, T_CODE = range(3)
T_SLOT_ITEMS = 3

# Columns of served requests, unpacked from a ring: the rows of an int64 matrix, and of one with the ends of texts.
U_REQUEST, U_ROW, U_VIEW, U_TIME, U_DESCRIPTION, U_POSITION, U_EVENT_TIME = range(7)
UNPACKED_NUMBERS = 7
U_KEYS, U_IDS, U_DATA = range(3)
UNPACKED_TEXTS = 3
