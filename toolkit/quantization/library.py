"""Models that transformers quantizes with a library of its own choice, and saves so that it loads them again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Context

if TYPE_CHECKING:
    import torch


def run(
    source: Path, out: Path, config: Any, weight_of: "Callable[[torch.nn.Module], torch.Tensor]", ctx: Context
) -> dict[str, Any]:
    """Load the model of `source` by `config`, save it to `out`, and compare its linear layers with what they were.

    weight_of: a quantized linear layer -> its weight in floats.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import copy_tokenizer
    from toolkit.checkpoints.tensors import chunks, read_folder
    from toolkit.quantization.errors import Errors, bytes_of, finish
    from toolkit.quantization.store import linears

    check_model(source)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(source), dtype="auto", quantization_config=config, local_files_only=True
    )
    found, errors, names = read_folder(source), Errors(), linears(model)
    for done, name in enumerate(names, 1):
        tensor = found[f"{name}.weight"]
        errors.add(
            name, torch.cat(list(chunks(tensor))).reshape(tensor.shape), weight_of(model.get_submodule(name)).cpu()
        )
        ctx.progress(done, len(names), unit="layer")
    model.save_pretrained(out)
    for path in out.glob("*.safetensors"):  # written for the owner only; a root is shared by a group
        path.chmod((out / "config.json").stat().st_mode)
    copy_tokenizer(source, out)
    return finish(out, bytes_of(source), errors)
