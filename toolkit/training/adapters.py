"""Parameter-efficient tuning: a little is trained beside a model, or inside it, and all of the model else is frozen.

What is stored is in PEFT's format (`adapter_model.safetensors`, `adapter_config.json`), with two types that PEFT has
not: BITFIT holds tensors that take the place of the model's own, BOTTLENECK is `toolkit.training.bottleneck`. Those of
`MERGING` become a plain model; the others stay beside the model that they were trained for.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.folders import CONFIG, TOKENIZER, copy_config, copy_tokenizer
from toolkit.checkpoints.tensors import INDEX, PRECISIONS, chunks, read_folder, read_header, weight_files, write_file
from toolkit.stage import Context

if TYPE_CHECKING:
    import torch

    from toolkit.checkpoints.tensors import Tensor

WEIGHTS, WORDS = "adapter_model.safetensors", "adapter_config.json"
BESIDE = "adapter"  # the folder beside a restored model, of an adapter that does not become part of it
MERGING = ("LORA", "IA3", "BITFIT")

Files = tuple[dict[str, Any], "dict[str, torch.Tensor]"]  # adapter_config.json, and what was trained


def tune(
    spec: Any,
    inputs: Any,
    out: Path,
    ctx: Context,
    wrap: Callable[[Any], Any],
    files: "Callable[[Any, dict[str, torch.Tensor]], Files] | None" = None,
    config: dict[str, Any] | None = None,
    how: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Supervised fine-tuning (the spec has the fields of `sft`) of what `wrap` leaves trainable; fills `out` with it.

    files: (model, what was trained) -> what the adapter's files hold; PEFT's by default. config: fields of the model's
    config that are changed. how: the model is read so, as the engine's `Run` has it.

    Raises:
        ValueError: nothing is left to train, and what `sft` says.
    """
    from toolkit.checkpoints.whole import refer
    from toolkit.training.methods import sft

    size = elements(inputs.model.path)

    def frozen_but(model: Any) -> Any:
        import torch

        torch.manual_seed(spec.seed)  # the same beginning on every rank, for every checkpoint
        wrapped = wrap(model)
        if not any(parameter.requires_grad for parameter in wrapped.parameters()):
            raise ValueError(f"{spec.method} leaves nothing to train in a {model.config.model_type}")
        return wrapped

    def write(model: Any, weights: "dict[str, torch.Tensor]", folder: Path) -> None:
        _write((files or peft_files)(model, weights), folder, size)

    numbers = sft.tune(spec, inputs, out, ctx, frozen_but, adapter=write, config=config or {}, how=how or {})
    refer(out, inputs.model, "adapter")
    return numbers


def with_peft(model: Any, config: Any) -> Any:
    """A PEFT model around `model`.

    Raises:
        ValueError: the config names modules that the model has not.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"{error}; the model's linear layers are {', '.join(linear_names(model))}") from error


def linear_names(model: Any) -> list[str]:
    """The names that linear layers have inside the blocks, each once."""
    import torch

    names = [n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.count(".") > 1]
    return list(dict.fromkeys(names))


def peft_files(model: Any, weights: "dict[str, torch.Tensor]") -> Files:
    """An adapter as PEFT would save it, from tensors that were gathered before."""
    from peft import get_peft_model_state_dict

    config = copy.copy(model.peft_config["default"])
    if config.is_prompt_learning:
        [tensor] = weights.values()
        tensors = {"prompt_embeddings": tensor}
    else:
        tensors = get_peft_model_state_dict(model, state_dict=weights, save_embedding_layers=False)
    assert len(tensors) == len(weights), f"PEFT saves {len(tensors)} tensors of the {len(weights)} that were trained"
    config.base_model_name_or_path = None  # base.json says it
    config.inference_mode = True
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}, tensors


def _write(files: Files, folder: Path, base_elements: int) -> None:
    from safetensors.torch import save_file

    words, tensors = files
    told = {"base_elements": str(base_elements)}  # of two entries safetensors would choose the order by chance
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, told)
    (folder / WORDS).write_text(json.dumps(words, indent=1, sort_keys=True) + "\n")


def kind_of(folder: Path) -> str:
    """The `peft_type` of an adapter's folder.

    Raises:
        ValueError: there is no adapter.
    """
    if not (folder / WORDS).is_file():
        raise ValueError(f"{folder} holds no adapter: there is no {WORDS}")
    return str(json.loads((folder / WORDS).read_text())["peft_type"])


def attach(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder` at work, for inference.

    Raises:
        ValueError: the adapter does not fit: it was trained for another model.
    """
    from safetensors.torch import load_file

    from toolkit.training import bottleneck

    if kind_of(folder) == "BOTTLENECK":
        words = json.loads((folder / WORDS).read_text())
        bottleneck.insert(model, words["size"], tuple(words["targets"]), words["activation"])
        own = {name: p for name, p in model.named_parameters() if bottleneck.NAME in name.split(".")}
        fill(own, load_file(folder / WEIGHTS), folder)
        return model
    return _attach_peft(model, folder)


def _attach_peft(model: Any, folder: Path) -> Any:
    """Hazard: PEFT leaves what an adapter lacks at its beginning, and only warns of it."""
    from peft import PeftModel, get_peft_model_state_dict

    try:
        wrapped = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=False)
        there = get_peft_model_state_dict(wrapped, save_embedding_layers=False).keys()
        different = sorted(there ^ read_header(folder / WEIGHTS).keys())[:1]
    except (RuntimeError, ValueError) as error:  # a size that differs, or a name that the model has not
        different = [str(error).splitlines()[0]]
    if different:
        raise ValueError(
            f"the adapter in {folder} does not fit this model: it was trained for another ({different[0]})"
        )
    return wrapped


def fill(own: "dict[str, torch.nn.Parameter]", tensors: "dict[str, torch.Tensor]", folder: Path) -> None:
    """Copy an adapter's tensors into the parameters of their names.

    Raises:
        ValueError: names or shapes differ.
    """
    import torch

    for name in own.keys() | tensors.keys():
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise ValueError(f"the adapter in {folder} does not fit this model: it was trained for another ({name!r})")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def merge(folder: Path, base: Path, out: Path) -> None:
    """Fill `out` with the plain model that the adapter in `folder` makes of `base`, in fp32.

    Raises:
        ValueError: the adapter was trained for another model.
    """
    check_base(folder, base)
    copy_tokenizer(base, out)
    if kind_of(folder) == "BITFIT":
        _overlay(folder, base, out)
        copy_config(base, out, "float32")
        words = json.loads((folder / WORDS).read_text())["config"]
        config = json.loads((out / CONFIG).read_text()) | words
        (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        return
    import torch
    from transformers import AutoModelForCausalLM

    model = attach(AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, local_files_only=True), folder)
    model.merge_and_unload().save_pretrained(out, max_shard_size="5GB")
    copy_config(base, out, "float32")


def _overlay(folder: Path, base: Path, out: Path) -> None:
    """The base's tensors, but for those that the adapter has; one file, tensor by tensor."""
    found: dict[str, Tensor] = {**read_folder(base), **read_header(folder / WEIGHTS)}
    write_file(
        out / "model.safetensors",
        {name: (PRECISIONS["fp32"], tensor.shape) for name, tensor in found.items()},
        lambda name: (part.float() for part in chunks(found[name])),
    )


def check_base(folder: Path, base: Path) -> None:
    """That an adapter was trained for a model of this size; that it was for this one, `base.json`'s fingerprint says.

    Raises:
        ValueError: it was not.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        trained_for = int(file.metadata()["base_elements"])
    size = elements(base)
    if size != trained_for:
        raise ValueError(
            f"the adapter in {folder} was trained for another model than {base}: that had {trained_for:,} weights, and"
            f" this has {size:,}"
        )


def elements(base: Path) -> int:
    """How many weights a model folder holds."""
    return sum(tensor.elements for tensor in read_folder(base).values())


def put_beside(folder: Path, base: Path, out: Path) -> None:
    """Fill `out` with names for the files of `base`, and `adapter/` with those of an adapter that is not merged.

    Nothing is copied: `out` is scratch, and what its links lead to is committed.

    Raises:
        ValueError: the adapter was trained for another model.
    """
    check_base(folder, base)
    copy_config(base, out, "float32")  # so that it is asked in fp32, as the models are that were merged
    names = [INDEX, *TOKENIZER, *(path.name for path in weight_files(base))]
    for name in names:
        if (base / name).is_file():
            (out / name).symlink_to((base / name).absolute())
    (out / BESIDE).mkdir()
    for name in (WEIGHTS, WORDS):
        (out / BESIDE / name).symlink_to((folder / name).absolute())
