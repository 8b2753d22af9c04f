"""OLMo-core: `config.json` beside `model_and_optim/`, a distributed checkpoint (OLMo 2, OLMo 3).

RMS norms with gains stand after attention and feed-forward, on queries and on keys; no projections are fused. A layer
has a window or sees everything, and its own rotary scaling: `block_overrides` replace the block of a layer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.conversion.distributed import METADATA, read_checkpoint
from toolkit.conversion.forward import attend, rms_norm
from toolkit.conversion.original import Load, Original, Stress
from toolkit.conversion.rotary import frequencies, parameters, read_scaling
from toolkit.conversion.settings import Settings
from toolkit.conversion.weights import Weight, load

if TYPE_CHECKING:
    import torch

CONFIG, FOLDER = "config.json", "model_and_optim"
NORMS = ("rms", "fused_rms", "cute_rms")  # one formula, three kernels


def found(folder: Path) -> bool:
    """Whether a folder is in this format."""
    return (folder / CONFIG).is_file() and (folder / FOLDER / METADATA).is_file()


def read(folder: Path) -> Original:
    """The original, none of its weights loaded.

    Raises:
        ValueError: a config that cannot be converted (the field is named), or files that are damaged or ask for code.
    """
    where = folder / CONFIG
    tree = json.loads(where.read_text())
    model = Settings(tree.get("model"), where, "model")
    layers = _layers(model)
    config = _config(model, layers, tree)
    sources = read_checkpoint(folder / FOLDER, "model.")
    return Original(
        format="olmo_core",
        folder=folder,
        sources=sources,
        targets=_targets(sources, config),
        config=config,
        windows=tuple(layer.window for layer in layers),
        clip=None,
        rotary=partial(_rotary, tree["model"]),
        logits=partial(_logits, tree["model"], [layer.window for layer in layers]),
    )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the config says of one layer. window: None for full attention."""

    heads: int
    kv_heads: int
    dim: int
    hidden: int
    eps: float
    theta: float
    scaling: Mapping[str, Any] | None
    window: int | None


def _layers(model: Settings) -> list[Layer]:
    """Every layer as its own block's config describes it.

    Raises:
        ValueError: a field that cannot be converted.
    """
    count, width, overrides = model.number("n_layers"), model.number("d_model"), model.take("block_overrides") or {}
    blocks = [
        (
            Settings(overrides[str(n)], model.where, f"model.block_overrides.{n}")
            if str(n) in overrides
            else model.inner("block")
        )
        for n in range(count)
    ]
    return [_layer(block, n, count, width) for n, block in enumerate(blocks)]


def _layer(block: Settings, layer: int, count: int, width: int) -> Layer:
    block.demand("name", "reordered_norm", default="default", why="only OLMo 2 and 3's norms have a Hugging Face class")
    for name in ("attention_residual_alpha", "feed_forward_residual_alpha"):
        block.demand(name, None, 1.0)
    block.ignore("dropout")
    attention = block.inner("sequence_mixer" if "sequence_mixer" in block.fields else "attention")  # its older name
    forward = block.inner("feed_forward")
    forward.demand("name", "default", default="default")
    forward.demand("bias", False, why="it is not set to false, so that there are biases")
    forward.demand("activation", "silu", default="silu")
    forward.ignore("dtype")
    found = _attention(attention, layer, count, width)
    eps = {found.eps, _norm(block.inner("layer_norm"))}
    hidden = forward.number("hidden_size")
    for part in (block, forward):
        part.done()
    if len(eps) > 1:
        raise ValueError(
            f"{block.where}: {block.path} has norms of epsilon {sorted(eps)}; Hugging Face has one for all"
        )
    return replace(found, hidden=hidden)


def _norm(norm: Settings) -> float:
    norm.demand("name", *NORMS, default="default")
    norm.demand("bias", False, why="it is not set to false, so that there are biases")
    norm.demand("elementwise_affine", True, None)
    norm.ignore("dtype", "full_precision")
    eps = norm.number("eps", 1e-5)
    norm.done()
    return float(eps)


def _attention(attention: Settings, layer: int, count: int, width: int) -> Layer:
    attention.demand("type", "attention", None)
    attention.demand("name", "default", default="default")
    attention.demand("bias", False, why="it is not set to false, so that there are biases")
    attention.demand("clip_qkv", None, why="olmo2 and olmo3 do not clip")
    attention.demand("gate", None)
    attention.demand("softmax_scale", None)
    for name in ("use_head_qk_norm", "qk_norm_per_head_gains", "scalable_softmax", "attention_sinks"):
        attention.demand(name, False, None)
    attention.ignore("dropout", "use_flash", "backend", "dtype", "use_recompute_qkv_prep")
    for name in ("mxfp8_projections", "mxfp8_qkv_projection", "mxfp8_out_projection", "mxfp8_save_qkv_for_backward"):
        attention.demand(name, False, None)
    eps = _norm(attention.inner("qk_norm"))
    rope = attention.inner("rope")
    rope.demand("name", "default", "fused", default="default", why="it pairs other dimensions")
    rope.demand("no_global_rope", False, default=False)
    rope.demand("partial_rotary_factor", 1.0, default=1.0)
    rope.ignore("full_precision")
    theta, scaling = rope.number("theta", 500_000), read_scaling(rope)
    heads = attention.number("n_heads", 16)
    kv, window = attention.take("n_kv_heads") or heads, _window(attention, layer, count)
    dim = attention.take("head_dim") or width // heads
    for part in (rope, attention):
        part.done()
    return Layer(
        heads=heads, kv_heads=kv, dim=dim, hidden=0, eps=eps, theta=theta, scaling=scaling, window=window
    )  # fmt: skip


def _window(attention: Settings, layer: int, count: int) -> int | None:
    """Tokens that a layer sees, itself among them: what transformers calls the same. None for all.

    The pattern begins at the second layer where the first one is forced to see everything.
    """
    if attention.take("sliding_window") is None:
        return None
    sliding = attention.inner("sliding_window")
    pattern = sliding.take("pattern")
    first = sliding.demand("force_full_attention_on_first_layer", True, False, default=True)
    last = sliding.demand("force_full_attention_on_last_layer", True, False, default=True)
    sliding.done()
    if not pattern or not all(isinstance(size, int) and (size > 0 or size == -1) for size in pattern):
        raise ValueError(f"{sliding.where}: {sliding.path}.pattern is {pattern!r}; it must be window sizes or -1")
    if (first and layer == 0) or (last and layer == count - 1):
        return None
    size = pattern[(layer - first) % len(pattern)]
    return None if size == -1 else int(size)


def _config(model: Settings, layers: Sequence[Layer], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The Hugging Face config: olmo3 where a layer has a window, else olmo2.

    Raises:
        ValueError: layers that differ where Hugging Face has one setting for all, or a field that is not known.
    """
    model.demand("name", "default", default="default")
    model.demand("embedding_norm", None)
    model.demand("block_pattern", None)
    model.demand("embed_scale", None, 1.0)
    model.ignore("dtype", "init_method", "init_seed", "init_std", "embedding_init_std", "freeze_params")
    model.ignore(
        "dp_config", "tp_config", "cp_config", "ac_config", "float8_config", "compile"
    )  # of its first releases
    head = model.inner("lm_head")
    head.demand("name", "default", default="default")
    head.demand("bias", False, why="it is not set to false, so that there are biases")
    head.ignore("dtype", "loss_implementation")
    eps = _norm(head.inner("layer_norm"))
    width, rows = model.number("d_model"), model.number("vocab_size")
    tied = model.demand("tie_word_embeddings", True, False, default=False)
    for part in (head, model):
        part.done()
    same = {(layer.heads, layer.kv_heads, layer.dim, layer.hidden, layer.eps) for layer in layers}
    first = layers[0]
    if len(same) > 1 or first.eps != eps:
        raise ValueError(f"{model.where}: layers differ in heads, widths or epsilon, and Hugging Face has one for all")
    tokens = ((tree.get("dataset") or {}).get("tokenizer")) or {}
    if first.heads % first.kv_heads:
        raise ValueError(f"{model.where}: n_kv_heads is {first.kv_heads}, which does not divide {first.heads} heads")
    config = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": first.hidden,
        "num_hidden_layers": len(layers),
        "num_attention_heads": first.heads,
        "num_key_value_heads": first.kv_heads,
        "rms_norm_eps": eps,
        "tie_word_embeddings": tied,
        "eos_token_id": tokens.get("eos_token_id"),
        "bos_token_id": tokens.get("bos_token_id"),
        "pad_token_id": tokens.get("pad_token_id"),
        "attention_bias": False,
        "hidden_act": "silu",
        "use_cache": True,
    }
    if first.dim * first.heads != width:
        config["head_dim"] = first.dim
    return config | _positions(model, layers, tree)


def _positions(model: Settings, layers: Sequence[Layer], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Windows and rotary parameters, which transformers has one of for each kind of layer."""
    kinds = ["full_attention" if layer.window is None else "sliding_attention" for layer in layers]
    ropes: dict[str, Any] = {}
    for kind, layer in zip(kinds, layers, strict=True):
        rope = parameters(layer.theta, layer.dim, layer.scaling)
        if ropes.setdefault(kind, rope) != rope:
            raise ValueError(f"{model.where}: layers of {kind} differ in model.block's rope; Hugging Face has one")
    windows = sorted({layer.window for layer in layers if layer.window is not None})
    if len(windows) > 1:
        raise ValueError(f"{model.where}: there are windows of {windows} tokens; Hugging Face has one for all layers")
    length = (tree.get("train_module") or {}).get("max_sequence_length") or (tree.get("dataset") or {}).get(
        "sequence_length"
    )
    length = length or max(_reach(layer, 8192 if windows else 4096) for layer in layers)
    if not windows:
        return {
            "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"], "rope_parameters": ropes["full_attention"],
            "max_position_embeddings": length,
        }  # fmt: skip
    # transformers gives a kind that is not named a theta of its own: both are written, whichever layers there are.
    default = next(iter(ropes.values()))
    return {
        "model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"], "layer_types": kinds,
        "sliding_window": windows[0],
        "rope_parameters": {kind: ropes.get(kind, default) for kind in ("full_attention", "sliding_attention")},
        "max_position_embeddings": length,
    }  # fmt: skip


def _reach(layer: Layer, trained: int) -> int:
    """Positions that a layer was scaled to. A config without a length is given what OLMo 2 and 3 were trained with."""
    scaling = layer.scaling or {}
    return int(scaling.get("old_context_len", trained) * scaling.get("factor", 1))


BLOCK = {
    "attention.w_q": "self_attn.q_proj", "attention.w_k": "self_attn.k_proj", "attention.w_v": "self_attn.v_proj",
    "attention.w_out": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm", "attention_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward_norm": "post_feedforward_layernorm",
}  # fmt: skip


def _targets(sources: dict[str, Weight], config: Mapping[str, Any]) -> dict[str, Weight]:
    """Hugging Face's names -> the original's weights. A tied head that was saved as well is dropped from both."""
    names = {"embeddings.weight": "model.embed_tokens.weight"}
    for n in range(config["num_hidden_layers"]):
        names |= {f"blocks.{n}.{old}.weight": f"model.layers.{n}.{new}.weight" for old, new in BLOCK.items()}
    names |= {"lm_head.norm.weight": "model.norm.weight"}
    if not config["tie_word_embeddings"]:
        names["lm_head.w_out.weight"] = "lm_head.weight"
    elif "lm_head.w_out.weight" in sources:
        if not load(sources["lm_head.w_out.weight"]).equal(load(sources["embeddings.weight"])):
            raise ValueError("tie_word_embeddings is true, and lm_head.w_out differs from embeddings in the checkpoint")
        del sources["lm_head.w_out.weight"]
    missing = [name for name in names if name not in sources]
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights that its config describes, first {missing[0]!r}")
    return {new: sources[old] for old, new in names.items()}


def _logits(
    model: Mapping[str, Any], windows: Sequence[int | None], ids: "torch.Tensor", load: Load, stress: Stress,
    scale: "torch.Tensor",
) -> "torch.Tensor":  # fmt: skip
    import torch.nn.functional as F

    x = F.embedding(ids, load("embeddings.weight")) * scale
    for n, window in enumerate(windows):
        block, mixer = _parts(model, n)
        eps = mixer["qk_norm"].get("eps", 1e-5)
        q, k, v = (F.linear(x, load(f"blocks.{n}.attention.w_{letter}.weight")) for letter in "qkv")
        q = rms_norm(q, load(f"blocks.{n}.attention.q_norm.weight"), eps)
        k = rms_norm(k, load(f"blocks.{n}.attention.k_norm.weight"), eps)
        seen = attend(q, k, v, rotary=_rotary(model, n), window=None if window is None else window - stress.shorter)
        out = F.linear(seen, load(f"blocks.{n}.attention.w_out.weight"))
        eps = block["layer_norm"].get("eps", 1e-5)
        x = x + rms_norm(out, load(f"blocks.{n}.attention_norm.weight"), eps)
        gate, value = (F.linear(x, load(f"blocks.{n}.feed_forward.w{number}.weight")) for number in (1, 3))
        out = F.linear(F.silu(gate) * value, load(f"blocks.{n}.feed_forward.w2.weight"))
        x = x + rms_norm(out, load(f"blocks.{n}.feed_forward_norm.weight"), eps)
    eps = model["lm_head"]["layer_norm"].get("eps", 1e-5)
    x = rms_norm(x, load("lm_head.norm.weight"), eps)
    return F.linear(x, load(f"{'embeddings' if model.get('tie_word_embeddings') else 'lm_head.w_out'}.weight"))


def _parts(model: Mapping[str, Any], layer: int) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    block = (model.get("block_overrides") or {}).get(str(layer)) or model["block"]
    return block, block.get("sequence_mixer") or block["attention"]


def _rotary(model: Mapping[str, Any], layer: int) -> "tuple[torch.Tensor, float]":
    _, mixer = _parts(model, layer)
    dim = mixer.get("head_dim") or model["d_model"] // mixer["n_heads"]
    scaling = read_scaling(Settings(mixer["rope"], CONFIG, "rope"))
    return frequencies(mixer["rope"].get("theta", 500_000), dim, scaling)
