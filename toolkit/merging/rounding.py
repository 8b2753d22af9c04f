"""fp32 to the wanted type: to the nearest, or up and down at random so that the mean is right.

Random bits belong to places, not to the order of work: the bits of element i of a tensor are number i of a stream that
the seed and the tensor's name choose, and the generator (PCG64) can begin anywhere. So neither the number of threads
nor the size of the pieces changes an output.
"""

import hashlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Rounding = Literal["nearest", "stochastic"]
SMALLEST_FP16 = 2.0**-14  # the smallest normal number; below it numbers are 2^-24 apart


def random_words(seed: int, name: str, first: int, count: int, kind: str) -> Any:
    """`count` random numbers of the numpy type `kind` ("uint16", "uint32"), those from number `first` on."""
    import numpy as np

    a_draw = 8 // np.dtype(kind).itemsize
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest(), "little")
    generator = np.random.PCG64(key)
    generator.advance(first // a_draw)
    skipped = first % a_draw
    drawn = generator.random_raw(-(-(skipped + count) // a_draw)).astype("<u8", copy=False)
    return drawn.view(np.dtype(kind).newbyteorder("<"))[skipped : skipped + count]


def stochastic(x: "torch.Tensor", dtype: "torch.dtype", bits: Any) -> "torch.Tensor":
    """Flat fp32 `x` as `dtype`: of its two neighbours there, each with the probability that makes the mean `x`.

    bits: 16 random ones an element (`random_words`). bf16 and normal fp16 numbers are exact in that; fp16 numbers below
    2^-14 to 2^-16 of their distance. Values that `dtype` holds stay as they are, and so does everything in fp32.
    M. Croci et al., "Stochastic rounding: implementation, error analysis and applications", R. Soc. Open Sci. 9 (2022).
    """
    import torch

    drawn = torch.from_numpy(bits.astype("int32"))
    if dtype == torch.bfloat16:
        return _add_and_cut(x, drawn, 16).to(dtype)
    if dtype == torch.float16:
        small = x.abs() < SMALLEST_FP16
        scaled = torch.where(small, x, 0) * 2.0**24
        low = scaled.floor()
        up = (drawn.to(torch.float32) * 2.0**-16) < scaled - low
        return torch.where(small, (low + up) * 2.0**-24, _add_and_cut(x, drawn >> 3, 13)).to(dtype)
    return x


def _add_and_cut(x: "torch.Tensor", drawn: "torch.Tensor", cut: int) -> "torch.Tensor":
    """Random bits below the last place that is kept carry into it as often as they should; then they are cut off."""
    import torch

    finite = torch.isfinite(x)  # bits added to an infinity would make another value of it
    summed = (x.view(torch.int32) + drawn) & -(1 << cut)
    return torch.where(finite, summed.view(torch.float32), x)
