"""DARE: drop elements of each delta at random, scale up the others so that the mean stays, and add them.

L. Yu et al., arXiv 2311.03099: final = base + scale x sum of weight x mask x (model - base) / density.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding, random_words
from toolkit.merging.several import SeveralFromBase, check_share, check_weights, deltas, folders, weighted, weights_of
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

Inputs = SeveralFromBase


@dataclass(frozen=True, kw_only=True)
class Spec:
    """density: the chance of each element to be kept. weights: one for each model, or 1 for all. scale: of the sum.

    dtype: of the output; None is that of `base`. rounding: to it. seed: of what is dropped, and of stochastic rounding.
    """

    method: str
    density: float = 0.5
    weights: tuple[float, ...] = ()
    scale: float = 1.0
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_share("density", self.density)
        check_weights(self.weights)


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model: config as `base`'s, tokenizer and generation settings of `first`.

    Raises:
        ValueError: models that do not fit each other, or not one weight for each.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import pair

    given = folders(inputs)
    weights = weights_of(spec.weights, given)
    roles = list(given)[1:]

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        masks = [mask(spec.seed, f"{role} {place.name}", place.first, place.count, spec.density) for role in roles]
        return dare(chunks[0], chunks[1:], masks, spec.density, weights, spec.scale)

    return merge(pair(given, like="first", base="base"), given, "first", combine, spec, out, ctx)


def mask(seed: int, name: str, first: int, count: int, density: float) -> "torch.Tensor":
    """Whether each element is kept, with that chance (to 2^-32): a function of seed, name and place alone."""
    import torch

    drawn = random_words(seed, f"kept of {name}", first, count, "uint32")
    return torch.from_numpy(drawn.astype("int64") < round(density * 2**32))


def dare(
    base: "torch.Tensor",
    models: "list[torch.Tensor]",
    masks: "list[torch.Tensor]",
    density: float,
    weights: list[float],
    scale: float,
) -> "torch.Tensor":
    """base + scale x sum of weight x (what the mask keeps of model - base) / density; all are overwritten."""
    parts = [part.mul_(mask).div_(density) for part, mask in zip(deltas(base, models), masks, strict=True)]
    return base.add_(weighted(parts, weights).mul_(scale))
