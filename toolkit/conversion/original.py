"""A checkpoint in the format of its trainer, as what it takes to convert and to prove it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from toolkit import lookup
from toolkit.checkpoints.tensors import BYTES
from toolkit.conversion.weights import Weight

if TYPE_CHECKING:
    import torch

FORMATS = "toolkit.conversion.formats"
Load = Callable[[str], Any]  # the original's name of a weight -> the tensor in fp32


@dataclass(frozen=True, kw_only=True)
class Stress:
    """How the original is run in a proof: `shorter` is taken off its windows, `clip` multiplies where it clips."""

    shorter: int = 0
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Original:
    """sources: the model's weights by the original's names. targets: by Hugging Face's names, in the order of the file.

    config: of the Hugging Face model. windows: of its layers, in tokens with the token itself; None is full attention.
    clip: where queries, keys and values are clipped. rotary: layer -> its frequencies, and a factor on sine and cosine.
    logits: (ids [B, T], load, stress, scale [B, 1, 1]) -> [B, T, rows of the embedding], computed by the original's
        layout and config alone; `scale` multiplies the embedded tokens.
    """

    format: str
    folder: Path
    sources: Mapping[str, Weight]
    targets: Mapping[str, Weight]
    config: Mapping[str, Any]
    windows: Sequence[int | None]
    clip: float | None
    rotary: "Callable[[int], tuple[torch.Tensor, float]]"
    logits: "Callable[[torch.Tensor, Load, Stress, torch.Tensor], torch.Tensor]"


def find(folder: Path) -> ModuleType | None:
    """The module of the format that a folder is in, by its files; None for others (Hugging Face's among them)."""
    modules = [lookup.find(FORMATS, name, "original format") for name in lookup.names(FORMATS)]
    return next((module for module in modules if module.found(folder)), None)


def check_consumed(original: Original) -> None:
    """Every byte of the original's weights goes to one place of the target.

    Raises:
        ValueError: a weight that the target does not take, or takes twice, or takes in part.
    """
    ranges = sorted(
        (str(p.tensor.file), p.tensor.start, p.tensor.start + p.tensor.elements * BYTES[p.tensor.dtype], weight.name)
        for weight in original.targets.values()
        for p in weight.pieces
    )
    for (file, _, end, name), (following, start, _, other) in pairwise(ranges):
        if file == following and start < end:
            raise ValueError(f"{original.folder}: weights of {name!r} and {other!r} would be used twice")
    used: dict[str, int] = dict.fromkeys(original.sources, 0)
    for weight in original.targets.values():
        if weight.pieces:
            used[weight.name] += weight.elements
    for name, elements in used.items():
        if elements != original.sources[name].elements:
            raise ValueError(
                f"{original.folder}: a {original.config['model_type']} takes {elements:,} of the"
                f" {original.sources[name].elements:,} elements of {name!r}: the weights are not what the config says"
            )
