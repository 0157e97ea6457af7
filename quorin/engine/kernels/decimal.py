"""Integers as decimal text, which they are as entity ids."""

from __future__ import annotations

import numpy as np

from quorin.engine.kernels.compiling import inlined, unlocked_kernel
from quorin.engine.kernels.memory import store_u8

_TEN = np.uint64(10)
_MINUS, _ZERO = ord("-"), ord("0")


@unlocked_kernel
def write_decimals(numbers, ends, text):
    """Write int64 numbers one after the other to the address ``text``, which has room for 20 bytes each.

    ``ends`` are where each begins, as in an Arrow string array: one more than there are numbers.
    """
    at = 0
    ends[0] = 0
    for i in range(numbers.size):
        number = numbers[i]
        rest = np.uint64(number)
        if number < 0:
            store_u8(text + at, _MINUS)
            at += 1
            rest = ~rest + np.uint64(1)
        at += digit_count(rest)
        ends[i + 1] = at
        place = text + at
        while True:
            place -= 1
            store_u8(place, _ZERO + np.int64(rest % _TEN))
            rest //= _TEN
            if rest == 0:
                break


@inlined
def digit_count(number):
    """How many decimal digits a uint64 has."""
    count = 1
    while number >= _TEN:
        number //= _TEN
        count += 1
    return count
