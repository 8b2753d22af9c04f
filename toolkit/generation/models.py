"""Load a model artifact (a Hugging Face folder) for inference, and say what is wrong with one that cannot be used.

Loading is strict: transformers only warns about missing or unexpected keys and goes on with random weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.checkpoints.folders import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def load(folder: Path, precision: Precision, threads: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The causal language model of `folder` in eval mode, on the first GPU if there is one, and its tokenizer.

    precision: the type the weights are held and multiplied in; "auto" takes the one of config.json.
    threads: CPU threads of torch, for the whole process.

    Raises:
        ValueError: no model in the folder, weights that cannot be read or do not fit the architecture, a tokenizer
            that knows more tokens than the model has embeddings.
    """
    import torch

    from toolkit.quantization import store

    torch.set_num_threads(threads)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: there is no config.json; give a model artifact or an HF folder")
    model = store.load(folder, DTYPES[precision]) if store.is_quantized(folder) else _weights(folder, DTYPES[precision])
    tokenizer = load_tokenizer(folder)
    rows = _embedding(model).shape[0]
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer of {folder} has {len(tokenizer)} tokens and the model's embedding only {rows} rows; "
            "give the tokenizer that the model was trained with, or resize the embedding"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)  # type: ignore[arg-type]
    return model.eval(), tokenizer


def _weights(folder: Path, dtype: str) -> "PreTrainedModel":
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, PreTrainedModel

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, output_loading_info=True
        )
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


def context_length(model: "PreTrainedModel") -> int | None:
    """Positions (tokens) the model was made for; None where its config sets no limit."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None)


def end_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids that end an answer: those of the model's generation_config.json and the tokenizer's end-of-sequence token."""
    found = getattr(model.generation_config, "eos_token_id", None)
    ids = {found} if isinstance(found, int) else set(found or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(ids)


def device_of(model: "PreTrainedModel") -> "torch.device":
    """Where inputs of the model have to be."""
    return _embedding(model).device


def _embedding(model: "PreTrainedModel") -> "torch.Tensor":
    weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight
