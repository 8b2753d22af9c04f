"""TIES: trim each delta to its largest elements, elect a sign for each element, average those that have it.

P. Yadav et al., arXiv 2306.01708: final = base + scale x disjoint mean of the trimmed deltas.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.merging.several import SeveralFromBase, check_share, check_weights, deltas, folders, weights_of
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

Inputs = SeveralFromBase


@dataclass(frozen=True, kw_only=True)
class Spec:
    """density: share of each delta's elements, tensor by tensor, that is kept. scale: of the mean (the paper's lambda).

    weights: one for each model in the order of the inputs, or 1 for all: in the vote for a sign and in the mean.
    dtype: of the output; None is that of `base`. rounding: to it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    density: float = 0.2
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
    least = magnitudes(paired.tensors, lambda n: [n - kept(n, spec.density)], ctx.resources.threads)

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        return ties(chunks[0], chunks[1:], [value for (value,) in least[place.name]], weights, spec.scale)

    return merge(paired, given, "first", combine, spec, out, ctx)


def kept(elements: int, density: float) -> int:
    """How many elements of a tensor are kept: at least one."""
    return max(1, int(density * elements))


def ties(
    base: "torch.Tensor", models: "list[torch.Tensor]", least: list[float], weights: list[float], scale: float
) -> "torch.Tensor":
    """base + scale x mean over the models that have the elected sign; all are overwritten.

    least: the smallest |delta| that each model keeps; deltas that equal it are all kept, as in the paper's code. A vote
    that ends at zero elects plus.
    """
    import torch

    votes = torch.zeros_like(base)
    trimmed = deltas(base, models)
    for part, threshold, weight in zip(trimmed, least, weights, strict=True):
        part.mul_(part.abs() >= threshold).mul_(weight)
        votes.add_(part)
    elected = torch.where(votes >= 0, 1.0, -1.0)
    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for part, weight in zip(trimmed, weights, strict=True):
        agrees = part.sign() == elected
        total.add_(part.mul_(agrees))
        divisor.add_(agrees, alpha=weight)
    divisor[divisor == 0] = 1
    return base.add_(total.div_(divisor).mul_(scale))
