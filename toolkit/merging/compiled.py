"""What torch would take many passes over a piece for, compiled to one: the sums of the weight report, and the delta
merge of models in bf16.

torch goes through a piece once or twice for each sum, and four times to turn bf16 into fp32 and back, which takes
longer than the reading. Here the bits of bf16 are widened in a register. Compiling takes a second in every process that
merges; nothing is written to disk, so an installation may be read-only and processes do not meet.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 4096  # elements that are summed in fp32; pieces are multiples of it
LANES = {"reassoc", "contract", "nsz"}  # Hazard: all of fastmath would take NaN and infinity for impossible
NOT_FINITE = 0x7F80  # the exponent of infinity and NaN, as bf16 without its sign
_U32 = np.uint32


def _widen(context: Any, x: Any) -> Any:
    """An element as fp32: as it is, or from the bits of a bf16."""

    def widened(_: Any, build: Any, __: Any, given: Any) -> Any:
        bits = build.shl(build.zext(given[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return build.bitcast(bits, ir.FloatType())

    same = isinstance(x, types.Float)
    return types.float32(x), (lambda _, build, __, given: given[0]) if same else widened


def _cast(context: Any, number: Any) -> Any:
    return types.uint32(types.float32), lambda _, build, __, given: build.bitcast(given[0], ir.IntType(32))


_wide: Any = intrinsic(_widen)
_bits_of: Any = intrinsic(_cast)


@njit(nogil=True, fastmath=LANES)  # type: ignore[untyped-decorator]
def _block(base: Any, instruct: Any, trained: Any) -> Any:
    ba = bs = ia = is_ = da = ds = ca = cs = product = np.float32(0)
    for at in range(base.shape[0]):
        b, i = _wide(base[at]), _wide(instruct[at])
        delta, change = i - b, _wide(trained[at]) - b
        ba += abs(b)
        bs += b * b
        ia += abs(i)
        is_ += i * i
        da += abs(delta)
        ds += delta * delta
        ca += abs(change)
        cs += change * change
        product += delta * change
    return ba, bs, ia, is_, da, ds, ca, cs, product


_FLAT, _HALF = "float32[::1]", "uint16[::1]"


@njit([f"float64[::1]({x}, {x}, {x})" for x in (_FLAT, _HALF)], nogil=True)  # type: ignore[untyped-decorator]
def sums(base: Any, instruct: Any, trained: Any) -> Any:
    """Nine sums of flat arrays, fp32 or the bits of bf16, as `toolkit.merging.weights.KEYS` names them.

    delta = instruct - base, change = trained - base, rounded to fp32; sums in fp32 over a block, in float64 over all.

    Hazard: the inner loop is a function of its own, because only then it is compiled to lanes (ten times as fast).
    """
    found = np.zeros(9)
    for first in range(0, base.shape[0], BLOCK):
        block = slice(first, first + BLOCK)
        parts = _block(base[block], instruct[block], trained[block])
        for number in range(9):
            found[number] += parts[number]
    return found


@njit(f"void({_HALF}, {_HALF}, {_HALF}, float32)", nogil=True)  # type: ignore[untyped-decorator]
def delta(trained: Any, base: Any, instruct: Any, scale: Any) -> None:
    """trained + scale x (instruct - base) of the bits of bf16, into `trained`: each operation rounded to fp32, the sum
    to bf16, to nearest and ties to even. What is not finite becomes infinite."""
    for at in range(trained.shape[0]):
        moved = scale * (_wide(instruct[at]) - _wide(base[at]))
        bits = _bits_of(_wide(trained[at]) + moved)
        kept = (bits + _U32(0x7FFF) + ((bits >> _U32(16)) & _U32(1))) >> _U32(16)
        trained[at] = kept if (bits & _U32(0x7FFFFFFF)) < _U32(0x7F800000) else _U32(NOT_FINITE)


@njit(f"uint16({_HALF})", nogil=True)  # type: ignore[untyped-decorator]
def largest(bits: Any) -> Any:
    """The bits of the largest number of bf16 without its sign: NOT_FINITE or more, where one is not finite."""
    found = np.uint16(0)
    for at in range(bits.shape[0]):
        found = max(found, np.uint16(bits[at] & np.uint16(0x7FFF)))
    return found
