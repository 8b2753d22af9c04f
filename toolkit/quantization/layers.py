"""Linear layers that hold integers. What they compute is what the scheme says, not an imitation of it in floats.

`Weights` multiplies by weights that are turned back to floats: integers save storage only. `Both` turns activations to
integers as well and multiplies integers. `Outliers` is LLM.int8(): features with an outlier stay in floats.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from toolkit.quantization.integers import (
    LEAST,
    Integers,
    absmax,
    dequantize,
    product,
    unpack,
    with_range,
    with_scale,
    zero_point,
)


def weight_of(tensors: Mapping[str, torch.Tensor], group: int | None) -> Integers:
    """The weight of a layer from what is stored: `weight`, `weight_scale` and, where it has one, `weight_zero`.

    group: of 4-bit weights, whose codes are packed; they come back as [rows, groups, group].
    """
    codes = tensors["weight"]
    if group is not None:
        codes = unpack(codes)
        codes = codes.reshape(codes.shape[0], -1, group)
    return Integers(codes=codes, scale=tensors["weight_scale"], zero=tensors.get("weight_zero"))


class Weights(nn.Module):
    """x W^T + b with W turned back to floats, once, when the layer is made."""

    def __init__(self, weight: Integers, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", dequantize(weight).flatten(1).to(dtype))
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.bias)  # type: ignore[arg-type]


class _Whole(nn.Module):
    """What holds integer weights: buffers, so that they move to a device with the model."""

    def __init__(self, weight: Integers, bias: torch.Tensor | None) -> None:
        super().__init__()
        for name, tensor in {"codes": weight.codes, "scale": weight.scale, "zero": weight.zero, "bias": bias}.items():
            self.register_buffer(name, tensor)

    @property
    def weight(self) -> Integers:
        return Integers(codes=self.codes, scale=self.scale, zero=self.zero)  # type: ignore[arg-type]

    def _finish(self, out: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        bias: Any = self.bias
        out = out if bias is None else out + bias
        return out.to(like.dtype).reshape(*like.shape[:-1], -1)


def in_range(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, affine: bool) -> Integers:
    """Integers of activations whose range was measured before; absmax takes the larger side of it."""
    if affine:
        return with_range(x, low, high)
    return with_scale(x, torch.maximum(-low, high).clamp_min(LEAST) / 127)


class Both(_Whole):
    """Integers times integers. The activations' range is taken from them (dynamic), or was measured before (static).

    affine: with a zero-point. by_row: a range for each token. low, high: of a static range.
    """

    def __init__(
        self,
        weight: Integers,
        bias: torch.Tensor | None,
        *,
        affine: bool,
        by_row: bool,
        low: torch.Tensor | None = None,
        high: torch.Tensor | None = None,
    ) -> None:
        super().__init__(weight, bias)
        self.affine, self.dim = affine, 1 if by_row else None
        self.register_buffer("low", low)
        self.register_buffer("high", high)

    def integers(self, rows: torch.Tensor) -> Integers:
        """The activations [rows, features] as this layer multiplies them."""
        if self.low is None:
            return zero_point(rows, self.dim) if self.affine else absmax(rows, self.dim)
        return in_range(rows, self.low, self.high, self.affine)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._finish(product(self.integers(x.reshape(-1, x.shape[-1])), self.weight), x)


class Outliers(_Whole):
    """LLM.int8() (Dettmers et al. 2022, equation 8): features in which any token reaches the threshold are multiplied
    in floats, by weights turned back to floats; the others vector-wise in integers, as if the outliers were not there.
    """

    def __init__(self, weight: Integers, bias: torch.Tensor | None, threshold: float) -> None:
        super().__init__(weight, bias)
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        chosen = (rows.abs() >= self.threshold).any(0)
        out = product(absmax(rows.masked_fill(chosen, 0.0), 1), self.weight)
        if bool(chosen.any()):
            kept = Integers(codes=self.weight.codes[:, chosen], scale=self.weight.scale)
            out += rows[:, chosen] @ dequantize(kept).t()
        return self._finish(out, x)


def build(words: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> nn.Module:
    """The layer that a scheme describes (`kind` and its fields), from the tensors that are stored for it.

    dtype: of the floats of the model around it.
    """
    weight, bias = weight_of(tensors, words.get("group")), tensors.get("bias")
    bias = None if bias is None else bias.to(dtype)
    if words["kind"] == "weights":
        return Weights(weight, bias, dtype)
    if words["kind"] == "outliers":
        return Outliers(weight, bias, words["threshold"])
    assert words["kind"] == "both", words
    ranges = {"low": tensors.get("input_low"), "high": tensors.get("input_high")}
    return Both(weight, bias, affine=words["affine"], by_row=words["by_row"], **ranges)
