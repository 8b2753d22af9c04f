"""Task arithmetic: base + scale x sum of weight x (model - base), in fp32. G. Ilharco et al., arXiv 2212.04089."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.merging.several import SeveralFromBase, check_weights, deltas, folders, weighted, weights_of
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

Inputs = SeveralFromBase


@dataclass(frozen=True, kw_only=True)
class Spec:
    """weights: one for each model in the order of the inputs, or 1 for all; negative ones take away. scale: of the sum.

    dtype: of the output; None is that of `base`. rounding: to it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    weights: tuple[float, ...] = ()
    scale: float = 1.0
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
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

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        return task_arithmetic(chunks[0], chunks[1:], weights, spec.scale)

    return merge(pair(given, like="first", base="base"), given, "first", combine, spec, out, ctx)


def task_arithmetic(
    base: "torch.Tensor", models: "list[torch.Tensor]", weights: list[float], scale: float
) -> "torch.Tensor":
    """base + scale x sum of weight x (model - base); all are overwritten."""
    return base.add_(weighted(deltas(base, models), weights).mul_(scale))
