"""Numbers as integers and back: x = scale * (code - zero).

Absmax (Dettmers et al. 2022, arXiv 2208.07339, section 2) has zero = 0 and scale = max|x| / 127. Zero-point (Jacob et
al. 2018, arXiv 1712.05877, equation 1) spends all codes on the range from min to max, which is widened to hold 0, so
that 0 is exact. Codes are int8; 4-bit codes are packed two in a byte.
"""

from dataclasses import dataclass

import torch

LEAST = 1e-30  # of a scale: a range of zeros has codes 0 and any scale


@dataclass(frozen=True, kw_only=True)
class Integers:
    """codes: int8 of any shape. scale, zero: fp32 and int32 that broadcast with it; zero is None for absmax."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None


def absmax(x: torch.Tensor, dim: int | None = None, bits: int = 8) -> Integers:
    """Symmetric codes in [-127, 127] (7 for 4 bits); one scale for all of x, or for what lies along `dim`."""
    most = (1 << (bits - 1)) - 1
    x = x.float()
    peak = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    return with_scale(x, (peak / most).clamp_min(LEAST), bits)


def full(x: torch.Tensor, dim: int, bits: int = 8) -> Integers:
    """Symmetric codes in [-128, 127] (-8 to 7 for 4 bits), max|x| on half of their range: torchao's symmetric grid."""
    half = ((1 << bits) - 1) / 2
    x = x.float()
    # By the operations of torchao: a size that lies between two steps would go to the other one otherwise.
    scale = (x.abs().amax(dim, keepdim=True) / half).clamp_min(LEAST)
    codes = (x * (1 / scale)).round_().clamp_(-half - 0.5, half - 0.5)
    return Integers(codes=codes.to(torch.int8), scale=scale)


def with_scale(x: torch.Tensor, scale: torch.Tensor, bits: int = 8) -> Integers:
    """Symmetric codes with a scale that is known; what is beyond it is cut off."""
    most = (1 << (bits - 1)) - 1
    return Integers(codes=(x.float() / scale).round_().clamp_(-most, most).to(torch.int8), scale=scale)


def zero_point(x: torch.Tensor, dim: int | None = None, bits: int = 8) -> Integers:
    """Affine codes in [-128, 127] (-8 to 7 for 4 bits)."""
    x = x.float()
    low = x.amin() if dim is None else x.amin(dim, keepdim=True)
    high = x.amax() if dim is None else x.amax(dim, keepdim=True)
    return with_range(x, low, high, bits)


def with_range(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int = 8) -> Integers:
    """Affine codes for a range that is known; it is widened to hold 0, and what is beyond it is cut off."""
    least, most = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = ((high - low) / (most - least)).clamp_min(LEAST)
    zero = (least - low / scale).round().clamp(least, most)
    codes = (x.float() / scale).round_().add_(zero).clamp_(least, most)
    return Integers(codes=codes.to(torch.int8), scale=scale, zero=zero.to(torch.int32))


def dequantize(integers: Integers) -> torch.Tensor:
    """scale * (code - zero), in fp32."""
    codes = integers.codes.float()
    return (codes if integers.zero is None else codes - integers.zero) * integers.scale


def product(x: Integers, w: Integers) -> torch.Tensor:
    """x w^T of integers, in fp32: x [rows, k] and w [columns, k], each with one scale or with one for each row.

    The sums are of integers and exact; zeros are taken out of them afterwards (Jacob et al. 2018, equation 7).
    """
    sums = _sums(x.codes, w.codes).double()
    if x.zero is not None:
        sums -= x.zero.double().reshape(-1, 1) * w.codes.double().sum(1)
    if w.zero is not None:
        sums -= x.codes.double().sum(1, keepdim=True) * w.zero.double().reshape(1, -1)
    if x.zero is not None and w.zero is not None:
        sums += x.codes.shape[1] * x.zero.double().reshape(-1, 1) * w.zero.double().reshape(1, -1)
    return (sums * x.scale.double().reshape(-1, 1) * w.scale.double().reshape(1, -1)).float()


def _sums(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """On a CPU by its int8 instructions. On a GPU torch's take some shapes only, so in doubles: exact as well."""
    return torch._int_mm(x, w.t()) if x.device.type == "cpu" else x.double() @ w.double().t()


def pack(codes: torch.Tensor) -> torch.Tensor:
    """4-bit codes (-8 to 7) two in a byte, the first in the lower half; the last dimension must be even."""
    halves = codes.to(torch.int16).bitwise_and(15)
    return (halves[..., ::2] | (halves[..., 1::2] << 4)).to(torch.uint8)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """int8 codes of packed ones."""
    wide = packed.to(torch.int16)
    halves = torch.stack([wide & 15, wide >> 4], dim=-1).flatten(-2)
    return torch.where(halves > 7, halves - 16, halves).to(torch.int8)
