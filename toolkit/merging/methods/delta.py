"""Delta merge: final = trained + scale x (instruct - base), tensor by tensor, in fp32.

`trained` went on from `base` by further pre-training; what instruction tuning did to `base` is added to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.merging.rounding import Rounding
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Chunk, Place


@dataclass(frozen=True, kw_only=True)
class Spec:
    """scale: of the delta; 0 gives `trained`, bit for bit. dtype: of the output; None is that of `trained`.

    scales: of tensors whose names fit a pattern (`model.layers.[0-7].*`), instead of `scale`. rounding: to the dtype;
    `seed` chooses the bits of a stochastic one. tokenizer: whose vocabulary, tokenizer and generation settings the
    output has. weights: write weights.parquet, the sizes of everything (and the rows sampled for it, by `seed`).

    Rounding to bf16 can destroy much of a small training change: merge fp32 weights into fp32 where they are there.
    """

    method: str
    scale: float = 1.0
    dtype: Literal["fp32", "bf16", "fp16"] | None = None
    scales: dict[str, float] = field(default_factory=dict)
    rounding: Rounding = "nearest"
    seed: int = 0
    tokenizer: Literal["instruct", "trained"] = "instruct"
    weights: bool = True


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Three models of one architecture."""

    trained: Artifact
    base: Artifact
    instruct: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model: config as `trained`'s, tokenizer and generation settings of `instruct`.

    Raises:
        ValueError: models that do not fit each other (the tensor and its shapes are named), damaged weights, a pattern
            that fits no tensor, or two that fit one.
    """
    from toolkit.merging.merge import merge
    from toolkit.merging.models import pair
    from toolkit.merging.weights import Weights, save

    folders = {"trained": inputs.trained.path, "base": inputs.base.path, "instruct": inputs.instruct.path}
    paired = pair(folders, like=spec.tokenizer, base="base")
    tensors = paired.tensors["trained"]
    scales = scale_of(tensors, spec.scale, spec.scales)
    sizes = Weights(shapes={name: tensor.shape for name, tensor in tensors.items()}, seed=spec.seed)

    def combine(place: "Place", chunks: "list[Chunk]") -> "Chunk":
        trained, base, instruct = chunks
        if spec.weights:
            sizes.measure(place, base, instruct, trained)
        return delta(trained, base, instruct, scales[place.name])

    metrics = merge(paired, folders, spec.tokenizer, combine, spec, out, ctx, halves=True)
    if spec.weights:
        save(sizes.rows(), out)
        metrics |= sizes.metrics()
    return metrics


def delta(trained: "Chunk", base: "Chunk", instruct: "Chunk", scale: float) -> "Chunk":
    """trained + scale x (instruct - base), in fp32 whatever the chunks are; they may be overwritten."""
    import torch

    if isinstance(trained, torch.Tensor):
        return add(trained, instruct.sub_(base), scale)
    from toolkit.merging import compiled

    if scale:
        compiled.delta(trained, base, instruct, scale)
    return trained


def add(trained: "torch.Tensor", difference: "torch.Tensor", scale: float) -> "torch.Tensor":
    """trained + scale x difference, each operation rounded to fp32; both are overwritten.

    Hazard: `add(..., alpha=scale)` rounds once in some elements of a tensor and twice in others.
    """
    if scale == 0:  # adding 0 x delta would turn -0.0 into 0.0, and an infinite delta into NaN
        return trained
    return trained.add_(difference if scale == 1 else difference.mul_(scale))


def scale_of(names: Iterable[str], scale: float, patterns: Mapping[str, float]) -> dict[str, float]:
    """The scale of every tensor: that of the pattern which its name fits, else `scale`.

    Raises:
        ValueError: a pattern that fits no name; a name that patterns with different scales fit.
    """
    found = dict.fromkeys(names, scale)
    owner: dict[str, str] = {}
    for pattern, value in patterns.items():
        fitting = [name for name in found if fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(
                f"no tensor has a name like {pattern!r} of scales; names are {', '.join(list(found)[:4])}, ..."
            )
        for name in fitting:
            if name in owner and patterns[owner[name]] != value:
                raise ValueError(
                    f"tensor {name!r} fits {owner[name]!r} ({patterns[owner[name]]:g}) and {pattern!r} ({value:g}) of"
                    " scales: let one pattern fit each tensor"
                )
            found[name], owner[name] = value, pattern
    return found
