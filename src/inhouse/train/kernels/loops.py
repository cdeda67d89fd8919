"""SwiGLU, RMSNorm, rotary embedding, softmax and likelihoods: each a C function over rows that threads share.

Every function is given the address of int64: those of `omp_get_thread_num` and `omp_get_num_threads` (0 when alone),
the number of rows, and what the function names. Strides count numbers, not bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import numpy as np
from numba import cfunc, njit, types

from inhouse.train.kernels.numbers import (
    address_of,
    called,
    copy_halves,
    half_at,
    halved,
    larger,
    long_at,
    plus,
    put_half,
    put_long,
    put_single,
    single_at,
    single_of,
    times_plus,
    two_to,
)

LOG2_E, SHIFT = np.float32(1.44269504), np.float32(12582912.0)
LN_2, LN_2_REST = np.float32(0.693359375), np.float32(-2.12194440e-4)
LEAST, MOST = np.float32(-87.0), np.float32(89.0)  # beyond these exp is as good as 0, and infinite
C1, C2, C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
C4, C5, C6 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ZERO, ONE = np.float32(0), np.float32(1)
ROWS, FIRST = 2, 3  # places in the numbers that a function is given
GROUP = 5  # numbers of each group in the table of a softmax


@njit(inline="always", error_model="numpy")
def exponential(x: Any) -> Any:
    """e ** x to one part in 10 million for x from -87 to 88 (Cephes' expf), as e ** -87 below; of NaN NaN."""
    x = MOST if x > MOST else x
    x = LEAST if x < LEAST else x
    shifted = times_plus(x, LOG2_E, SHIFT)
    whole = shifted - SHIFT
    x = times_plus(-whole, LN_2, x)
    x = times_plus(-whole, LN_2_REST, x)
    y = times_plus(C1, x, C2)
    y = times_plus(y, x, C3)
    y = times_plus(y, x, C4)
    y = times_plus(y, x, C5)
    y = times_plus(y, x, C6)
    return (times_plus(y, x * x, x) + ONE) * two_to(shifted)


@njit(inline="always", error_model="numpy")
def part_of(data: Any, rows: Any) -> Any:
    """The first of this thread's part of so many rows, and the one behind its last."""
    if long_at(data, 0) == 0:
        return 0, rows
    number, count = called(long_at(data, 0)), called(long_at(data, 1))
    return rows * number // count, rows * (number + 1) // count


@njit(inline="always", error_model="numpy")
def share_of(data: Any) -> Any:
    """The same, of all rows."""
    return part_of(data, long_at(data, ROWS))


def swiglu(given: Any) -> None:
    """width, gate and its stride, up and its stride, out: silu(gate) * up."""
    data = address_of(given)
    start, stop = share_of(data)
    width = long_at(data, FIRST)
    for row in range(start, stop):
        gate = long_at(data, FIRST + 1) + 2 * row * long_at(data, FIRST + 2)
        up = long_at(data, FIRST + 3) + 2 * row * long_at(data, FIRST + 4)
        out = long_at(data, FIRST + 5) + 2 * row * width
        for i in range(width):
            x = half_at(gate, i)
            put_half(out, i, halved(x / (ONE + exponential(-x))) * half_at(up, i))


def swiglu_back(given: Any) -> None:
    """width, gate and its stride, up and its stride, the gradient above, those of gate | up beside each other."""
    data = address_of(given)
    start, stop = share_of(data)
    width = long_at(data, FIRST)
    for row in range(start, stop):
        gate = long_at(data, FIRST + 1) + 2 * row * long_at(data, FIRST + 2)
        up = long_at(data, FIRST + 3) + 2 * row * long_at(data, FIRST + 4)
        above = long_at(data, FIRST + 5) + 2 * row * width
        below = long_at(data, FIRST + 6) + 4 * row * width
        for i in range(width):
            x, given_here = half_at(gate, i), half_at(above, i)
            open_by = ONE / (ONE + exponential(-x))
            slope = open_by * (ONE + x * (ONE - open_by))
            put_half(below, i, halved(given_here * half_at(up, i)) * slope)
            put_half(below, width + i, given_here * halved(x * open_by))


def norm(given: Any) -> None:
    """width, hidden, weight, out, roots (float32), epsilon (the bits of a float32)."""
    data = address_of(given)
    start, stop = share_of(data)
    width, weight = long_at(data, FIRST), long_at(data, FIRST + 2)
    epsilon = single_of(long_at(data, FIRST + 5))
    for row in range(start, stop):
        hidden = long_at(data, FIRST + 1) + 2 * row * width
        out = long_at(data, FIRST + 3) + 2 * row * width
        squares = ZERO
        for i in range(width):
            x = half_at(hidden, i)
            squares = plus(squares, x * x)
        root = ONE / np.float32(sqrt(squares / np.float32(width) + epsilon))
        put_single(long_at(data, FIRST + 4), row, root)
        for i in range(width):
            put_half(out, i, halved(half_at(hidden, i) * root) * half_at(weight, i))


def norm_back(given: Any) -> None:
    """width, hidden, weight, out, roots (float32), the gradient above."""
    data = address_of(given)
    start, stop = share_of(data)
    width, weight = long_at(data, FIRST), long_at(data, FIRST + 2)
    for row in range(start, stop):
        hidden = long_at(data, FIRST + 1) + 2 * row * width
        out = long_at(data, FIRST + 3) + 2 * row * width
        root = single_at(long_at(data, FIRST + 4), row)
        above = long_at(data, FIRST + 5) + 2 * row * width
        total = ZERO
        for i in range(width):
            total = plus(total, half_at(above, i) * half_at(weight, i) * half_at(hidden, i))
        share = total * (root * root / -np.float32(width))
        for i in range(width):
            below = half_at(above, i) * half_at(weight, i)
            put_half(out, i, times_plus(half_at(hidden, i), share, below) * root)


def softmax(given: Any) -> None:
    """Rows of scores become weights. groups, their table, scores, window, scale, room, its size.

    Of each group the table has: rows, width W, before P, hidden, where its scores (rows, P + W) begin. Row r of a
    segment's W sees the places from `hidden` up to its own, `window` of them at most; the others get 0. `room` is for
    so many float32 of each thread. Loops run over sixteens, which are vectors: one left over costs as much.
    """
    data = address_of(given)
    table, window = long_at(data, FIRST + 1), long_at(data, FIRST + 3)
    scale = single_of(long_at(data, FIRST + 4))
    room = long_at(data, FIRST + 5)
    if long_at(data, 0):
        room += 4 * long_at(data, FIRST + 6) * called(long_at(data, 0))
    for group in range(long_at(data, FIRST)):
        start, stop = part_of(data, long_at(table, GROUP * group))
        width, before = long_at(table, GROUP * group + 1), long_at(table, GROUP * group + 2)
        hidden, size = long_at(table, GROUP * group + 3), before + width
        base = long_at(data, FIRST + 2) + 2 * long_at(table, GROUP * group + 4)
        for row in range(start, stop):
            scores = base + 2 * row * size
            end = before + row % width + 1
            first = max(hidden, end - window)
            past = min(size, (end + 15) // 16 * 16)
            highest = half_at(scores, first)
            for i in range(first, end):
                highest = larger(highest, half_at(scores, i))
            total = ZERO
            for i in range(past):
                weight = exponential((half_at(scores, i) - highest) * scale)
                weight = weight if first <= i and i < end else ZERO
                put_single(room, i, weight)
                total = plus(total, weight)
            total = ONE / total
            for i in range(past):
                put_half(scores, i, single_at(room, i) * total)
            for i in range(past, size):
                put_half(scores, i, ZERO)


def softmax_back(given: Any) -> None:
    """groups and their table as `softmax`, weights, scale, and the weights' gradients, which become the scores'."""
    data = address_of(given)
    table, scale = long_at(data, FIRST + 1), single_of(long_at(data, FIRST + 3))
    for group in range(long_at(data, FIRST)):
        start, stop = part_of(data, long_at(table, GROUP * group))
        width, before = long_at(table, GROUP * group + 1), long_at(table, GROUP * group + 2)
        size, base = before + width, 2 * long_at(table, GROUP * group + 4)
        for row in range(start, stop):
            weights = long_at(data, FIRST + 2) + base + 2 * row * size
            above = long_at(data, FIRST + 4) + base + 2 * row * size
            past = min(size, (before + row % width + 16) // 16 * 16)
            total = ZERO
            for i in range(past):
                total = plus(total, half_at(weights, i) * half_at(above, i))
            for i in range(past):
                put_half(above, i, half_at(weights, i) * (half_at(above, i) - total) * scale)
            for i in range(past, size):
                put_half(above, i, ZERO)


def likelihood(given: Any) -> None:
    """width, logits and their stride, targets, -log p(target) (float32), log of exp's sum (float32), whether right.

    Right is a target that no other logit is above, and none before it as high as.
    """
    data = address_of(given)
    start, stop = share_of(data)
    width = long_at(data, FIRST)
    for row in range(start, stop):
        logits = long_at(data, FIRST + 1) + 2 * row * long_at(data, FIRST + 2)
        target = long_at(long_at(data, FIRST + 3), row)
        highest = half_at(logits, 0)
        for i in range(1, width):
            highest = larger(highest, half_at(logits, i))
        total = ZERO
        for i in range(width):
            total = plus(total, exponential(half_at(logits, i) - highest))
        whole = highest + np.float32(log(total))
        put_single(long_at(data, FIRST + 5), row, whole)
        put_single(long_at(data, FIRST + 4), row, whole - half_at(logits, target))
        before = 0
        for i in range(target):
            before += half_at(logits, i) == highest
        put_long(long_at(data, FIRST + 6), row, half_at(logits, target) == highest and before == 0)


def likelihood_back(given: Any) -> None:
    """width, logits and their stride, targets, log of exp's sum (float32), the gradient above (float32), out."""
    data = address_of(given)
    start, stop = share_of(data)
    width = long_at(data, FIRST)
    for row in range(start, stop):
        logits = long_at(data, FIRST + 1) + 2 * row * long_at(data, FIRST + 2)
        target = long_at(long_at(data, FIRST + 3), row)
        whole, above = single_at(long_at(data, FIRST + 4), row), single_at(long_at(data, FIRST + 5), row)
        out = long_at(data, FIRST + 6) + 2 * row * width
        for i in range(width):
            put_half(out, i, exponential(half_at(logits, i) - whole) * above)
        put_half(out, target, (exponential(half_at(logits, target) - whole) - ONE) * above)


def rotate(given: Any) -> None:
    """Rows are tokens. heads, half a head's size, in, its strides of a token and a head, out, cos and sin, sign (bits).

    cos and sin (rows, 2 * half) have two halves alike; a negative sign turns back.
    """
    data = address_of(given)
    start, stop = share_of(data)
    heads, half = long_at(data, FIRST), long_at(data, FIRST + 1)
    sign = single_of(long_at(data, FIRST + 8))
    for row in range(start, stop):
        cos = long_at(data, FIRST + 6) + 4 * row * half
        sin = long_at(data, FIRST + 7) + 4 * row * half
        for head in range(heads):
            one = long_at(data, FIRST + 2) + 2 * (row * long_at(data, FIRST + 3) + head * long_at(data, FIRST + 4))
            out = long_at(data, FIRST + 5) + 4 * (row * heads + head) * half
            for i in range(half):
                a, b = half_at(one, i), half_at(one, half + i)
                c, s = half_at(cos, i), half_at(sin, i) * sign
                put_half(out, i, halved(a * c) - halved(b * s))
                put_half(out, half + i, halved(b * c) + halved(a * s))


def spread(given: Any) -> None:
    """Rows are slots. heads, size, in, its strides of a token and a head, table, out.

    Of each slot the table has: the place of its token, where its first head begins in `out`, and the stride of heads
    there. A negative place gives zeros.
    """
    data = address_of(given)
    start, stop = share_of(data)
    heads, size, table = long_at(data, FIRST), long_at(data, FIRST + 1), long_at(data, FIRST + 5)
    for row in range(start, stop):
        place, out = long_at(table, 3 * row), long_at(data, FIRST + 6) + 2 * long_at(table, 3 * row + 1)
        for head in range(heads):
            here = out + 2 * head * long_at(table, 3 * row + 2)
            if place < 0:
                for i in range(size):
                    put_half(here, i, ZERO)
            else:
                offset = place * long_at(data, FIRST + 3) + head * long_at(data, FIRST + 4)
                copy_halves(here, long_at(data, FIRST + 2) + 2 * offset, size)


def collect(given: Any) -> None:
    """Rows are tokens. heads, size, in, starts, slots, out (tokens, heads, size), room: `spread` the other way round.

    The slots of token t are those from starts[t] to starts[t + 1]: of each where its first head begins in `in`, and the
    stride of heads there. They are summed; a token without any gets zeros. `room` is for `size` float32 of each thread.
    """
    data = address_of(given)
    heads, size = long_at(data, FIRST), long_at(data, FIRST + 1)
    starts, slots = long_at(data, FIRST + 3), long_at(data, FIRST + 4)
    number, count = (called(long_at(data, 0)), called(long_at(data, 1))) if long_at(data, 0) else (0, 1)
    room = long_at(data, FIRST + 6) + 4 * size * number
    for token in range(number, long_at(data, ROWS), count):  # what many share stands at the beginning
        first, last = long_at(starts, token), long_at(starts, token + 1)
        for head in range(heads):
            out = long_at(data, FIRST + 5) + 2 * size * (token * heads + head)
            if last == first + 1:
                offset = long_at(slots, 2 * first) + head * long_at(slots, 2 * first + 1)
                copy_halves(out, long_at(data, FIRST + 2) + 2 * offset, size)
                continue
            for i in range(size):
                put_single(room, i, ZERO)
            for slot in range(first, last):
                one = long_at(data, FIRST + 2) + 2 * (long_at(slots, 2 * slot) + head * long_at(slots, 2 * slot + 1))
                for i in range(size):
                    put_single(room, i, single_at(room, i) + half_at(one, i))
            for i in range(size):
                put_half(out, i, single_at(room, i))


LOOPS: dict[str, Callable[[Any], None]] = {
    one.__name__: one
    for one in (
        swiglu,
        swiglu_back,
        norm,
        norm_back,
        softmax,
        softmax_back,
        likelihood,
        likelihood_back,
        rotate,
        spread,
        collect,
    )
}


def compiled(name: str, kept: bool) -> Any:
    """A loop as a C function; `kept` in numba's cache, or out of it."""
    # Division by zero gives infinity: a check of every divisor would keep loops from being vectorised.
    made: Any = cfunc(types.void(types.voidptr), cache=kept, error_model="numpy")(LOOPS[name])
    return made
