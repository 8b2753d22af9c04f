"""Small originals, written from Hugging Face models by maps of their own: what the converter must undo.

The models are random, with uneven norm gains, and large enough activations that each part of them shows in the logits.
"""

import base64
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch.distributed.checkpoint import metadata as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False, "pad_token_id": 1,
    "eos_token_id": 0,
}  # fmt: skip
State = dict[str, torch.Tensor]
Boxes = Callable[[torch.Tensor], Iterator[tuple[tuple[int, ...], torch.Tensor]]]


def model(kind: str, **fields: Any) -> Any:
    """A Hugging Face model with random weights; eps, theta and the like from `fields`."""
    theta = fields.pop("theta", 10_000.0)
    if kind == "olmo3":
        fields.setdefault("layer_types", ["sliding_attention", "sliding_attention", "full_attention"])
        rope = {name: {"rope_type": "default", "rope_theta": theta} for name in set(fields["layer_types"])}
        fields.setdefault("rope_parameters", rope)
    fields.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": theta})
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | fields)), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.15)
    return made.eval()


def logits(made: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a model."""
    with torch.no_grad():
        return made(ids).logits


def olmo_state(made: Any) -> State:
    """The weights under the names of OLMo's own trainer."""
    config, ours = made.config, dict(made.state_dict())
    out = {"transformer.wte.weight": ours.pop("model.embed_tokens.weight")}
    for n in range(config.num_hidden_layers):
        old, new = f"model.layers.{n}.", f"transformer.blocks.{n}."
        out[f"{new}att_proj.weight"] = torch.cat([ours.pop(f"{old}self_attn.{x}_proj.weight") for x in "qkv"])
        out[f"{new}ff_proj.weight"] = torch.cat([ours.pop(f"{old}mlp.{x}_proj.weight") for x in ("up", "gate")])
        out[f"{new}ff_out.weight"] = ours.pop(f"{old}mlp.down_proj.weight")
        out[f"{new}attn_out.weight"] = ours.pop(f"{old}self_attn.o_proj.weight")
        names = [("self_attn.q_norm", "q_norm"), ("self_attn.k_norm", "k_norm")]
        if config.model_type == "olmo2":
            names += [("post_attention_layernorm", "attn_norm"), ("post_feedforward_layernorm", "ff_norm")]
        else:
            names += [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ff_norm")]
        for theirs, name in names:
            for part in ("weight", "bias"):
                if f"{old}{theirs}.{part}" in ours:
                    out[f"{new}{name}.{part}"] = ours.pop(f"{old}{theirs}.{part}")
    for part in ("weight", "bias"):
        if f"model.norm.{part}" in ours:
            out[f"transformer.ln_f.{part}"] = ours.pop(f"model.norm.{part}")
    head = ours.pop("lm_head.weight")
    if not config.tie_word_embeddings:
        out["transformer.ff_out.weight"] = head
    assert not ours
    return out


def olmo_config(made: Any, **changes: Any) -> dict[str, Any]:
    """`model` of a config.yaml."""
    config = made.config
    rms, biased = config.model_type == "olmo2", config.model_type == "stablelm"
    return {
        "d_model": config.hidden_size, "n_heads": config.num_attention_heads, "n_layers": config.num_hidden_layers,
        "n_kv_heads": config.num_key_value_heads, "clip_qkv": getattr(config, "clip_qkv", None) if not rms else None,
        "mlp_hidden_size": 2 * config.intermediate_size, "mlp_ratio": 8, "activation_type": "swiglu", "rope": True,
        "block_type": "sequential", "rope_theta": int(config.rope_parameters["rope_theta"]), "alibi": False,
        "attention_layer_norm": rms, "attention_layer_norm_with_affine": rms, "norm_after": rms,
        "layer_norm_type": "rms" if rms else "default", "layer_norm_with_affine": rms or biased,
        "layer_norm_eps": config.rms_norm_eps if rms else 1e-5, "include_bias": False, "bias_for_layer_norm": biased,
        "weight_tying": config.tie_word_embeddings, "embedding_size": config.vocab_size, "vocab_size": 280,
        "max_sequence_length": config.max_position_embeddings, "eos_token_id": 0, "pad_token_id": 1,
        "init_fn": "mitchell", "attention_dropout": 0.1, "flash_attention": True,
    } | changes  # fmt: skip


def write_olmo(folder: Path, made: Any, file: str = "model.pt", **changes: Any) -> Path:
    """config.yaml and model.pt, or model.safetensors with OLMo's own keys."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_name": "x", "model": olmo_config(made, **changes)}))
    state = olmo_state(made)
    if file == "model.pt":
        torch.save(state, folder / file)
    else:
        keys = {n: base64.urlsafe_b64encode(pickle.dumps(((n,), False))).decode() for n in state}
        save_file({keys[name]: tensor for name, tensor in state.items()}, folder / file)
    return folder


CORE = {
    "self_attn.q_proj": "attention.w_q", "self_attn.k_proj": "attention.w_k", "self_attn.v_proj": "attention.w_v",
    "self_attn.o_proj": "attention.w_out", "self_attn.q_norm": "attention.q_norm",
    "self_attn.k_norm": "attention.k_norm", "post_attention_layernorm": "attention_norm",
    "post_feedforward_layernorm": "feed_forward_norm", "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
}  # fmt: skip


def core_state(made: Any) -> State:
    """The weights under the names of OLMo-core."""
    out = {}
    for name, tensor in made.state_dict().items():
        for theirs, ours in CORE.items():
            name = name.replace(f".{theirs}.", f".{ours}.")
        name = name.replace("model.layers.", "blocks.").replace("model.norm.", "lm_head.norm.")
        out[name.replace("model.embed_tokens.", "embeddings.").replace("lm_head.weight", "lm_head.w_out.weight")] = (
            tensor
        )
    return out


def core_config(made: Any, scaling: Any = None, **mixer: Any) -> dict[str, Any]:
    """config.json; `mixer` are fields of the attention."""
    config = made.config
    norm = {"name": "rms", "eps": config.rms_norm_eps, "bias": False, "dtype": "float32"}
    ropes = config.rope_parameters
    attention = {
        "name": "default", "n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads,
        "bias": False, "qk_norm": norm, "use_flash": True, "rope": {
            "name": "default", "full_precision": True,
            "theta": int(ropes.get("full_attention", ropes).get("rope_theta")), "scaling": scaling,
        },
    } | mixer  # fmt: skip
    forward = {"hidden_size": config.intermediate_size, "bias": False, "name": "default"}
    block = {"attention": attention, "layer_norm": norm, "feed_forward": forward, "name": "reordered_norm"}
    model = {
        "d_model": config.hidden_size, "vocab_size": config.vocab_size, "n_layers": config.num_hidden_layers,
        "block": block, "lm_head": {"name": "default", "layer_norm": norm, "bias": False}, "init_seed": 0,
        "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip
    return {"model": model, "dataset": {"sequence_length": 128, "tokenizer": {"eos_token_id": 0, "pad_token_id": 1}}}


def sliding(*pattern: int, first: bool = False, last: bool = True) -> dict[str, Any]:
    """The field of an attention with windows."""
    forced = {"force_full_attention_on_first_layer": first, "force_full_attention_on_last_layer": last}
    return {"sliding_window": {"pattern": list(pattern), **forced}}


def together(tensor: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """One rank has it all."""
    yield (0,) * tensor.ndim, tensor


def bands(tensor: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Three ranks have bands of rows, not all as many (FSDP)."""
    at = 0
    for part in tensor.split(-(-len(tensor) // 3)):
        yield (at,) + (0,) * (tensor.ndim - 1), part
        at += len(part)


def boxes(tensor: torch.Tensor) -> Iterator[tuple[tuple[int, ...], torch.Tensor]]:
    """Four ranks have quarters of matrices (FSDP and tensor parallelism)."""
    if tensor.ndim == 1:
        yield from bands(tensor)
        return
    rows, columns = tensor.shape[0] // 3, tensor.shape[1] // 2
    for r in (slice(0, rows), slice(rows, None)):
        for c in (slice(columns, None), slice(0, columns)):
            yield (r.start, c.start), tensor[r, c]


def write_core(folder: Path, made: Any, config: dict[str, Any], split: Boxes = together) -> Path:
    """config.json and a distributed checkpoint whose optimizer states are rubbish: nobody should read them."""
    files: dict[str, bytes] = {}
    state, storage = {}, {}
    for name, tensor in core_state(made).items():
        chunks = []
        for rank, (offset, part) in enumerate(split(tensor)):
            file = f"__{rank}_0.distcp"
            blob = _saved(part)
            chunks.append(dcp.ChunkStorageMetadata(torch.Size(offset), part.shape))
            index = dcp.MetadataIndex(f"model.{name}", torch.Size(offset), rank)
            storage[index] = _StorageInfo(file, len(files.setdefault(file, b"")), len(blob))
            files[file] += blob + b"\xff" * 7
        properties = dcp.TensorProperties(dtype=tensor.dtype)
        state[f"model.{name}"] = dcp.TensorStorageMetadata(properties, tensor.shape, chunks)
        state[f"optim.state.{name}.exp_avg"] = state[f"model.{name}"]
        storage[dcp.MetadataIndex(f"optim.state.{name}.exp_avg")] = _StorageInfo("__0_0.distcp", 3, 10)
    state["optim.step"] = dcp.BytesStorageMetadata()
    (folder / "model_and_optim").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file, data in files.items():
        (folder / "model_and_optim" / file).write_bytes(data)
    tree = dcp.Metadata(state, storage_data=storage, storage_meta=dcp.StorageMeta("somewhere"))
    (folder / "model_and_optim" / ".metadata").write_bytes(pickle.dumps(tree))
    return folder


def _saved(tensor: torch.Tensor) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(tensor.clone(), buffer)
    return buffer.getvalue()
