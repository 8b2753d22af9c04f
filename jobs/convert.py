"""Make one model folder out of a training run's kept step, a folder of weights, or an original of another trainer.

An original (OLMo's `config.yaml` with `model.pt` or `model.safetensors`, OLMo-core's `model_and_optim`) is recognised
by its files, converted and proven to compute the same. Every key is checked, and a fixed text is measured.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from toolkit.checkpoints.folders import has_tokenizer
from toolkit.checkpoints.kept import kept_steps, model_folder
from toolkit.checkpoints.whole import whole
from toolkit.stage import Artifact, Context

VERSION = 1
TRANSIENT = True
WARM = ("torch", "tokenizers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """step: one that the source keeps; None takes the model at its root. dtype: of the weights; None leaves them."""

    step: int | None = None
    dtype: Literal["fp32", "bf16", "fp16"] | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """source: a training run, or a folder in Hugging Face format or in one of toolkit/conversion/formats.

    tokenizer: a folder of its files, where the source has none or another is wanted.
    """

    source: Artifact
    tokenizer: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with config, weights and tokenizer.

    Raises:
        ValueError: no such step (those that are there are listed), weights that are not what the config says, or an
            original that cannot be converted or comes out as another model.
    """
    from toolkit.conversion import original
    from toolkit.conversion.convert import convert

    source = whole(model_folder(inputs.source.path, spec.step), ctx.state)
    given = inputs.tokenizer.path if inputs.tokenizer else None
    kind = original.find(source)
    if kind is None:
        return _copy(spec, inputs.source.path, source, given or source, out, ctx)
    tokenizer = given or (source if has_tokenizer(source) else None)
    return convert(kind.read(source), tokenizer, out, spec.dtype, partial(ctx.progress, unit="parameter"))


def _copy(spec: Spec, artifact: Path, source: Path, tokenizer: Path, out: Path, ctx: Context) -> dict[str, Any]:
    """A folder that is in Hugging Face format already."""
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import GENERATION, check_tokenizer, copy_file, copy_tokenizer
    from toolkit.checkpoints.tensors import weight_files
    from toolkit.conversion import torch_files
    from toolkit.conversion.run import bits

    pickled = torch_files.files(source)
    if not pickled:
        check_model(source, tokenizer=tokenizer)
    if pickled:
        _write(source, torch_files.read(source, pickled), out, spec.dtype, ctx)
    elif spec.dtype is None:
        # Only a committed artifact may share its bytes: a folder of the user's own may be written to tomorrow.
        committed = (artifact / "artifact.json").is_file()
        for path in [source / "config.json", *weight_files(source), *source.glob("*.index.json")]:
            copy_file(path, out / path.name, link=committed)
        if (source / GENERATION).is_file():
            copy_file(source / GENERATION, out / GENERATION, link=False)
    else:
        _cast(source, out, spec.dtype, ctx)
    copy_tokenizer(tokenizer, out)
    check_tokenizer(tokenizer, out)
    summary = check_model(out)
    steps = kept_steps(artifact)
    step = spec.step if spec.step is not None else max(steps, default=None)
    found = {"parameters": summary.parameters, "tensors": summary.tensors} | bits(out)
    return found | ({} if step is None else {"step": step})


def _write(source: Path, weights: Any, out: Path, dtype: str | None, ctx: Context) -> None:
    """Weights that were read as ranges of other files, and the config with the dtype that they have then."""
    from toolkit.checkpoints.folders import copy_config
    from toolkit.checkpoints.tensors import PRECISIONS, TORCH
    from toolkit.conversion.weights import save

    word = PRECISIONS[dtype] if dtype else None
    save(weights, out, word, report=partial(ctx.progress, unit="parameter"))
    copy_config(source, out, TORCH[word or next(iter(weights.values())).dtype])


def _cast(source: Path, out: Path, dtype: str, ctx: Context) -> None:
    from toolkit.checkpoints.folders import copy_config
    from toolkit.checkpoints.tensors import PRECISIONS, TORCH, read_folder
    from toolkit.merging.stream import stream

    word = PRECISIONS[dtype]
    stream(
        {"source": read_folder(source)},
        lambda chunks: chunks[0],
        out,
        word,
        report=lambda done, total: ctx.progress(done, total, unit="parameter"),
    )
    copy_config(source, out, TORCH[word])
