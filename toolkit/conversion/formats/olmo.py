"""OLMo's own trainer: `config.yaml` beside `model.safetensors` or `model.pt`, whole and unsharded (OLMo 1, OLMo 2).

Queries, keys and values are one fused projection, and so are the two halves of the SwiGLU: first up, then gate. The
embedding has `embedding_size` rows, of which `vocab_size` are tokens. What the config leaves out is GPT-2's way there,
with learned positions and biases, so that the defaults below are part of the format.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.tensors import Tensor, read_header
from toolkit.conversion.forward import attend, layer_norm, rms_norm
from toolkit.conversion.original import Load, Original, Stress
from toolkit.conversion.pickles import loads, read_torch
from toolkit.conversion.rotary import frequencies, parameters
from toolkit.conversion.settings import Settings
from toolkit.conversion.weights import Weight, rows, whole

if TYPE_CHECKING:
    import torch

CONFIG, SAFE, TORCH = "config.yaml", "model.safetensors", "model.pt"
LAYER = "transformer.blocks.{}."
# Fields that change nothing in a trained model: kernels, dropout, initialisation, how blocks are grouped.
INERT = (
    "alibi_bias_max", "attention_dropout", "block_group_size", "embedding_dropout", "emb_init_std", "flash_attention",
    "init_cutoff_factor", "init_device", "init_fn", "init_std", "precision", "residual_dropout", "rope_full_precision",
    "scale_emb_init",
)  # fmt: skip


def found(folder: Path) -> bool:
    """Whether a folder is in this format."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (SAFE, TORCH))


def read(folder: Path) -> Original:
    """The original, none of its weights loaded.

    Raises:
        ValueError: a config that cannot be converted (the field is named), or files that are damaged or ask for code.
    """
    import yaml

    where = folder / CONFIG
    tree = yaml.safe_load(where.read_text())
    fields = Settings(tree, where, "the file").inner("model").fields
    model = {name: _number(value) for name, value in fields.items()}
    config = _config(Settings(model, where, "model"))
    sources = {name: whole(tensor) for name, tensor in _tensors(folder).items()}
    return Original(
        format="olmo",
        folder=folder,
        sources=sources,
        targets=_targets(sources, config, where),
        config=config,
        windows=(None,) * config["num_hidden_layers"],
        clip=model.get("clip_qkv"),
        rotary=lambda layer: _rotary(model),
        logits=partial(_logits, model),
    )


def _number(value: Any) -> Any:
    """YAML's 1e-6 is a string for PyYAML and a number for the trainer that wrote it."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e[+-]?\d+", value, re.I) else value


def _tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / SAFE).is_file():
        found = {_decode(name, folder / SAFE): tensor for name, tensor in read_header(folder / SAFE).items()}
    else:
        state = read_torch(folder / TORCH)
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"{folder / TORCH} holds no state dict of tensors; give the model's file, not train.pt")
        found = dict(state)
    found = {name.replace("_fsdp_wrapped_module.", ""): tensor for name, tensor in found.items()}
    group = sum(name.startswith("transformer.block_groups.0.") and name.endswith(".attn_out.weight") for name in found)
    ungrouped = {_ungroup(name, group): tensor for name, tensor in found.items()}
    return {name: replace(tensor, name=name) for name, tensor in ungrouped.items()}


def _decode(key: str, path: Path) -> str:
    """A key is base64 of a pickle of ((name,), whether the value is itself a pickle)."""
    where = f"key {key[:40]!r} of {path}"
    try:
        data = base64.urlsafe_b64decode(key)
    except ValueError as error:
        raise ValueError(f"{where} is not in OLMo's own encoding: is this a Hugging Face file?") from error
    match loads(data, {}, where):
        case ((str(name),), False):
            return name
        case other:
            raise ValueError(f"{where} says {other!r}, and not the name of a tensor")


def _ungroup(name: str, group: int) -> str:
    """Blocks are numbered through, whatever FSDP grouped them in."""
    return re.sub(
        r"block_groups\.(\d+)\.(\d+)\.", lambda m: f"blocks.{int(m[1]) * group + int(m[2])}.", name
    )  # fmt: skip


def _config(model: Settings) -> dict[str, Any]:
    """The Hugging Face config; every field of the original is looked at.

    Raises:
        ValueError: one that no Hugging Face class has.
    """
    demand, take = model.demand, model.take
    model.ignore(*INERT)
    demand("block_type", "sequential", default="sequential")
    demand("activation_type", "swiglu", default="swiglu")
    demand("alibi", False, default=False)
    demand("rope", True, default=False, why="positions are learned")
    demand("include_bias", False, default=True)
    demand("embedding_layer_norm", False, default=False)
    demand("scale_logits", False, default=False)
    width, heads = model.number("d_model"), model.number("n_heads")
    rows_, tokens = take("embedding_size", 50304), model.number("vocab_size", 50257)
    eos, pad = take("eos_token_id", 50256), take("pad_token_id", 50256)
    if width % heads:
        raise ValueError(f"{model.where}: model.d_model is {width}, which {heads} heads do not divide")
    hidden = take("mlp_hidden_size") or model.take("mlp_ratio", 4) * width
    model.take("mlp_ratio")
    config = {
        "vocab_size": rows_ or tokens,
        "hidden_size": width,
        "intermediate_size": hidden // 2,
        "num_hidden_layers": model.number("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": _kv_heads(model, heads),
        "max_position_embeddings": model.number("max_sequence_length", 1024),
        "tie_word_embeddings": bool(take("weight_tying", True)),
        # OLMo 1 was trained with 50279 as its end of text while early configs of it say 0.
        "eos_token_id": 50279 if eos == 0 and tokens == 50280 else eos,
        "pad_token_id": pad if isinstance(pad, int) and 0 <= pad < (rows_ or tokens) else None,
        "rope_parameters": parameters(model.number("rope_theta", 10_000), width // heads, None),
        "hidden_act": "silu",
        "use_cache": True,
    }
    config |= _rms(model) if take("layer_norm_type", "default") == "rms" else _layer_norm(model)
    model.done()
    return config


def _kv_heads(model: Settings, heads: int) -> int:
    number, multi = model.take("n_kv_heads"), model.take("multi_query_attention")
    kv = number if number is not None else (1 if multi else heads)
    if (number is not None and multi is not None and kv != (1 if multi else heads)) or kv < 1 or heads % kv:
        raise ValueError(
            f"{model.where}: model.n_kv_heads is {number!r} and model.multi_query_attention {multi!r}: they contradict"
            f" each other, or do not divide the {heads} heads"
        )
    return int(kv)


def _rms(model: Settings) -> dict[str, Any]:
    """OLMo 2: RMS norms with gains after the block, on queries and on keys; its class does not clip."""
    why = "only OLMo 2's arrangement of RMS norms has a Hugging Face class"
    for name, default in (("norm_after", False), ("attention_layer_norm", False)):
        model.demand(name, True, default=default, why=why)
    for name in ("layer_norm_with_affine", "attention_layer_norm_with_affine"):
        model.demand(name, True, default=True, why=why)
    model.demand("bias_for_layer_norm", False, None, why=why)
    model.demand("clip_qkv", None, why="olmo2 does not clip")
    eps = model.number("layer_norm_eps", 1e-5)
    return {"model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "rms_norm_eps": eps, "attention_bias": False}


def _layer_norm(model: Settings) -> dict[str, Any]:
    """OLMo 1: layer norms before the block, without gains; with gains, StableLM's class is the one that has them."""
    model.demand("layer_norm_type", "default", "low_precision", default="default")
    model.demand("norm_after", False, default=False)
    model.demand("attention_layer_norm", False, default=False)
    model.ignore("attention_layer_norm_with_affine")
    model.demand("bias_for_layer_norm", False, True, None)
    if not model.demand("layer_norm_with_affine", False, True, default=True):
        model.demand("layer_norm_eps", 1e-5, default=1e-5, why="olmo's layer norms have this epsilon and no setting")
        clip = {"clip_qkv": model.take("clip_qkv")}
        return {"model_type": "olmo", "architectures": ["OlmoForCausalLM"], "attention_bias": False} | clip
    model.demand("clip_qkv", None, why="with gains on its layer norms it becomes a stablelm, which does not clip")
    return {
        "model_type": "stablelm", "architectures": ["StableLmForCausalLM"], "partial_rotary_factor": 1.0,
        "use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False,
        "layer_norm_eps": model.number("layer_norm_eps", 1e-5),
    }  # fmt: skip


NORMS = {
    "olmo": {},
    "olmo2": {
        "attn_norm": "post_attention_layernorm", "ff_norm": "post_feedforward_layernorm", "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    },
    "stablelm": {"attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"},
}  # fmt: skip


def _targets(sources: Mapping[str, Weight], config: Mapping[str, Any], where: Path) -> dict[str, Weight]:
    """Hugging Face's names -> rows of the original's weights."""

    def take(name: str, columns: int | None, *parts: int) -> list[Weight]:
        shape = (sum(parts),) if columns is None else (sum(parts), columns)
        weight = sources.get(name)
        if weight is None or weight.shape != shape:
            there = f"has shape {weight.shape}" if weight else "is not there"
            raise ValueError(f"{where.parent}: weight {name!r} {there}; its {where.name} describes {shape}")
        ends = [sum(parts[: n + 1]) for n in range(len(parts))]
        return [rows(weight, end - part, end) for part, end in zip(parts, ends, strict=True)]

    def norm(name: str, size: int, to: str) -> dict[str, Weight]:
        made = dict(zip([f"{to}.weight"], take(f"{name}.weight", None, size), strict=True))
        if config["model_type"] == "stablelm":
            absent = replace(made[f"{to}.weight"], name="", pieces=())
            has = f"{name}.bias" in sources
            made[f"{to}.bias"] = take(f"{name}.bias", None, size)[0] if has else absent
        return made

    width, hidden, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    out = dict(zip(["model.embed_tokens.weight"], take("transformer.wte.weight", width, config["vocab_size"])))
    for n in range(config["num_hidden_layers"]):
        old, new = LAYER.format(n), f"model.layers.{n}."
        q, k, v = take(f"{old}att_proj.weight", width, width, keys, keys)
        up, gate = take(f"{old}ff_proj.weight", width, hidden, hidden)
        out |= {f"{new}self_attn.{letter}_proj.weight": part for letter, part in (("q", q), ("k", k), ("v", v))}
        out[f"{new}self_attn.o_proj.weight"] = take(f"{old}attn_out.weight", width, width)[0]
        out |= {f"{new}mlp.gate_proj.weight": gate, f"{new}mlp.up_proj.weight": up}
        out[f"{new}mlp.down_proj.weight"] = take(f"{old}ff_out.weight", hidden, width)[0]
        for name, to in NORMS[kind].items():
            out |= norm(old + name, keys if name == "k_norm" else width, new + to)
    if kind != "olmo":
        out |= norm("transformer.ln_f", width, "model.norm")
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = take("transformer.ff_out.weight", width, config["vocab_size"])[0]
    return out


def _logits(
    model: Mapping[str, Any], ids: "torch.Tensor", load: Load, stress: Stress, scale: "torch.Tensor"
) -> "torch.Tensor":
    import torch.nn.functional as F

    width, clip, after = model["d_model"], model.get("clip_qkv"), model.get("norm_after", False)
    rotary, norm = _rotary(model), partial(_norm, model, load, model.get("layer_norm_eps", 1e-5))
    x = F.embedding(ids, load("transformer.wte.weight")) * scale
    for n in range(model["n_layers"]):
        block = LAYER.format(n)
        fused = F.linear(x if after else norm(f"{block}attn_norm", x), load(f"{block}att_proj.weight"))
        if clip is not None:
            fused = fused.clamp(-clip * stress.clip, clip * stress.clip)
        kv = (fused.shape[-1] - width) // 2
        q, k, v = fused.split([width, kv, kv], dim=-1)
        if model.get("attention_layer_norm", False):
            q, k = norm(f"{block}q_norm", q), norm(f"{block}k_norm", k)
        out = F.linear(attend(q, k, v, rotary=rotary, window=None), load(f"{block}attn_out.weight"))
        x = x + (norm(f"{block}attn_norm", out) if after else out)
        value, gate = F.linear(x if after else norm(f"{block}ff_norm", x), load(f"{block}ff_proj.weight")).chunk(2, -1)
        out = F.linear(F.silu(gate) * value, load(f"{block}ff_out.weight"))
        x = x + (norm(f"{block}ff_norm", out) if after else out)
    head = "transformer.wte.weight" if model.get("weight_tying", True) else "transformer.ff_out.weight"
    return F.linear(norm("transformer.ln_f", x), load(head))


def _rotary(model: Mapping[str, Any]) -> "tuple[torch.Tensor, float]":
    return frequencies(model.get("rope_theta", 10_000), model["d_model"] // model["n_heads"], None)


def _norm(model: Mapping[str, Any], load: Load, eps: float, name: str, x: "torch.Tensor") -> "torch.Tensor":
    if model.get("layer_norm_type") == "rms":
        return rms_norm(x, load(f"{name}.weight"), eps)
    affine = model.get("layer_norm_with_affine", True)
    biased = affine and model.get("bias_for_layer_norm")
    return layer_norm(x, load(f"{name}.weight") if affine else None, load(f"{name}.bias") if biased else None, eps)
