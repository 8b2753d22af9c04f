"""A decoder from the words of Hugging Face's config: model_type and its fields, without the traps of defaults."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.check import check_vocabulary
from toolkit.checkpoints.folders import load_tokenizer, vocabulary
from toolkit.lookup import unknown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The defaults of these are those of a published model with billions of parameters: a study has to say them.
REQUIRED = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")


def check_words(architecture: Mapping[str, Any]) -> None:
    """What can be said of an architecture without transformers.

    Raises:
        ValueError: a size is missing or impossible.
    """
    missing = [name for name in REQUIRED if name not in architecture]
    if missing:
        raise ValueError(f"architecture lacks {', '.join(missing)}; it must say {', '.join(REQUIRED)}")
    for name in REQUIRED[1:]:
        if type(architecture[name]) is not int or architecture[name] < 1:
            raise ValueError(f"architecture.{name} is {architecture[name]!r}; it must be a whole number above 0")
    hidden, heads = architecture["hidden_size"], architecture["num_attention_heads"]
    if "head_dim" not in architecture and hidden % heads:
        raise ValueError(f"architecture.hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if heads % architecture.get("num_key_value_heads", heads):
        raise ValueError(
            f"architecture.num_key_value_heads {architecture['num_key_value_heads']} does not divide"
            f" num_attention_heads {heads}"
        )


def make_config(architecture: Mapping[str, Any], tokenizer: Path) -> "PreTrainedConfig":
    """The config of a causal language model over the vocabulary of `tokenizer` (a folder).

    Left open, key-value heads are as many as heads and head_dim is hidden_size / heads (the classes' defaults are those
    of one published size). Special tokens are the tokenizer's.

    Raises:
        ValueError: an unknown model_type or field (nearest spelling), or fewer embedding rows than tokens.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    check_words(architecture)
    words = dict(architecture)
    model_type = words.pop("model_type")
    known = {name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING}
    if model_type not in known:
        raise ValueError(unknown("architecture.model_type", model_type, known))
    kind = CONFIG_MAPPING[model_type]
    fields = {field.name for field in dataclasses.fields(kind)}
    for name in words:
        if name not in fields and name not in ROPE:
            raise ValueError(unknown(f"field of architecture for {model_type}", name, fields | set(ROPE)))
    words |= {k: v for k, v in _derived(words, fields).items() if k not in words}
    words |= _special_tokens(tokenizer)
    words.setdefault("vocab_size", max(vocabulary(tokenizer).values()) + 1)
    check_vocabulary(tokenizer, words["vocab_size"])
    return _explicit_rope(kind, words)


def _derived(words: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    head_dim = words.get("head_dim", words["hidden_size"] // words["num_attention_heads"])
    derived = {
        "num_key_value_heads": words["num_attention_heads"],
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,  # gemma: the scale of attention is 1 / sqrt of it
    }
    return {name: value for name, value in derived.items() if name in fields}


def _special_tokens(tokenizer: Path) -> dict[str, int | None]:
    """Ids of the tokenizer's special tokens.

    Hazard: embeddings do not learn the row of pad_token_id, so a pad token that is also the end of text (a common
    makeshift) would leave the end of text untrained; then the config gets none.
    """
    tok = load_tokenizer(tokenizer)
    pad = tok.pad_token_id if tok.pad_token_id not in (tok.eos_token_id, tok.bos_token_id) else None
    return {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": pad}


def _explicit_rope(kind: Any, words: dict[str, Any]) -> "PreTrainedConfig":
    """Rotary parameters said once are said for every layer type.

    Hazard: with `rope_theta` alone Olmo3Config gives it to the full-attention layers only and 500000 to the others.
    """
    rope = {name: words.pop(name) for name in ROPE if name in words}
    if rope and "rope_parameters" in words:
        raise ValueError(f"architecture says {', '.join(rope)} and rope_parameters: give one of them")
    if rope:
        words["rope_parameters"] = _rope_of(kind, words, rope)
    config: PreTrainedConfig = kind(**words)
    return config


def _rope_of(kind: Any, words: Mapping[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    probe = kind(**words)
    types = [name for name, value in probe.rope_parameters.items() if isinstance(value, dict)]
    if types and "rope_scaling" in rope:
        raise ValueError(
            f"architecture.rope_scaling: a {probe.model_type} has rotary parameters for each of {', '.join(types)};"
            " say rope_parameters with these keys instead"
        )
    flat = {"rope_type": "default", "rope_theta": probe.default_theta, **(rope.pop("rope_scaling", None) or {}), **rope}
    return {name: dict(flat) for name in types} if types else flat
