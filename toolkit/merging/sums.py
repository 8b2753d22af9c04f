"""The sums of the weight report, all of them in one compiled pass over a piece.

torch would go through the piece once or twice for each sum, which takes longer than the merge. Here nine sums run in
fp32 in the lanes of the processor, over blocks short enough that no digit is lost, and in float64 over the blocks.
Compiling takes half a second in every process that measures; nothing is written to disk, so an installation may be
read-only and processes do not meet.
"""

from typing import Any

import numpy as np
from numba import njit

BLOCK = 4096  # elements that are summed in fp32; pieces are multiples of it


# Hazard: these three let the sums be split into lanes; all of fastmath would take NaN and infinity for impossible.
@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _block(base: Any, instruct: Any, trained: Any) -> Any:
    ba = bs = ia = is_ = da = ds = ca = cs = product = np.float32(0)
    for at in range(base.shape[0]):
        b, i = base[at], instruct[at]
        delta, change = i - b, trained[at] - b
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


@njit("float64[::1](float32[::1], float32[::1], float32[::1])", nogil=True)
def sums(base: Any, instruct: Any, trained: Any) -> Any:
    """Nine sums of flat fp32 arrays, as `toolkit.merging.weights.KEYS` names them.

    delta = instruct - base, change = trained - base, rounded to fp32.

    Hazard: the inner loop is a function of its own, because only then it is compiled to lanes (ten times as fast).
    """
    found = np.zeros(9)
    for first in range(0, base.shape[0], BLOCK):
        block = slice(first, first + BLOCK)
        parts = _block(base[block], instruct[block], trained[block])
        for number in range(9):
            found[number] += parts[number]
    return found
