"""Delta merge: final = trained + scale x (instruct - base), tensor by tensor, in fp32.

`trained` went on from `base` by further pre-training; what instruction tuning did to `base` is added to it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import torch

    from toolkit.merging.norms import Norms


@dataclass(frozen=True, kw_only=True)
class Spec:
    """scale: of the delta; 0 gives `trained`, bit for bit. dtype: of the output; None is that of `trained`.

    Rounding to bf16 can destroy much of a small training change: merge fp32 weights into fp32 where they are there.
    """

    method: str
    scale: float = 1.0
    dtype: Literal["fp32", "bf16", "fp16"] | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Three models of one architecture and vocabulary."""

    trained: Artifact
    base: Artifact
    instruct: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the merged model: config as `trained`'s, tokenizer and generation settings of `instruct`.

    Raises:
        ValueError: models that do not fit each other (the tensor and its shapes are named), damaged weights.
    """
    import torch

    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import GENERATION, copy_config, copy_file, copy_tokenizer
    from toolkit.checkpoints.tensors import PRECISIONS, TORCH
    from toolkit.merging.norms import Norms
    from toolkit.merging.stream import read_models, stream

    torch.set_num_threads(ctx.resources.threads)
    folders = {"trained": inputs.trained.path, "base": inputs.base.path, "instruct": inputs.instruct.path}
    models = read_models(folders)
    norms = Norms()
    dtype = PRECISIONS[spec.dtype] if spec.dtype else None
    stream(
        models,
        lambda chunks: delta(chunks, spec.scale, norms),
        out,
        dtype,
        report=lambda done, total: ctx.progress(done, total, unit="parameter"),
    )
    copy_config(folders["trained"], out, TORCH[dtype or main_dtype(models["trained"])])
    copy_tokenizer(folders["instruct"], out)
    if (folders["instruct"] / GENERATION).is_file():
        (out / GENERATION).unlink(missing_ok=True)
        copy_file(folders["instruct"] / GENERATION, out / GENERATION, link=False)
    return {"parameters": check_model(out).parameters, **metrics(norms)}


def delta(chunks: "list[torch.Tensor]", scale: float, norms: "Norms") -> "torch.Tensor":
    """trained + scale x (instruct - base) of fp32 chunks, which are overwritten; their sizes go into `norms`."""
    trained, base, instruct = chunks
    norms.add("base", base)
    norms.add("instruct", instruct)
    norms.add("change", trained - base)
    difference = instruct.sub_(base)
    norms.add("delta", difference)
    # Adding 0 x delta would turn -0.0 into 0.0, and an infinite delta into NaN.
    return trained if scale == 0 else trained.add_(difference, alpha=scale)


def metrics(norms: "Norms") -> dict[str, float]:
    """Sizes and ratios: `*_abs` are means of |x|, `*_square` of x^2; change: trained - base, delta: instruct - base."""
    found: dict[str, float] = {}
    for name in ("base", "instruct", "delta", "change"):
        found[f"{name}_abs"], found[f"{name}_square"] = norms.mean_abs(name), norms.mean_square(name)
    for over, under in (("delta", "base"), ("change", "base"), ("change", "delta")):
        if norms.mean_abs(under) > 0:
            found[f"{over}_over_{under}_abs"] = norms.mean_abs(over) / norms.mean_abs(under)
            found[f"{over}_over_{under}_square"] = norms.mean_square(over) / norms.mean_square(under)
    return found


def main_dtype(tensors: Any) -> str:
    """safetensors' word for the type that most of the elements have."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
    return max(sizes, key=lambda word: sizes[word])
