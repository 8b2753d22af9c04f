"""Zero-point: affine 8-bit codes over the range from min to max (Jacob et al. 2018, arXiv 1712.05877, equation 1)."""

from pathlib import Path
from typing import Any

from toolkit.quantization import eight
from toolkit.quantization.eight import Inputs, Spec
from toolkit.stage import Context

__all__ = ["Inputs", "Spec", "run"]


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the quantized model and the errors of its layers; see `eight.run`."""
    return eight.run(spec, inputs, out, ctx, affine=True)
