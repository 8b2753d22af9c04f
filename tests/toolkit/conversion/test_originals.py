"""Originals of every kind come out as the model that they were made from: the same weights, the same logits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.toolkit.conversion import originals as old
from toolkit.conversion import original
from toolkit.conversion.convert import convert, write
from toolkit.conversion.run import open_model

SHARED = Path(__file__).parents[4] / "shared" / "checkpoints"
IDS = torch.randint(0, 280, (2, 60), generator=torch.Generator().manual_seed(3))
YARN = {"factor": 8.0, "beta_fast": 32, "beta_slow": 1, "old_context_len": 64, "_CLASS_": "x.YaRNRoPEScalingConfig"}
STEPS = {
    "factor": 8.0, "low_freq_proportion": 0.0, "high_freq_proportion": 0.25, "old_context_len": 128,
    "_CLASS_": "x.StepwiseRoPEScalingConfig",
}  # fmt: skip


def converted(folder: Path, out: Path, **options: Any) -> tuple[Path, dict[str, Any]]:
    """The folder and the metrics of a conversion that is proven."""
    kind = original.find(folder)
    assert kind is not None
    out.mkdir()
    tokenizer, dtype = options.get("tokenizer"), options.get("dtype")
    return out, convert(kind.read(folder), tokenizer, out, dtype, lambda done, total: None)


def check(out: Path, made: Any) -> None:
    """Bit-equal weights, and logits as transformers' own loading gives them."""
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, attn_implementation="sdpa")
    assert not any(info.values())
    for name, tensor in made.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert (old.logits(model, IDS) - old.logits(made, IDS)).abs().max() <= 1e-5
    assert old.logits(made, IDS).std() > 0.3


OLMO = {
    "plain": ("olmo", {"num_key_value_heads": 4, "tie_word_embeddings": True}, {}),
    "grouped, clipped, untied": ("olmo", {"clip_qkv": 0.3}, {}),
    "one key head": ("olmo", {"num_key_value_heads": 1}, {"n_kv_heads": None, "multi_query_attention": True}),
    "no padding": ("olmo", {"vocab_size": 280}, {"embedding_size": None}),
    "gains and biases": ("stablelm", {"partial_rotary_factor": 1.0, "layer_norm_eps": 1e-5}, {}),
    "olmo 2": ("olmo2", {"rms_norm_eps": 1e-6, "theta": 500_000}, {}),
    "olmo 2, tied": ("olmo2", {"tie_word_embeddings": True}, {}),
}


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("case", OLMO)
def test_olmo(case: str, file: str, tmp_path: Path) -> None:
    kind, fields, changes = OLMO[case]
    made = old.model(kind, **fields)
    out, metrics = converted(old.write_olmo(tmp_path / "old", made, file, **changes), tmp_path / "out")
    check(out, made)
    assert metrics["parameters"] == sum(p.numel() for p in made.parameters()) and metrics["bits_per_token"] > 5


def test_gains_without_biases(tmp_path: Path) -> None:
    """The class that has gains has biases too: zeros are written."""
    made = old.model("stablelm", partial_rotary_factor=1.0, layer_norm_eps=1e-5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("norm.bias"):
                parameter.zero_()
    folder = old.write_olmo(tmp_path / "old", made, bias_for_layer_norm=None)
    state = {name: tensor for name, tensor in old.olmo_state(made).items() if not name.endswith(".bias")}
    torch.save(state, folder / "model.pt")
    check(converted(folder, tmp_path / "out")[0], made)


def test_blocks_in_groups_and_wrapped(tmp_path: Path) -> None:
    made = old.model("olmo", num_hidden_layers=4)
    folder = old.write_olmo(tmp_path / "old", made, block_group_size=2)
    state = torch.load(folder / "model.pt")
    for n in range(4):
        wrapped = f"_fsdp_wrapped_module.block_groups.{n // 2}.{n % 2}."
        state = {name.replace(f"blocks.{n}.", wrapped): tensor for name, tensor in state.items()}
    torch.save(state, folder / "model.pt")
    check(converted(folder, tmp_path / "out")[0], made)


CORE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "olmo 2": ("olmo2", {"rms_norm_eps": 1e-6, "theta": 500_000}, {}),
    "tied": ("olmo2", {"tie_word_embeddings": True}, {}),
    "wide heads": ("olmo2", {"head_dim": 16}, {"head_dim": 16}),
    "windows": ("olmo3", {"sliding_window": 8}, old.sliding(8, 8, 8, -1)),
    "windows beyond the proof's tokens": ("olmo3", {"sliding_window": 100}, old.sliding(100, 100, -1, last=False)),
    "first layer full": (
        "olmo3",
        {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        old.sliding(8, -1, first=True),
    ),
    "linear": (
        "olmo2",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {"scaling": {"factor": 4.0, "_CLASS_": "x.PIRoPEScalingConfig"}},
    ),
    "stepwise": (
        "olmo2",
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            }  # fmt: skip
        },
        {"scaling": STEPS},
    ),
}


@pytest.mark.parametrize("split", [old.together, old.bands, old.boxes])
@pytest.mark.parametrize("case", CORE)
def test_olmo_core(case: str, split: old.Boxes, tmp_path: Path) -> None:
    kind, fields, mixer = CORE[case]
    made = old.model(kind, **fields)
    folder = old.write_core(tmp_path / "old", made, old.core_config(made, **mixer), split)
    check(converted(folder, tmp_path / "out")[0], made)


def test_yarn_on_layers_without_a_window(tmp_path: Path) -> None:
    """As OLMo 3 was extended: `block_overrides` scale the layers that see everything."""
    plain = {"rope_type": "default", "rope_theta": 1e4}
    yarn = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    made = old.model("olmo3", sliding_window=8, rope_parameters={"sliding_attention": plain, "full_attention": yarn})
    config = old.core_config(made, **old.sliding(8, 8, 8, -1))
    scaled = old.core_config(made, scaling=YARN, **old.sliding(8, 8, 8, -1))
    config["model"]["block_overrides"] = {"2": scaled["model"]["block"]}
    out, _ = converted(old.write_core(tmp_path / "old", made, config), tmp_path / "out")
    check(out, made)
    ropes = AutoModelForCausalLM.from_pretrained(out).config.rope_parameters
    assert ropes["sliding_attention"]["rope_theta"] == 1e4 and ropes["full_attention"]["rope_type"] == "yarn"


def test_written_by_torch_itself(tmp_path: Path) -> None:
    import torch.distributed.checkpoint as checkpoint

    made = old.model("olmo2")
    folder = old.write_core(tmp_path / "old", made, old.core_config(made))
    shutil.rmtree(folder / "model_and_optim")
    state = {f"model.{name}": tensor for name, tensor in old.core_state(made).items()}
    checkpoint.save(state | {"optim.lr": 0.1}, checkpoint_id=folder / "model_and_optim", no_dist=True)
    check(converted(folder, tmp_path / "out")[0], made)


def test_shards_another_dtype_and_matrices_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = old.model("olmo2")
    kind = original.find(folder := old.write_olmo(tmp_path / "old", made))
    assert kind is not None
    out = tmp_path / "out"
    out.mkdir()
    write(kind.read(folder), out, "BF16", report=lambda done, total: None, shard=20_000)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in shards:
        held = load_file(shard)
        assert sum(t.numel() * t.element_size() for t in held.values()) <= 20_000
        for name, tensor in held.items():
            assert torch.equal(tensor, made.state_dict()[name].bfloat16())
    config = AutoModelForCausalLM.from_pretrained(out).config
    whole = old.logits(open_model(out, config), IDS)
    monkeypatch.setattr("toolkit.conversion.run.IN_MEMORY", 0)
    lazy = open_model(out, config)
    assert {p.device.type for p in lazy.parameters() if p.ndim > 1} == {"meta"}
    assert torch.equal(old.logits(lazy, IDS), whole)
    assert converted(folder, tmp_path / "cast", dtype="bf16")[1]["tensors"] == len(made.state_dict())


@pytest.mark.skipif(not SHARED.is_dir(), reason="no originals of the reference implementations here")
@pytest.mark.parametrize("file", ["olmo1 model.pt", "olmo1 model.safetensors", "olmo2 model.pt", "core"])
def test_the_reference_implementations(file: str, tmp_path: Path) -> None:
    names = {"olmo1": "olmo1_1b-tiny/step200-unsharded", "olmo2": "olmo2_1b-tiny/step200-unsharded"}
    source = SHARED / names.get(file.split()[0], "olmo2_core-tiny/stage1-step20")
    folder = source
    if " " in file:
        folder = tmp_path / "one"
        folder.mkdir()
        for name in ("config.yaml", file.split()[1]):
            (folder / name).symlink_to((source / name).resolve())
    out, _ = converted(folder, tmp_path / "out")
    saved = load_file(source / "reference_logits.safetensors")
    model = AutoModelForCausalLM.from_pretrained(out, attn_implementation="sdpa")
    assert (old.logits(model, saved["input_ids"]) - saved["logits"]).abs().max() <= 1e-5
