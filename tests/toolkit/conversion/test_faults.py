"""The mistakes that are made in conversions, each made on purpose: the proof or a check refuses the folder.

None of them fails to load, and most of them hardly change the loss.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import convert as job
from tests.toolkit.conversion import originals as old
from tests.toolkit.training.small import context, tokenizer
from toolkit.checkpoints.check import check_model
from toolkit.checkpoints.folders import check_tokenizer
from toolkit.conversion import original
from toolkit.conversion.convert import write
from toolkit.conversion.original import Original
from toolkit.conversion.proof import prove
from toolkit.stage import Artifact

Spoil = Callable[[Path], None]


def swap(one: str, other: str) -> Spoil:
    """Exchange the tensors whose names hold `one` with those that hold `other` in its place."""

    def spoil(out: Path) -> None:
        held = load_file(out / "model.safetensors")
        pairs = [(name, name.replace(one, other)) for name in held if one in name]
        assert pairs and all(to in held for _, to in pairs)
        moved = {a: held[b] for a, b in pairs} | {b: held[a] for a, b in pairs}
        save_file({name: tensor.clone() for name, tensor in (held | moved).items()}, out / "model.safetensors")

    return spoil


def edit(**fields: Any) -> Spoil:
    """Change fields of config.json."""

    def spoil(out: Path) -> None:
        config = json.loads((out / "config.json").read_text())
        assert all(config[name] != value for name, value in fields.items())
        (out / "config.json").write_text(json.dumps(config | fields))

    return spoil


MODELS: dict[str, Callable[[Path], Path]] = {
    "olmo": lambda to: old.write_olmo(
        to, old.model("olmo", num_key_value_heads=4, clip_qkv=8.0, max_position_embeddings=64)
    ),
    "grouped": lambda to: old.write_olmo(to, old.model("olmo")),
    "gains": lambda to: old.write_olmo(to, old.model("stablelm", partial_rotary_factor=1.0, num_key_value_heads=4)),
    "olmo2": lambda to: old.write_olmo(to, old.model("olmo2", num_key_value_heads=4, rms_norm_eps=1e-6)),
    "core": lambda to: _core(to, "olmo2", num_key_value_heads=4, rms_norm_eps=1e-6),
    "window": lambda to: _core(to, "olmo3", 8, num_key_value_heads=4, sliding_window=8),
    "long window": lambda to: _core(to, "olmo3", 4096, sliding_window=4096),
}


def _core(folder: Path, kind: str, window: int = 0, **fields: Any) -> Path:
    made = old.model(kind, **fields)
    mixer = old.sliding(window, window, -1) if window else {}
    return old.write_core(folder, made, old.core_config(made, **mixer), old.bands)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Original, Path]]:
    """Every model's original and its converted folder."""
    found = {}
    for name, build in MODELS.items():
        root = tmp_path_factory.mktemp(name.replace(" ", "-"))
        folder = build(root / "old")
        kind = original.find(folder)
        assert kind is not None
        read = kind.read(folder)
        (root / "out").mkdir()
        write(read, root / "out", None, report=lambda done, total: None)
        found[name] = (read, root / "out")
    return found


def theta(value: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": value}


DIFFER = "do not compute the same"
FAULTS: dict[str, tuple[str, Spoil, str]] = {
    "SwiGLU halves swapped": ("olmo", swap("gate_proj", "up_proj"), DIFFER),
    "SwiGLU halves swapped, olmo 2": ("olmo2", swap("gate_proj", "up_proj"), DIFFER),
    "SwiGLU halves swapped, core": ("core", swap("gate_proj", "up_proj"), DIFFER),
    "q and k swapped": ("olmo", swap("q_proj", "k_proj"), DIFFER),
    "q and k swapped, core": ("core", swap("q_proj", "k_proj"), DIFFER),
    "k and v swapped": ("grouped", swap("k_proj", "v_proj"), DIFFER),
    "q- and k-norm swapped": ("olmo2", swap("q_norm", "k_norm"), DIFFER),
    "q- and k-norm swapped, core": ("core", swap("q_norm", "k_norm"), DIFFER),
    "norms swapped": ("olmo2", swap("post_attention_layernorm", "post_feedforward_layernorm"), DIFFER),
    "norms swapped, core": ("core", swap("post_attention_layernorm", "post_feedforward_layernorm"), DIFFER),
    "norms swapped, with biases": ("gains", swap("input_layernorm", "post_attention_layernorm"), DIFFER),
    "clipping dropped": ("olmo", edit(clip_qkv=None), DIFFER),
    "another clipping": ("olmo", edit(clip_qkv=9.0), DIFFER),
    "clipping added": ("grouped", edit(clip_qkv=8.0), DIFFER),
    "wrong theta": ("olmo", edit(rope_parameters=theta(500_000.0)), "other rotary frequencies"),
    "nearly the theta": ("core", edit(rope_parameters=theta(10_010.0)), "other rotary frequencies"),
    "theta of one kind of layer": (
        "window",
        edit(rope_parameters={"sliding_attention": theta(5e5), "full_attention": theta(1e4)}),
        "layer 0 has other rotary frequencies",
    ),
    "scaling": ("olmo2", edit(rope_parameters=theta(1e4) | {"rope_type": "linear", "factor": 2.0}), "other rotary"),
    "wrong epsilon": ("olmo2", edit(rms_norm_eps=1e-5), DIFFER),
    "wrong epsilon, core": ("core", edit(rms_norm_eps=1e-5), DIFFER),
    "nearly the epsilon": ("window", edit(rms_norm_eps=1.1e-5), DIFFER),
    "wrong number of key heads": ("grouped", edit(num_key_value_heads=4), r"shape \(16, 32\); a olmo .* \(32, 32\)"),
    "wrong number of heads": ("olmo", edit(num_attention_heads=2, num_key_value_heads=2), "other rotary"),
    "two layers swapped": ("olmo", swap("layers.1.", "layers.2."), DIFFER),
    "two layers swapped, core": ("core", swap("layers.0.", "layers.1."), DIFFER),
    "window off by one": ("window", edit(sliding_window=9), DIFFER),
    "window off by one, the other way": ("window", edit(sliding_window=7), DIFFER),
    "a window beyond the tokens of the proof, off by one": ("long window", edit(sliding_window=4097), DIFFER),
    "another pattern of windows": ("window", edit(layer_types=["sliding_attention"] * 3), DIFFER),
    "head and embedding swapped": ("olmo", swap("lm_head", "model.embed_tokens"), DIFFER),
    "a layer too few": ("olmo", edit(num_hidden_layers=2), r"unexpected 7 \(model.layers.2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_conversion_is_refused(
    fault: str, made: dict[str, tuple[Original, Path]], tmp_path: Path
) -> None:  # fmt: skip
    name, spoil, message = FAULTS[fault]
    read, right = made[name]
    out = shutil.copytree(right, tmp_path / "out")
    assert prove(read, out).difference < 1e-4
    spoil(out)
    with pytest.raises(ValueError, match=message):
        check_model(out, bare=True)
        prove(read, out)


def test_weights_of_another_class_are_not_initialised_at_random(tmp_path: Path) -> None:
    """hf_olmo's names under OlmoForCausalLM: transformers warns of it and goes on with random weights."""
    made = old.model("olmo")
    folder = tmp_path / "mixed"
    made.config.save_pretrained(folder)
    tokenizer(folder)
    state = {f"model.{name}": tensor.clone() for name, tensor in old.olmo_state(made).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=r"missing 23 .*; unexpected 14 \(model.transformer.blocks"):
        job.run(job.Spec(), job.Inputs(source=Artifact(path=folder)), out, context(tmp_path))


def test_halves_swapped_in_the_original_show_in_the_bits(tmp_path: Path) -> None:
    """An original with its halves swapped is a model of its own: only the measured text tells it from its neighbours."""
    made = old.model("olmo")
    found = []
    for swapped in (False, True):
        folder = old.write_olmo(tmp_path / f"old{swapped}", made)
        state = torch.load(folder / "model.pt")
        for name in [name for name in state if name.endswith("ff_proj.weight") and swapped]:
            state[name] = torch.cat(state[name].chunk(2)[::-1])
        torch.save(state, folder / "model.pt")
        out = tmp_path / f"out{swapped}"
        out.mkdir()
        inputs = job.Inputs(source=Artifact(path=folder), tokenizer=Artifact(path=tokenizer(tmp_path / "t")))
        found.append(job.run(job.Spec(), inputs, out, context(tmp_path))["bits_per_byte"])
    assert abs(found[0] - found[1]) > 1e-3


def test_a_tokenizer_is_copied_and_a_rebuilt_one_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, pre_tokenizers

    folder, given = old.write_olmo(tmp_path / "old", old.model("olmo")), tokenizer(tmp_path / "t")
    out = tmp_path / "out"
    out.mkdir()
    inputs = job.Inputs(source=Artifact(path=folder), tokenizer=Artifact(path=given))
    job.run(job.Spec(), inputs, out, context(tmp_path))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (given / name).read_bytes()
    rebuilt = Tokenizer.from_file(str(out / "tokenizer.json"))
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    rebuilt.pre_tokenizer = pre_tokenizers.Sequence(splits)
    assert rebuilt.get_vocab_size() == Tokenizer.from_file(str(given / "tokenizer.json")).get_vocab_size()
    rebuilt.save(str(out / "tokenizer.json"))
    with pytest.raises(ValueError, match="gives other ids than the one in"):
        check_tokenizer(given, out)


def test_logits_of_the_reference_that_differ(tmp_path: Path) -> None:
    made = old.model("olmo2")
    folder = old.write_olmo(tmp_path / "old", made)
    ids = torch.arange(40).view(1, 40)
    wanted = old.logits(made, ids)
    kind = original.find(folder)
    assert kind is not None
    (out := tmp_path / "out").mkdir()
    write(kind.read(folder), out, None, report=lambda done, total: None)
    save_file({"input_ids": ids, "logits": wanted}, folder / "reference_logits.safetensors")
    found = prove(kind.read(folder), out).reference
    assert found is not None and found <= 1e-5
    (cast := tmp_path / "cast").mkdir()
    write(kind.read(folder), cast, "BF16", report=lambda done, total: None)
    assert prove(kind.read(folder), cast, "BF16").reference is None  # rounded weights give other logits, and should
    save_file({"input_ids": ids, "logits": wanted * 1.001}, folder / "reference_logits.safetensors")
    with pytest.raises(ValueError, match="reference_logits.safetensors do not compute the same"):
        prove(kind.read(folder), out)
