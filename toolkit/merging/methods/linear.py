"""Weighted average of models, in fp32: model soups. M. Wortsman et al., arXiv 2203.05482."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.merging.several import Several, check_weights, folders, weighted, weights_of
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

Inputs = Several


@dataclass(frozen=True, kw_only=True)
class Spec:
    """weights: one for each model in the order of the inputs, divided by their sum; equal ones if none are given.

    dtype: of the output; None is that of `first`. rounding: to it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    weights: tuple[float, ...] = ()
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_weights(self.weights)
        if self.weights and sum(self.weights) == 0:
            raise ValueError(f"weights {list(self.weights)} add up to 0: an average divides by their sum")


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the average: config, tokenizer and generation settings are those of `first`.

    Raises:
        ValueError: models that do not fit each other, or not one weight for each.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import pair

    given = folders(inputs)
    weights = weights_of(spec.weights, given)

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        return linear(chunks, weights)

    return merge(pair(given), given, "first", combine, spec, out, ctx)


def linear(models: "list[torch.Tensor]", weights: list[float]) -> "torch.Tensor":
    """sum of weight / (sum of weights) x model; all are overwritten."""
    return weighted(models, [weight / sum(weights) for weight in weights])
