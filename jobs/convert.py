"""Make one model folder out of a training run's kept step, or of a folder of weights, with every key checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.checkpoints.kept import kept_steps, model_folder
from toolkit.stage import Artifact, Context

VERSION = 1
WARM = ("torch", "tokenizers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """step: one that the source keeps; None takes the model at its root. dtype: of the weights; None leaves them."""

    step: int | None = None
    dtype: Literal["fp32", "bf16", "fp16"] | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """source: a training run, or an adopted folder in Hugging Face format."""

    source: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with config, weights and tokenizer.

    Raises:
        ValueError: no such step (those that are there are listed), or weights that are not what the config says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import GENERATION, copy_file, copy_tokenizer
    from toolkit.checkpoints.tensors import weight_files

    source = model_folder(inputs.source.path, spec.step)
    summary = check_model(source)
    if spec.dtype is None:
        # Only a committed artifact may share its bytes: a folder of the user's own may be written to tomorrow.
        committed = (inputs.source.path / "artifact.json").is_file()
        for path in [source / "config.json", *weight_files(source), *source.glob("*.index.json")]:
            copy_file(path, out / path.name, link=committed)
        if (source / GENERATION).is_file():
            copy_file(source / GENERATION, out / GENERATION, link=False)
    else:
        _cast(source, out, spec.dtype, ctx)
    copy_tokenizer(source, out)
    check_model(out)
    steps = kept_steps(inputs.source.path)
    step = spec.step if spec.step is not None else max(steps, default=None)
    return {"parameters": summary.parameters, "tensors": summary.tensors} | ({} if step is None else {"step": step})


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
