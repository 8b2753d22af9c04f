"""Weights in 4 bits by groups of columns, multiplied in floats: 4 bits a weight and a scale (and a zero) a group.

The codes are absmax or zero-point codes as in `integers.py`, over `group` neighbouring weights of a row, as in GPTQ's
(Frantar et al. 2023, arXiv 2210.17323, section 4) grouping; rounding is to the nearest.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """group: weights of a row that share a scale. symmetric: absmax codes; zero-point codes otherwise. full_range: 16
    codes in place of absmax's 15, the grid that `method: qat` trains on. bits: of a code; fewer than 4 are stored as 4,
    to see what they cost and not to save room.
    """

    scheme: str
    group: int = 32
    symmetric: bool = True
    full_range: bool = False
    bits: Literal[2, 3, 4] = 4

    def __post_init__(self) -> None:
        if self.full_range and not self.symmetric:
            raise ValueError("full_range is a symmetric grid; zero-point codes (symmetric: false) are all used anyway")
        if self.group < 2 or self.group % 2:
            raise ValueError(f"group is {self.group}: it must be even, since two codes share a byte")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a plain one whose layers have multiples of `group` inputs."""

    model: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the quantized model and the errors of its layers.

    Raises:
        ValueError: a layer whose inputs are no multiple of the group.
    """
    import torch

    from toolkit.quantization import store
    from toolkit.quantization.errors import bytes_of, finish
    from toolkit.quantization.integers import Integers, absmax, full, zero_point

    def quantize(weight: torch.Tensor) -> Integers:
        if weight.shape[1] % spec.group:
            raise ValueError(f"a layer has {weight.shape[1]} inputs, which are no multiple of group {spec.group}")
        groups = weight.reshape(weight.shape[0], -1, spec.group)
        return (full if spec.full_range else absmax if spec.symmetric else zero_point)(groups, 2, spec.bits)

    words = {"kind": "weights", "group": spec.group}
    return finish(
        out, bytes_of(inputs.model.path), store.write(inputs.model.path, out, words, quantize, ctx)
    )  # fmt: skip
