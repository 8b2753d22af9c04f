"""Absmax: symmetric 8-bit codes, scale = max|x| / 127 (Dettmers et al. 2022, arXiv 2208.07339, section 2)."""

from pathlib import Path
from typing import Any

from toolkit.quantization import eight
from toolkit.quantization.eight import Inputs, Spec
from toolkit.stage import Context

__all__ = ["Inputs", "Spec", "run"]


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the quantized model and the errors of its layers; see `eight.run`."""
    return eight.run(spec, inputs, out, ctx, affine=False)
