"""Load a model artifact (a Hugging Face folder) for inference, and say what is wrong with one that cannot be used.

Loading is strict: transformers only warns about missing or unexpected keys and goes on with random weights.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.checkpoints.check import read_config
from toolkit.checkpoints.folders import GENERATION, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load(
    folder: Path, precision: Precision, threads: int, rank: int = 0, kind: str = "AutoModelForCausalLM"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The model of `folder` in eval mode, on the GPU of this rank if there is one, and its tokenizer.

    precision: the type the weights are held and multiplied in; "auto" takes the one of config.json.
    threads: CPU threads of torch, for the whole process. kind: the class of transformers that reads it.

    Raises:
        ValueError: no model in the folder, weights that cannot be read or do not fit the architecture, a tokenizer
            that knows more tokens than the model has embeddings.
    """
    import torch

    from toolkit.quantization import store

    torch.set_num_threads(threads)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: there is no config.json; give a model artifact or an HF folder")
    quantized = store.is_quantized(folder)
    model = store.load(folder, DTYPES[precision]) if quantized else _weights(folder, DTYPES[precision], kind)
    if (folder / "adapter").is_dir():
        from toolkit.training.adapters import attach

        model = attach(model, folder / "adapter")
    tokenizer = load_tokenizer(folder)
    rows = _embedding(model).shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and the model's embedding only {rows} rows; "
            "give the tokenizer that the model was trained with, or resize the embedding"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda", rank % gpus) if gpus else torch.device("cpu")
    module: Any = model
    module.to(device)
    return module.eval(), tokenizer


def _weights(folder: Path, dtype: str, kind: str) -> "PreTrainedModel":
    import transformers
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    reader: Any = getattr(transformers, kind)
    try:
        loaded = reader.from_pretrained(str(folder), dtype=dtype, local_files_only=True, output_loading_info=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"the weights of {folder} cannot be read: {error}") from error
    model, info = loaded
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    for kind, keys in wrong.items():
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise ValueError(f"{folder}: {len(keys)} {kind.replace('_', ' ')} when loading the weights: {shown}")
    assert isinstance(model, PreTrainedModel)
    return model


def context_length(model: "PreTrainedModel | PreTrainedConfig") -> int | None:
    """Positions (tokens) that a model, or the model of a config, was made for; None where it sets no limit."""
    owner: Any = model
    return getattr(getattr(owner, "config", owner).get_text_config(), "max_position_embeddings", None)


def padding_matters(model: "PreTrainedModel") -> bool:
    """Whether padding on the left changes an answer: what prompt or prefix tuning put before the text is then farther
    away from it."""
    return hasattr(model, "peft_config")


def end_tokens(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that end an answer: those of the model's generation_config.json (of its config.json where it has none) and
    the tokenizer's end-of-sequence token."""
    from transformers import GenerationConfig

    if (folder / GENERATION).is_file():
        found = GenerationConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id
    else:
        found = GenerationConfig.from_model_config(read_config(folder)).eos_token_id
    ids = {found} if isinstance(found, int) else set(found or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)


def has_cuda() -> bool:
    """Whether there is a GPU, asked without starting CUDA: a process that has started it can fork no ranks."""
    import torch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return bool(torch.cuda.is_available())


def device_of(model: "PreTrainedModel") -> "torch.device":
    """Where inputs of the model have to be."""
    return _embedding(model).device


def _embedding(model: "PreTrainedModel") -> "torch.Tensor":
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight
