"""Numbers at addresses: bf16 read as float32 and rounded when written, for loops that the compiler vectorises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

copy: Any = cgutils.raw_memcpy  # it has no types
HALF, SINGLE, LONG, WORD = ir.IntType(16), ir.FloatType(), ir.IntType(64), ir.IntType(32)
NO_NUMBER, NEAREST = 0x7FC0, 0x7FFF
BIAS, MANTISSA = 127, 23  # of float32


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's, whose type says that it is called with the compiler's own first argument."""
    made: Callable[..., Any] = extending.intrinsic(function)
    return made


def _pointer(builder: Any, kind: Any, address: Any, index: Any) -> Any:
    return builder.gep(builder.inttoptr(address, kind.as_pointer()), [index])


@intrinsic
def address_of(_: Any, data: Any) -> Any:
    """The address that a C function was given."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        return builder.ptrtoint(values[0], LONG)

    return types.int64(data), build


@intrinsic
def long_at(_: Any, address: Any, index: Any) -> Any:
    """An int64 out of an array."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        return builder.load(_pointer(builder, LONG, *values))

    return types.int64(types.int64, types.int64), build


@intrinsic
def put_long(_: Any, address: Any, index: Any, value: Any) -> Any:
    """Write an int64 into an array."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        builder.store(values[2], _pointer(builder, LONG, *values[:2]))

    return types.void(types.int64, types.int64, types.int64), build


@intrinsic
def single_at(_: Any, address: Any, index: Any) -> Any:
    """A float32 out of an array."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        return builder.load(_pointer(builder, SINGLE, *values), align=4)

    return types.float32(types.int64, types.int64), build


@intrinsic
def single_of(_: Any, bits: Any) -> Any:
    """The float32 whose bits an int64 holds."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        return builder.bitcast(builder.trunc(values[0], WORD), SINGLE)

    return types.float32(types.int64), build


@intrinsic
def put_single(_: Any, address: Any, index: Any, value: Any) -> Any:
    """Write a float32 into an array."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        builder.store(values[2], _pointer(builder, SINGLE, *values[:2]), align=4)

    return types.void(types.int64, types.int64, types.float32), build


@intrinsic
def half_at(_: Any, address: Any, index: Any) -> Any:
    """A bf16 out of an array, as float32."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        bits = builder.zext(builder.load(_pointer(builder, HALF, *values), align=2), WORD)
        return builder.bitcast(builder.shl(bits, WORD(16)), SINGLE)

    return types.float32(types.int64, types.int64), build


@intrinsic
def put_half(_: Any, address: Any, index: Any, value: Any) -> Any:
    """Write a float32 into an array of bf16, rounded to the nearest, to the even one of two."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        builder.store(_rounded(builder, values[2]), _pointer(builder, HALF, *values[:2]), align=2)

    return types.void(types.int64, types.int64, types.float32), build


@intrinsic
def halved(_: Any, value: Any) -> Any:
    """A float32 with the precision of bf16."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        bits = builder.zext(_rounded(builder, values[0]), WORD)
        return builder.bitcast(builder.shl(bits, WORD(16)), SINGLE)

    return types.float32(types.float32), build


def _rounded(builder: Any, value: Any) -> Any:
    bits = builder.bitcast(value, WORD)
    odd = builder.and_(builder.lshr(bits, WORD(16)), WORD(1))
    up = builder.lshr(builder.add(bits, builder.add(odd, WORD(NEAREST))), WORD(16))
    wrong = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(wrong, WORD(NO_NUMBER), up), HALF)


@intrinsic
def plus(_: Any, one: Any, other: Any) -> Any:
    """A sum whose terms may be added in any order, so that a row is summed in lanes."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        return builder.fadd(*values, flags=("reassoc",))

    return types.float32(types.float32, types.float32), build


@intrinsic
def times_plus(_: Any, one: Any, other: Any, more: Any) -> Any:
    """one * other + more, rounded once."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        return builder.fma(*values)

    return types.float32(types.float32, types.float32, types.float32), build


@intrinsic
def larger(_: Any, one: Any, other: Any) -> Any:
    """The larger of two numbers, in any order."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        flags = ("nnan", "nsz")
        return builder.select(builder.fcmp_ordered(">", *values, flags=flags), *values)

    return types.float32(types.float32, types.float32), build


@intrinsic
def two_to(_: Any, shifted: Any) -> Any:
    """2 ** n out of n + 1.5 * 2 ** 23, for n of -126 to 128."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        bits = builder.add(builder.bitcast(values[0], WORD), WORD(BIAS))
        return builder.bitcast(builder.shl(bits, WORD(MANTISSA)), SINGLE)

    return types.float32(types.float32), build


@intrinsic
def copy_halves(_: Any, to: Any, source: Any, count: Any) -> Any:
    """Copy so many bf16."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        ends = [builder.inttoptr(value, HALF.as_pointer()) for value in values[:2]]
        copy(builder, *ends, values[2], 2, align=2)

    return types.void(types.int64, types.int64, types.int64), build


@intrinsic
def called(_: Any, function: Any) -> Any:
    """What a C function at an address gives, that takes nothing and gives an int."""

    def build(__: Any, builder: Any, ___: Any, values: Any) -> Any:
        kind = ir.FunctionType(WORD, []).as_pointer()
        return builder.sext(builder.call(builder.inttoptr(values[0], kind), []), LONG)

    return types.int64(types.int64), build
