"""The kernels of exact vector search: every row's distance to a query, and the nearest kept.

They read rows as :mod:`quorin.engine.kernels.read` does: what a writer touched meanwhile is read again. Sums run in
float64 over eight lanes, element ``i`` in lane ``i % 8``, the lanes added by halves, and the elements after the last
full eight added one by one; so the result is the same on every machine, and the same as NumPy's in that order.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quorin.engine.format.abi import (
    CONTENDED,
    CORRUPT,
    D_HEAP,
    D_HEAP_BYTES,
    D_INDEX,
    D_MAX_ID_BYTES,
    D_SEED_0,
    D_SEED_1,
    D_SLOT_COUNT,
    METRIC_COSINE,
    METRIC_L2,
    V_CELL,
    V_DOUBLE,
    V_METRIC,
    V_NULL_BYTE,
    V_NULL_MASK,
    V_SIZE,
    V_VARIABLE,
)
from quorin.engine.kernels.compiling import helper, unlocked_kernel
from quorin.engine.kernels.hashing import hash_id
from quorin.engine.kernels.memory import (
    array_address,
    copy_bytes,
    load_acquire,
    load_f32,
    load_f64,
    load_i64,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    prefetch,
)
from quorin.engine.kernels.read import MAX_ATTEMPTS, key_equals, load_offset, row_address
from quorin.engine.kernels.rows import (
    CELL_BYTES,
    CELL_COUNT,
    DELETED,
    FLAGS,
    KEY_BYTES,
    home_slot,
    is_row,
    is_unchanged,
    key_address,
    probe,
    slot_address,
)

_ROWS_AHEAD, _CELLS_AHEAD = 16, 8
LANES = 8

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_FLOATS = ir.VectorType(ir.FloatType(), LANES)


def _lane_sum(item, item_bytes, term):
    """An intrinsic: the lanes' sum of ``term`` over ``blocks`` of eight items at ``left`` and float64 at ``right``."""

    @intrinsic
    def lane_sum(_typing, left, right, blocks):  # noqa: ARG001 - they name the arguments
        def generate(_context, builder, _signature, arguments):
            left, right, blocks = arguments
            total = cgutils.alloca_once_value(builder, ir.Constant(_DOUBLES, [0.0] * LANES))
            with cgutils.for_range(builder, blocks) as loop:
                a = _load(builder, left, loop.index, item, item_bytes)
                b = _load(builder, right, loop.index, _DOUBLES, 8)
                builder.store(builder.fadd(builder.load(total), term(builder, a, b)), total)
            lanes = [builder.extract_element(builder.load(total), _I32(lane)) for lane in range(LANES)]
            while len(lanes) > 1:
                half = len(lanes) // 2
                lanes = [builder.fadd(lanes[lane], lanes[lane + half]) for lane in range(half)]
            return lanes[0]

        return types.float64(types.int64, types.int64, types.int64), generate

    return lane_sum


def _load(builder, address, block, kind, item_bytes):
    offset = builder.add(address, builder.mul(block, _I64(LANES * item_bytes)))
    items = builder.load(builder.inttoptr(offset, kind.as_pointer()), align=1)
    return items if kind is _DOUBLES else builder.fpext(items, _DOUBLES)


def _squared_difference(builder, a, b):
    difference = builder.fsub(a, b)
    return builder.fmul(difference, difference)


def _product(builder, a, b):
    return builder.fmul(a, b)


def _square(builder, a, _b):
    return builder.fmul(a, a)


_differences_f32, _differences_f64 = (
    _lane_sum(_FLOATS, 4, _squared_difference),
    _lane_sum(_DOUBLES, 8, _squared_difference),
)
_products_f32, _products_f64 = _lane_sum(_FLOATS, 4, _product), _lane_sum(_DOUBLES, 8, _product)
_squares_f32, _squares_f64 = _lane_sum(_FLOATS, 4, _square), _lane_sum(_DOUBLES, 8, _square)


@unlocked_kernel
def search_rows(segment, query, query_squares, allowed, distances, key_sizes, keys, key_step):
    """Find the ``distances.size`` nearest rows; returns how many there are, or ``-CONTENDED`` or ``-CORRUPT``.

    ``query`` is the address of ``V_SIZE`` float64. ``allowed`` has a byte a slot, or none when all rows count. What was
    found is left in no order: ``distances``, ``key_sizes``, and key ``i`` at ``keys[i * key_step]``; ``keys`` has room
    for one more. Of equally distant rows those with the smaller keys are kept. Distances that are no number, nulls and
    vectors of another length do not count.
    """
    most, found, worst = distances.size, 0, 0
    scratch = array_address(keys) + most * key_step
    for slot in range(segment[D_SLOT_COUNT]):
        if allowed.size > 0 and allowed[slot] == 0:
            continue
        _prefetch_ahead(segment, slot)
        address = slot_address(segment, slot, 0)
        for _attempt in range(MAX_ATTEMPTS):
            word = load_acquire(address)
            if word == 0:
                break
            if not is_row(segment, word):
                return -CORRUPT
            row = row_address(segment, word)
            stamp = load_acquire(row)
            source = _vector_of(segment, row)
            key_bytes = 0
            distance = 0.0
            if source > 0:
                distance = _distance(segment, source, query, query_squares)
                if distance == distance and (found < most or distance <= distances[worst]):
                    key_bytes = _copy_key(segment, row, scratch)
            if not is_unchanged(row, stamp, address, word):
                continue
            if source < 0 or key_bytes < 0:
                return -CORRUPT
            if key_bytes > 0:
                index = worst
                if found < most:
                    index = found
                    found += 1
                elif distance == distances[worst] and not _key_before(
                    scratch, key_bytes, array_address(keys) + worst * key_step, key_sizes[worst]
                ):
                    break
                distances[index] = distance
                key_sizes[index] = key_bytes
                copy_bytes(array_address(keys) + index * key_step, scratch, key_bytes)
                worst = _worst(distances, key_sizes, array_address(keys), key_step, found)
            break
        else:
            return -CONTENDED
    return found


@unlocked_kernel
def mark_slots(segment, offsets, offset_bytes, data, count, allowed):
    """Set ``allowed`` of the slots of so many ids, an Arrow string column as
    :func:`quorin.engine.kernels.read.read_many` takes it; ids that have none are skipped. Returns 0, or -CONTENDED.
    """
    k0, k1 = np.uint64(segment[D_SEED_0]), np.uint64(segment[D_SEED_1])
    for i in range(count):
        start = load_offset(offsets, offset_bytes, i)
        size = load_offset(offsets, offset_bytes, i + 1) - start
        h = hash_id(data + start, size, k0, k1)
        home = home_slot(segment, h)
        attempts = 0
        distance = probe(segment, home, 0, segment[D_SLOT_COUNT], h)
        while distance < segment[D_SLOT_COUNT]:
            address = slot_address(segment, home, distance)
            word = load_acquire(address)
            if word == 0:
                break
            if is_row(segment, word):
                row = row_address(segment, word)
                stamp = load_acquire(row)
                same_key = key_equals(segment, row, data + start, size)
                if not is_unchanged(row, stamp, address, word):
                    attempts += 1
                    if attempts == MAX_ATTEMPTS:
                        return -CONTENDED
                    continue
                if same_key:
                    allowed[(address - segment[D_INDEX]) // 8] = 1
                    break
            distance = probe(segment, home, distance + 1, segment[D_SLOT_COUNT], h)
    return 0


@unlocked_kernel
def list_keys(segment, slot, ends, data, room):
    """Copy the keys of live rows to ``data`` from a slot on, as far as ``ends`` and ``data`` have room; ``ends[i]`` is
    where key ``i`` ends. Leaves in ``room`` how many keys and the slot to go on from; returns 0, or a negative code.
    """
    most_bytes = data.size - segment[D_MAX_ID_BYTES]
    count, end = 0, 0
    while slot < segment[D_SLOT_COUNT] and count < ends.size and end <= most_bytes:
        address = slot_address(segment, slot, 0)
        for _attempt in range(MAX_ATTEMPTS):
            word = load_acquire(address)
            if word == 0:
                break
            if not is_row(segment, word):
                return -CORRUPT
            row = row_address(segment, word)
            stamp = load_acquire(row)
            flags = load_u16(row + FLAGS)
            key_bytes = _copy_key(segment, row, array_address(data) + end)
            if not is_unchanged(row, stamp, address, word):
                continue
            if key_bytes < 0:
                return -CORRUPT
            if flags & DELETED == 0:
                end += key_bytes
                ends[count] = end
                count += 1
            break
        else:
            return -CONTENDED
        slot += 1
    room[0] = count
    room[1] = slot
    return 0


@helper
def _vector_of(segment, row):
    """The address of a row's vector; 0 if it has none of the right size, -1 if its cell points nowhere."""
    if load_u16(row + FLAGS) & DELETED != 0 or load_u8(row + segment[V_NULL_BYTE]) & segment[V_NULL_MASK] == 0:
        return 0
    cell = row + segment[V_CELL]
    if segment[V_VARIABLE] == 0:
        return cell
    if load_u32(cell + CELL_COUNT) != segment[V_SIZE]:
        return 0
    offset = load_i64(cell)
    if offset < 0 or offset > segment[D_HEAP_BYTES] - load_u32(cell + CELL_BYTES):
        return -1
    return segment[D_HEAP] + offset


@helper
def _distance(segment, source, query, query_squares):
    size, blocks = segment[V_SIZE], segment[V_SIZE] // LANES
    tail = blocks * LANES
    if segment[V_METRIC] == METRIC_L2:
        if segment[V_DOUBLE]:
            total = _differences_f64(source, query, blocks)
            for i in range(tail, size):
                difference = load_f64(source + 8 * i) - load_f64(query + 8 * i)
                total += difference * difference
        else:
            total = _differences_f32(source, query, blocks)
            for i in range(tail, size):
                difference = np.float64(load_f32(source + 4 * i)) - load_f64(query + 8 * i)
                total += difference * difference
        return math.sqrt(total)
    if segment[V_DOUBLE]:
        total = _products_f64(source, query, blocks)
        for i in range(tail, size):
            total += load_f64(source + 8 * i) * load_f64(query + 8 * i)
    else:
        total = _products_f32(source, query, blocks)
        for i in range(tail, size):
            total += np.float64(load_f32(source + 4 * i)) * load_f64(query + 8 * i)
    if segment[V_METRIC] != METRIC_COSINE:
        return -total
    if segment[V_DOUBLE]:
        squares = _squares_f64(source, query, blocks)
        for i in range(tail, size):
            squares += load_f64(source + 8 * i) * load_f64(source + 8 * i)
    else:
        squares = _squares_f32(source, query, blocks)
        for i in range(tail, size):
            squares += np.float64(load_f32(source + 4 * i)) * np.float64(load_f32(source + 4 * i))
    length = math.sqrt(squares) * math.sqrt(query_squares)
    return 1.0 if length == 0.0 else 1.0 - total / length


@helper
def _copy_key(segment, row, target):
    """Copy a row's key; its size, or -1 if it points nowhere, as that of a row that is being replaced may."""
    count = load_u16(row + KEY_BYTES)
    if count > segment[D_MAX_ID_BYTES]:
        return -1
    key = key_address(segment, row, count)
    if key < 0:
        return -1
    copy_bytes(target, key, count)
    return count


@helper
def _prefetch_ahead(segment, slot):
    if slot + _ROWS_AHEAD >= segment[D_SLOT_COUNT]:
        return
    word = load_u64(segment[D_INDEX] + 8 * (slot + _ROWS_AHEAD))
    if word != 0:
        prefetch(row_address(segment, word))
        prefetch(row_address(segment, word) + segment[V_CELL])
    word = load_u64(segment[D_INDEX] + 8 * (slot + _CELLS_AHEAD))
    if segment[V_VARIABLE] != 0 and word != 0 and is_row(segment, word):
        vector = segment[D_HEAP] + load_i64(row_address(segment, word) + segment[V_CELL])
        prefetch(vector)
        prefetch(vector + 64)


@helper
def _worst(distances, key_sizes, keys, key_step, found):
    """The row to give up for a nearer one."""
    worst = 0
    for i in range(1, found):
        if distances[i] > distances[worst] or (
            distances[i] == distances[worst]
            and _key_before(keys + worst * key_step, key_sizes[worst], keys + i * key_step, key_sizes[i])
        ):
            worst = i
    return worst


@helper
def _key_before(left, left_bytes, right, right_bytes):
    for i in range(min(left_bytes, right_bytes)):
        a, b = load_u8(left + i), load_u8(right + i)
        if a != b:
            return a < b
    return left_bytes < right_bytes
