"""Age limits: values of a row that is too old are withheld from what a read returns."""

from __future__ import annotations

from quorin.engine.format.abi import (
    AGE_BITS,
    AGE_COUNT,
    AGE_ITEMS,
    AGE_NS,
    AGE_NULL_MASK,
    AGE_NULL_STEP,
    AGE_NULL_TARGET,
    AGE_STEP,
    AGE_TARGET,
    FOUND,
    MISSING_FLOAT32,
    OUTDATED,
    P_AGE_COUNT,
    P_MISSING,
    P_PATCH_COUNT,
    P_SPAN_COUNT,
    P_SPANS,
    PATCH_ITEMS,
    SPAN_ITEMS,
)
from quorin.engine.kernels.compiling import helper
from quorin.engine.kernels.memory import load_i64, load_u8, store_u8, store_u32
from quorin.engine.kernels.rows import EVENT_TIME


@helper
def withhold(segment, row, out, index, now):
    """Let the values that are over their age limits read as null; OUTDATED if there are any, else FOUND."""
    event_time = load_i64(row + EVENT_TIME)
    at = P_SPANS + SPAN_ITEMS * segment[P_SPAN_COUNT] + PATCH_ITEMS * segment[P_PATCH_COUNT]
    code = FOUND
    for _ in range(segment[P_AGE_COUNT]):
        # Subtracting from now, which is above 0, cannot overflow; an event time may be any integer.
        if event_time >= now - segment[at + AGE_NS]:
            break
        code = OUTDATED
        target = out + segment[at + AGE_TARGET] + index * segment[at + AGE_STEP]
        if segment[P_MISSING] == MISSING_FLOAT32:
            for i in range(segment[at + AGE_COUNT]):
                store_u32(target + 4 * i, segment[at + AGE_BITS])
        else:
            for i in range(segment[at + AGE_COUNT]):
                store_u8(target + i, 0)
            bits = out + segment[at + AGE_NULL_TARGET] + index * segment[at + AGE_NULL_STEP]
            store_u8(bits, load_u8(bits) & ~segment[at + AGE_NULL_MASK])
        at += AGE_ITEMS
    return code
