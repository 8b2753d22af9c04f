"""Model folders with integers in them: `quantization.json` says how they compute, safetensors hold codes and scales.

Linear layers are quantized, the output head and the embeddings are not; what is not quantized keeps its bits. Codes
lie under the name of the weight that they stand for, with `_scale` and `_zero` beside it. So no reader of plain models
takes them for weights: it finds tensors that it does not know, and refuses.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from toolkit.checkpoints.check import check_model, read_config
from toolkit.checkpoints.folders import CONFIG, GENERATION, copy_file, copy_tokenizer
from toolkit.checkpoints.tensors import SINGLE, TORCH, Tensor, chunks, read_folder, weight_files, write_file
from toolkit.quantization import layers
from toolkit.quantization.errors import Errors
from toolkit.quantization.integers import Integers, dequantize, pack
from toolkit.stage import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORDS = "quantization.json"
_NAMES = {dtype: word for word, dtype in TORCH.items()}


def linears(model: nn.Module) -> list[str]:
    """The names of the linear layers of a causal language model, but for its output head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head]


def write(
    source: Path,
    out: Path,
    words: Mapping[str, Any],
    quantize: Callable[[torch.Tensor], Integers],
    ctx: Context,
    extra: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> Errors:
    """Write the quantized model of a plain one, a tensor at a time, and say how far it is from it.

    words: the kind of layer, for `layers.build`; with `group`, codes are 4-bit and packed. quantize: a weight [rows,
    columns] to integers. extra: layer -> tensors to store beside its weight.

    Raises:
        ValueError: a model that is damaged, or has no linear layer.
    """
    from transformers import AutoModelForCausalLM

    check_model(source)
    with torch.device("meta"):
        names = linears(AutoModelForCausalLM.from_config(read_config(source)))
    found, errors = read_folder(source), Errors()
    missing = [name for name in names if f"{name}.weight" not in found]
    if not names or missing:
        raise ValueError(f"{source} has no linear layer that could be quantized (looked for {missing[:3] or 'any'})")
    packed = "group" in words
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    given = {f"{layer}.{name}": t for layer, tensors in (extra or {}).items() for name, t in tensors.items()}
    for name, tensor in found.items():
        made = _stored(name, quantize(torch.empty(tensor.shape, device="meta")), packed) if _in(name, names) else {}
        shapes |= {n: (_word(t), tuple(t.shape)) for n, t in made.items()} or {name: (tensor.dtype, tensor.shape)}
    shapes |= {name: (_word(t), tuple(t.shape)) for name, t in given.items()}
    ready: dict[str, torch.Tensor] = dict(given)
    done = 0

    def parts(name: str) -> Iterator[torch.Tensor | Tensor]:
        nonlocal done
        if _in(name, names):
            weight = torch.cat(list(chunks(found[name]))).reshape(found[name].shape)
            integers = quantize(weight)
            errors.add(name.removesuffix(".weight"), weight, dequantize(integers).reshape(weight.shape))
            ready.update(_stored(name, integers, packed))
        done += 1
        ctx.progress(done, len(shapes), unit="tensor")
        yield ready.pop(name).reshape(-1) if name in ready else found[name]

    write_file(out / SINGLE, shapes, parts)
    (out / WORDS).write_text(json.dumps(dict(words), indent=1, sort_keys=True) + "\n")
    finish(source, out)
    return errors


def finish(source: Path, out: Path) -> None:
    """Config, generation settings and tokenizer as they are."""
    copy_file(source / CONFIG, out / CONFIG, link=False)
    if (source / GENERATION).is_file():
        copy_file(source / GENERATION, out / GENERATION, link=False)
    copy_tokenizer(source, out)


def _in(name: str, names: list[str]) -> bool:
    return name.endswith(".weight") and name.removesuffix(".weight") in names


def _word(tensor: torch.Tensor) -> str:
    return _NAMES[str(tensor.dtype).removeprefix("torch.")]


def _stored(name: str, integers: Integers, packed: bool) -> dict[str, torch.Tensor]:
    codes = pack(integers.codes.flatten(1)) if packed else integers.codes
    zero = {} if integers.zero is None else {f"{name}_zero": integers.zero.to(torch.int8)}
    return {name: codes, f"{name}_scale": integers.scale, **zero}


def is_quantized(folder: Path) -> bool:
    """Whether `load` reads it, rather than transformers."""
    return (folder / WORDS).is_file()


def load(folder: Path, dtype: str) -> "PreTrainedModel":
    """The model of a folder that `write` made; what is not quantized has type `dtype` ("auto": the config's).

    Raises:
        ValueError: tensors that are missing, or that the architecture does not have.
    """
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    config, words = read_config(folder), json.loads((folder / WORDS).read_text())
    floats: Any = (config.dtype or torch.float32) if dtype == "auto" else getattr(torch, dtype)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=floats)
    tensors = {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}
    wanted = set(linears(model))
    mine: dict[str, dict[str, torch.Tensor]] = {name: {} for name in wanted}
    for name in [name for name in tensors if name.rpartition(".")[0] in wanted]:
        layer, _, field = name.rpartition(".")
        mine[layer][field] = tensors.pop(name)
    for name, fields in mine.items():
        if not {"weight", "weight_scale"} <= fields.keys():
            raise ValueError(f"{folder} lacks the codes or the scale of layer {name!r}: see `tidemark verify`")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layers.build(words, fields, floats))
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    buffers = {f"{name}.{field}" for name in wanted for field, _ in model.get_submodule(name).named_buffers()}
    missing = [name for name in missing if name not in buffers | tied]
    if missing or unexpected:
        raise ValueError(f"{folder}: missing {missing[:3]}, unexpected {unexpected[:3]} when loading the weights")
    return model
