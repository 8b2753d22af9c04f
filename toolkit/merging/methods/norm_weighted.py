"""Deltas weighted by their lengths: base + scale x sum of share x (model - base), tensor by tensor, in fp32.

share = length^power / sum of length^power, where length is the 2-norm of model - base in that tensor. Power 0 averages
the deltas, 1 lets the model that changed a tensor most decide it, -1 gives every model an equal say.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.merging.several import SeveralFromBase, deltas, folders, weighted
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

Inputs = SeveralFromBase


@dataclass(frozen=True, kw_only=True)
class Spec:
    """power: of the lengths, see above. scale: of the sum.

    dtype: of the output; None is that of `base`. rounding: to it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    power: float = 1.0
    scale: float = 1.0
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model: config as `base`'s, tokenizer and generation settings of `first`.

    A pass before the merge takes the lengths.

    Raises:
        ValueError: models that do not fit each other.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import pair
    from toolkit.merging.statistics import products

    given = folders(inputs)
    paired = pair(given, like="first", base="base")
    squares = products(paired.tensors, lambda x: [(m - x[0]).square_() for m in x[1:]], ctx.resources.threads)
    weights = {name: shares([math.sqrt(value) for value in found], spec.power) for name, found in squares.items()}

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        return norm_weighted(chunks[0], chunks[1:], weights[place.name], spec.scale)

    return merge(paired, given, "first", combine, spec, out, ctx)


def shares(lengths: list[float], power: float) -> list[float]:
    """length^power, divided by their sum; a model that changed nothing has no share, and its delta is zero anyway."""
    raised = [length**power if length > 0 else 0.0 for length in lengths]
    return [value / sum(raised) if sum(raised) > 0 else 0.0 for value in raised]


def norm_weighted(
    base: "torch.Tensor", models: "list[torch.Tensor]", weights: list[float], scale: float
) -> "torch.Tensor":
    """base + scale x sum of weight x (model - base), with the `shares` of the whole tensors; all are overwritten."""
    return base.add_(weighted(deltas(base, models), weights).mul_(scale))
