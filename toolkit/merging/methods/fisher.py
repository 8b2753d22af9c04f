"""Fisher-weighted merge: each element the average of the models', weighted by how much it matters to each.

M. Matena and C. Raffel, "Merging models with Fisher-weighted averaging", arXiv 2111.09832: with the diagonal Fisher
information F_i of model i (`job: fisher`), theta = sum of w_i F_i theta_i / sum of w_i F_i.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.merging.several import Several, check_weights, folders, weights_of
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place


@dataclass(frozen=True, kw_only=True)
class Spec:
    """weights: one for each model in the order of the inputs, or 1 for all. normalize: divide each by the length of its
    model's Fisher information over all elements, which depends on the data and says nothing of the model.

    floor: the least that F of `first` is taken as, so that an element that matters to no model is about the first's;
    1e-6 as in the authors' code, before it is normalized. dtype: of the output; None is that of `first`. rounding: to
    it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    weights: tuple[float, ...] = ()
    normalize: bool = True
    floor: float = 1e-6
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        check_weights(self.weights)
        if self.weights and (min(self.weights) < 0 or self.weights[0] == 0):
            raise ValueError(f"weights are {self.weights}: none may be negative, nor that of `first` zero")
        if not self.floor > 0:
            raise ValueError(f"floor is {self.floor:g}: it must be above 0, where no model has any information")


@dataclass(frozen=True, kw_only=True)
class Inputs(Several):
    """fisher: of each model, by its name: `fisher.first`, `fisher.second`, ..."""

    fisher: dict[str, Artifact] = field(default_factory=dict)


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model: config, tokenizer and generation settings are those of `first`.

    Returns:
        besides what every method says, `at_floor`: the share of elements whose F of `first` is below the floor.

    Raises:
        ValueError: models that do not fit each other, not one weight or not one Fisher information for each.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import check_pairs, pair
    from toolkit.merging.statistics import floats, products

    given = folders(inputs)
    if set(inputs.fisher) != set(given):
        has = ", ".join(sorted(f"fisher.{name}" for name in inputs.fisher)) or "none"
        raise ValueError(f"each model needs its own: {', '.join(f'fisher.{name}' for name in given)}; given: {has}")
    paired = pair(given)
    # rows of tokens that a model lacks are the first's, and so is their information: they stay the first's
    fishers = pair({name: inputs.fisher[name].path for name in given}).tensors
    check_pairs({"first": paired.tensors["first"], "fisher.first": fishers["first"]})
    weights, names = weights_of(spec.weights, given), floats(paired.tensors)
    if spec.normalize:
        squares = products(fishers, lambda x: [f.square() for f in x], ctx.resources.threads)
        weights = normalized(weights, squares)
    tensors = {**paired.tensors, **{f"fisher.{name}": fishers[name] for name in given}}
    counted, lock = [0], Lock()

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        models, information = chunks[: len(given)], chunks[len(given) :]
        below = int((information[0] < spec.floor).sum())
        with lock:
            counted[0] += below
        return fisher(models, information, weights, spec.floor)

    metrics = merge(replace(paired, tensors=tensors), given, "first", combine, spec, out, ctx)
    return metrics | {"at_floor": counted[0] / sum(paired.tensors["first"][name].elements for name in names)}


def normalized(weights: list[float], squares: Mapping[str, list[float]]) -> list[float]:
    """Each weight divided by the length of its model's Fisher information; squares: of each tensor, by model.

    Raises:
        ValueError: a Fisher information is zero everywhere.
    """
    lengths = [math.sqrt(math.fsum(column)) for column in zip(*squares.values(), strict=True)]
    if not all(lengths):
        raise ValueError("the Fisher information of a model is zero everywhere: its rows have no targets, or too few")
    return [weight / length for weight, length in zip(weights, lengths, strict=True)]


def fisher(
    models: "list[torch.Tensor]", information: "list[torch.Tensor]", weights: list[float], floor: float
) -> "torch.Tensor":
    """sum of weight x F x model / sum of weight x F, F of the first being at least `floor`; all are overwritten."""
    information[0].clamp_(min=floor)
    shares = [part.mul_(weight) for part, weight in zip(information, weights, strict=True)]
    total, mass = models[0].mul_(shares[0]), shares[0]
    for model, share in zip(models[1:], shares[1:], strict=True):
        total.add_(model.mul_(share))
        mass.add_(share)
    return total.div_(mass)
