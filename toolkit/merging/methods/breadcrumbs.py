"""Model Breadcrumbs: of each delta neither the largest elements (outliers) nor the smallest (noise), but those between.

M. Davari, E. Belilovsky, arXiv 2312.06795: final = base + scale x sum of weight x masked (model - base).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.merging.several import SeveralFromBase, check_share, check_weights, deltas, folders, weighted, weights_of
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

Inputs = SeveralFromBase


@dataclass(frozen=True, kw_only=True)
class Spec:
    """outliers: share of each delta's largest elements, tensor by tensor, that is dropped. density: share that is kept,
    the next largest. weights: one for each model, or 1 for all. scale: of the sum.

    dtype: of the output; None is that of `base`. rounding: to it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    density: float = 0.8
    outliers: float = 0.01
    weights: tuple[float, ...] = ()
    scale: float = 1.0
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_weights(self.weights)
        if self.outliers < 0 or self.density + self.outliers > 1:
            raise ValueError(
                f"outliers is {self.outliers:g} and density {self.density:g}: both are shares, and together at most 1"
            )


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model: config as `base`'s, tokenizer and generation settings of `first`.

    Two passes before the merge find the exact thresholds.

    Raises:
        ValueError: models that do not fit each other, or not one weight for each.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import pair
    from toolkit.merging.statistics import magnitudes

    given = folders(inputs)
    weights = weights_of(spec.weights, given)
    paired = pair(given, like="first", base="base")
    bounds = magnitudes(paired.tensors, lambda n: between(n, spec.density, spec.outliers), ctx.resources.threads)

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        return breadcrumbs(chunks[0], chunks[1:], bounds[place.name], weights, spec.scale)

    return merge(paired, given, "first", combine, spec, out, ctx)


def between(elements: int, density: float, outliers: float) -> list[int]:
    """Ranks (from 0, the least) of the smallest and the largest |delta| that is kept; at least one is."""
    count = max(1, int(density * elements))
    smallest = max(0, elements - count - int(outliers * elements))
    return [smallest, smallest + count - 1]


def breadcrumbs(
    base: "torch.Tensor", models: "list[torch.Tensor]", bounds: list[list[float]], weights: list[float], scale: float
) -> "torch.Tensor":
    """base + scale x sum of weight x what lies within bounds of model - base; all are overwritten.

    bounds: smallest and largest |delta| that each model keeps; deltas that equal one of them are all kept.
    """
    parts = []
    for part, (low, high) in zip(deltas(base, models), bounds, strict=True):
        size = part.abs()
        parts.append(part.mul_((size >= low) & (size <= high)))
    return base.add_(weighted(parts, weights).mul_(scale))
