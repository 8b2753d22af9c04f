"""Half precision, the baseline: every weight rounded to bf16 or fp16, an ordinary model folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """dtype: of the weights."""

    scheme: str
    dtype: Literal["bf16", "fp16"] = "bf16"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a plain one."""

    model: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the rounded model and the errors of its tensors.

    Raises:
        ValueError: a weight that fp16 cannot hold.
    """
    import torch

    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import copy_config, copy_tokenizer
    from toolkit.checkpoints.tensors import FLOATS, PRECISIONS, TORCH, chunks, read_folder, write_folder
    from toolkit.quantization.errors import Errors, bytes_of, finish

    source, word, errors = inputs.model.path, PRECISIONS[spec.dtype], Errors()
    found = read_folder(source)
    total, done = sum(tensor.elements for tensor in found.values()), 0

    def parts(name: str) -> Iterator[torch.Tensor]:
        nonlocal done
        tensor = found[name]
        for chunk in chunks(tensor):
            rounded = chunk.to(getattr(torch, TORCH[word])) if tensor.dtype in FLOATS else chunk
            if tensor.dtype in FLOATS:
                errors.add(name.removesuffix(".weight"), chunk, rounded)
            done += chunk.numel()
            ctx.progress(done, total, unit="parameter")
            yield rounded

    write_folder(out, found, word, parts)
    copy_config(source, out, TORCH[word])
    copy_tokenizer(source, out)
    check_model(out)
    return finish(out, bytes_of(source), errors)
