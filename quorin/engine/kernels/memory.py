"""Loads, stores, fences and prefetches on raw addresses, which numba itself does not offer.

Each is one LLVM instruction. The ordered ones are emitted as such (``load atomic … acquire`` and so on), so that they
are right on ARM as well as on x86-64, where acquire and release cost nothing beyond keeping the compiler from
reordering.

Addresses are int64, words uint64: numba turns an int64 met by a uint64 into a float64.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quorin.engine.kernels.compiling import inlined, kernel

_I8, _I16, _I32, _I64, _I128 = (ir.IntType(bits) for bits in (8, 16, 32, 64, 128))
_CLOCK_REALTIME, _CLOCK_MONOTONIC = 0, 1
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()


def _loader(result, ir_type, convert=None):
    @intrinsic
    def load(_typing, address):
        def generate(_context, builder, _signature, arguments):
            value = builder.load(builder.inttoptr(arguments[0], ir_type.as_pointer()), align=1)
            return convert(builder, value) if convert else value

        return result(types.int64), generate

    return load


def _storer(ir_type, value_type, convert=None):
    @intrinsic
    def store(_typing, address, value):
        def generate(_context, builder, _signature, arguments):
            value = convert(builder, arguments[1]) if convert else arguments[1]
            builder.store(value, builder.inttoptr(arguments[0], ir_type.as_pointer()), align=1)
            return _context.get_dummy_value()

        return types.void(types.int64, value_type), generate

    return store


def _widen(builder, value):
    return builder.zext(value, _I64)


def _narrow(ir_type):
    return lambda builder, value: builder.trunc(value, ir_type)


load_u8 = _loader(types.int64, _I8, _widen)
load_u16 = _loader(types.int64, _I16, _widen)
load_u32 = _loader(types.int64, _I32, _widen)
load_u64 = _loader(types.uint64, _I64)
load_i64 = _loader(types.int64, _I64)
load_i32 = _loader(types.int64, _I32, lambda builder, value: builder.sext(value, _I64))
load_f32 = _loader(types.float32, _FLOAT)
load_f64 = _loader(types.float64, _DOUBLE)

store_u8 = _storer(_I8, types.int64, _narrow(_I8))
store_u16 = _storer(_I16, types.int64, _narrow(_I16))
store_u32 = _storer(_I32, types.int64, _narrow(_I32))
store_u64 = _storer(_I64, types.uint64)
store_i64 = _storer(_I64, types.int64)
store_f32 = _storer(_FLOAT, types.float32)
store_f64 = _storer(_DOUBLE, types.float64)


@intrinsic
def load_acquire(_typing, address):
    """The aligned word at ``address``; no later load or store moves before it."""

    def generate(_context, builder, _signature, arguments):
        return builder.load_atomic(builder.inttoptr(arguments[0], _I64.as_pointer()), "acquire", 8)

    return types.uint64(types.int64), generate


@intrinsic
def store_release(_typing, address, word):
    """Store an aligned word; no earlier load or store moves after it."""

    def generate(context, builder, _signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        builder.store_atomic(arguments[1], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


@intrinsic
def exchange(_typing, address, expected, word):
    """Store ``word`` if the aligned word at ``address`` is ``expected``; whether it was. One atomic step."""

    def generate(_context, builder, _signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        outcome = builder.cmpxchg(pointer, arguments[1], arguments[2], "acq_rel", "acquire")
        return builder.zext(builder.extract_value(outcome, 1), _I64)

    return types.int64(types.int64, types.uint64, types.uint64), generate


@intrinsic
def add_word(_typing, address, count):
    """Add to an aligned word in one atomic step, in no order with anything else; returns its old value."""

    def generate(_context, builder, _signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "monotonic")

    return types.int64(types.int64, types.int64), generate


def _clock(clock):
    @intrinsic
    def now(_typing):
        def generate(_context, builder, _signature, _arguments):
            moment = cgutils.alloca_once(builder, ir.ArrayType(_I64, 2))
            kind = ir.FunctionType(_I32, [_I32, moment.type])
            function = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
            builder.call(function, [_I32(clock), moment])
            seconds, nanoseconds = (builder.load(cgutils.gep_inbounds(builder, moment, 0, i)) for i in (0, 1))
            return builder.add(builder.mul(seconds, _I64(1_000_000_000)), nanoseconds)

        return types.int64(), generate

    return now


now_ns = _clock(_CLOCK_MONOTONIC)
"""The monotonic clock, in ns."""
wall_ns = _clock(_CLOCK_REALTIME)
"""The system's clock, in ns since the epoch, as ``time.time_ns()``."""


def _fence(ordering):
    @intrinsic
    def fence(_typing):
        def generate(context, builder, _signature, _arguments):
            builder.fence(ordering)
            return context.get_dummy_value()

        return types.void(), generate

    return fence


fence_acquire = _fence("acquire")
fence_release = _fence("release")


@intrinsic
def prefetch(_typing, address):
    """Ask for the cache line at ``address``; harmless whatever the address."""

    def generate(context, builder, _signature, arguments):
        pointer = builder.inttoptr(arguments[0], _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def copy_bytes(_typing, target, source, count):
    """Copy ``count`` bytes between ranges that do not overlap."""

    def generate(context, builder, _signature, arguments):
        pointers = [builder.inttoptr(address, _I8.as_pointer()) for address in arguments[:2]]
        cgutils.raw_memcpy(builder, pointers[0], pointers[1], arguments[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def fold(_typing, left, right):
    """The exclusive-or of the two halves of a 128-bit product."""

    def generate(_context, builder, _signature, arguments):
        product = builder.mul(builder.zext(arguments[0], _I128), builder.zext(arguments[1], _I128))
        return builder.xor(builder.trunc(product, _I64), builder.trunc(builder.lshr(product, _I128(64)), _I64))

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def scale(_typing, word, count):
    """Map a 64-bit word onto 0 … count-1 by its high bits (Lemire's multiply-shift)."""

    def generate(_context, builder, _signature, arguments):
        product = builder.mul(builder.zext(arguments[0], _I128), builder.zext(arguments[1], _I128))
        return builder.trunc(builder.lshr(product, _I128(64)), _I64)

    return types.int64(types.uint64, types.int64), generate


@intrinsic
def text_address(_typing, text):
    """The address of the characters of a ``str``; UTF-8 if it is ASCII."""

    def generate(context, builder, _signature, arguments):
        proxy = cgutils.create_struct_proxy(types.unicode_type)(context, builder, value=arguments[0])
        return builder.ptrtoint(proxy.data, _I64)

    return types.int64(types.unicode_type), generate


@intrinsic
def array_address(_typing, array):
    """Where an array's items begin. NumPy's ``array.ctypes.data`` is a uint64 to numba."""

    def generate(context, builder, signature, arguments):
        proxy = context.make_array(signature.args[0])(context, builder, value=arguments[0])
        return builder.ptrtoint(proxy.data, _I64)

    return types.int64(array), generate


@inlined
def load_offset(offsets, offset_bytes, i):
    """Arrow's offset ``i``, of 4 or 8 bytes."""
    if offset_bytes == 4:
        return load_i32(offsets + 4 * i)
    return load_i64(offsets + 8 * i)


@kernel
def load_word(address):
    """:func:`load_acquire` for Python."""
    return load_acquire(address)


@kernel
def store_word(address, word):
    """:func:`store_release` for Python."""
    store_release(address, word)


@kernel
def exchange_word(address, expected, word):
    """:func:`exchange` for Python."""
    return exchange(address, expected, word)
