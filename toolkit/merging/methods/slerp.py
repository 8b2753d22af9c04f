"""Spherical interpolation of two models, tensor by tensor: along the arc between their directions, not the chord.

K. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985, applied to each tensor as one vector.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Place

NEARLY_ALIKE = 0.9995  # cosine beyond which the arc is as good as straight, and its formula divides by almost nothing


@dataclass(frozen=True, kw_only=True)
class Spec:
    """share: of the way from `first` to `second`; 0 gives `first`, 1 `second`.

    dtype: of the output; None is that of `first`. rounding: to it; `seed` chooses the bits of a stochastic one.
    """

    method: str
    share: float = 0.5
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    rounding: Rounding = "nearest"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share:g}: it must be from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Two models of one architecture; config, tokenizer and generation settings are those of the first."""

    first: Artifact
    second: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model; a pass before the merge takes lengths and angles.

    Raises:
        ValueError: models that do not fit each other.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import pair
    from toolkit.merging.statistics import products

    given = {"first": inputs.first.path, "second": inputs.second.path}
    paired = pair(given)
    sums = products(paired.tensors, lambda x: [x[0] * x[0], x[1] * x[1], x[0] * x[1]], ctx.resources.threads)
    shares = {name: coefficients(one, two, both, spec.share) for name, (one, two, both) in sums.items()}

    def combine(place: "Place", chunks: "list[torch.Tensor]") -> "torch.Tensor":
        return slerp(chunks[0], chunks[1], *shares[place.name])

    return merge(paired, given, "first", combine, spec, out, ctx)


def coefficients(first: float, second: float, product: float, share: float) -> tuple[float, float]:
    """What two vectors are multiplied by, from their squared lengths and their product.

    Straight interpolation where one is zero or they point the same way or opposite ways (|cosine| above 0.9995).
    """
    length = math.sqrt(first) * math.sqrt(second)
    cosine = max(-1.0, min(1.0, product / length)) if length > 0 else 1.0
    if abs(cosine) > NEARLY_ALIKE:
        return 1 - share, share
    angle = math.acos(cosine)
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


def slerp(first: "torch.Tensor", second: "torch.Tensor", one: float, two: float) -> "torch.Tensor":
    """one x first + two x second, with the `coefficients` of the whole tensors; both are overwritten."""
    return first.mul_(one).add_(second.mul_(two))
