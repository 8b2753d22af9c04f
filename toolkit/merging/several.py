"""What methods that merge any number of models share: inputs by name, weights, and the pieces of what each changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Artifact

if TYPE_CHECKING:
    import torch

NAMES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


@dataclass(frozen=True, kw_only=True)
class Several:
    """Two to eight models of one architecture; the output has the vocabulary and the tokenizer of the first."""

    first: Artifact
    second: Artifact
    third: Artifact | None = None
    fourth: Artifact | None = None
    fifth: Artifact | None = None
    sixth: Artifact | None = None
    seventh: Artifact | None = None
    eighth: Artifact | None = None


@dataclass(frozen=True, kw_only=True)
class SeveralFromBase:
    """One to eight models that were trained from `base`; vocabulary and tokenizer of the output are the first's."""

    base: Artifact
    first: Artifact
    second: Artifact | None = None
    third: Artifact | None = None
    fourth: Artifact | None = None
    fifth: Artifact | None = None
    sixth: Artifact | None = None
    seventh: Artifact | None = None
    eighth: Artifact | None = None


def folders(inputs: Several | SeveralFromBase) -> dict[str, Path]:
    """Role -> folder of the models that are given; `base`, where there is one, comes first."""
    given = {name: getattr(inputs, name, None) for name in ("base", *NAMES)}
    return {name: artifact.path for name, artifact in given.items() if artifact is not None}


def check_weights(weights: Sequence[float]) -> None:
    """A spec's weights, as far as they can be judged without the models.

    Raises:
        ValueError: more than there can be models.
    """
    if len(weights) > len(NAMES):
        raise ValueError(f"weights has {len(weights)} numbers, and there are at most {len(NAMES)} models")


def check_share(name: str, value: float) -> None:
    """A share of the elements.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value:g}: it must be above 0 and at most 1")


def weights_of(given: Sequence[float], models: Mapping[str, Any]) -> list[float]:
    """A weight for each model but the base: as given, or 1 for all.

    Raises:
        ValueError: not one for each.
    """
    roles = [role for role in models if role != "base"]
    if given and len(given) != len(roles):
        raise ValueError(
            f"weights has {len(given)} numbers for {len(roles)} models ({', '.join(roles)}): give one for each"
        )
    return list(given) or [1.0] * len(roles)


def deltas(base: "torch.Tensor", models: "Sequence[torch.Tensor]") -> "list[torch.Tensor]":
    """model - base, in place of each model."""
    return [model.sub_(base) for model in models]


def weighted(parts: "Sequence[torch.Tensor]", weights: Sequence[float]) -> "torch.Tensor":
    """w0 x p0 + w1 x p1 + ..., each operation rounded to fp32, in place of the parts."""
    first, *others = (part.mul_(weight) for part, weight in zip(parts, weights, strict=True))
    for other in others:
        first.add_(other)
    return first
