"""Parameter-efficient methods: what they train and nothing else, one base for all of them, and the same logits after a
merge as before."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs import train
from tests.toolkit.training.small import SIZES, Small, context, losses, weights
from toolkit import lookup
from toolkit.checkpoints.forms.adapter import restore
from toolkit.checkpoints.whole import base_of, whole
from toolkit.generation import models
from toolkit.manifest.files import digest_file
from toolkit.spec import build
from toolkit.stage import Artifact
from toolkit.training.adapters import MERGING, attach, kind_of

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 4},
    "rslora": {"method": "lora", "rank": 4, "rank_stabilised": True},
    "dora": {"method": "lora", "rank": 4, "dora": True},
    "ia3": {"method": "ia3"},
    "bitfit": {"method": "bitfit"},
    "bottleneck": {"method": "bottleneck", "size": 4},
    "prompt_tuning": {"method": "prompt_tuning", "tokens": 4},
    "prefix_tuning": {"method": "prefix_tuning", "tokens": 4},
}
NAMES = {  # what each trains, by parts of the names
    "lora": ("lora_A", "lora_B"),
    "rslora": ("lora_A", "lora_B"),
    "dora": ("lora_A", "lora_B", "lora_magnitude_vector"),
    "ia3": ("ia3_l",),
    "bitfit": ("norm.weight", "proj.bias"),
    "bottleneck": (".bottleneck.",),
    "prompt_tuning": ("prompt_encoder",),
    "prefix_tuning": ("prompt_encoder",),
}


def adapt(
    small: Small, folder: Path, inputs: dict[str, Artifact] | None = None, ctx: Any = None, **fields: Any
) -> Path:
    """The artifact of a tuning run: batches of 4, 4 steps at 1e-2."""
    method = lookup.find(train.CHOICE.package, fields["method"], "method")
    usual = {"global_batch": 4, "lr": 1e-2, "max_length": 64, "steps": 4, "schedule": "constant", "warmup_ratio": 0}
    out = folder / "out"
    out.mkdir(parents=True)
    given = {"model": small.model, "data": small.pairs} | (inputs or {})
    train.run(build(method.Spec, usual | fields), method.Inputs(**given), out, ctx or context(folder))
    return out


@pytest.fixture(scope="module")
def adapted(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The artifact of each method."""
    root = tmp_path_factory.mktemp("adapted")
    return {name: adapt(small, root / name, **fields) for name, fields in METHODS.items()}


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9, 60, 61], [70, 71, 72, 73, 74, 75, 76]])
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return found[:, -7:]


def base(small: Small) -> Any:
    return AutoModelForCausalLM.from_pretrained(small.model.path, dtype=torch.float32)


@pytest.mark.parametrize("name", METHODS)
def test_only_what_it_says_is_trained_and_stored(small: Small, adapted: dict[str, Path], name: str) -> None:
    out = adapted[name]
    how = json.loads((out / "training.json").read_text())["trained"]
    assert how["names"] and all(any(part in n for part in NAMES[name]) for n in how["names"])
    assert 0 < how["parameters"] < 0.5 * how["of"]
    assert losses(out)[-1] < losses(out)[0] + 0.05 and (out / "steps" / "4" / "adapter_config.json").is_file()
    assert not (out / "model.safetensors").exists() and not (out / "tokenizer.json").exists()
    stored = weights_of(out)
    assert sum(tensor.numel() for tensor in stored.values()) == how["parameters"]
    found = base_of(out)
    assert found is not None and found[0] == "adapter" and found[1].samefile(small.model.path)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))


@pytest.mark.parametrize("name", METHODS)
def test_the_restored_model_is_the_adapted_one(
    small: Small, adapted: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Merged in fp32: sums in another order, so 2e-5 of logits of about 5; what is laid beside is the same to the bit."""
    before = digest_file(small.model.path / "model.safetensors")
    restored = whole(adapted[name], tmp_path)
    model, _ = models.load(restored, "auto", 1)
    kind = kind_of(adapted[name])
    if kind == "BITFIT":
        assert_bitfit(small, adapted[name], restored)
    else:
        difference = (logits(model) - logits(attach(base(small), adapted[name]))).abs().max().item()
        assert difference <= (2e-5 if kind in MERGING else 0.0)
    assert (logits(model) - logits(base(small))).abs().max() > 1e-3  # something was learned
    assert digest_file(small.model.path / "model.safetensors") == before
    if kind in MERGING:
        changed = {
            n
            for n, t in weights(restored).items()
            if n not in weights(small.model.path) or t.ne(weights(small.model.path)[n]).any()
        }
        assert changed and not any("embed" in n or "lm_head" in n for n in changed)


def assert_bitfit(small: Small, out: Path, restored: Path) -> None:
    stored, was, now = weights_of(out), weights(small.model.path), weights(restored)
    assert json.loads((restored / "config.json").read_text())["attention_bias"] is True
    assert now.keys() == was.keys() | stored.keys()
    assert all(torch.equal(now[name], stored.get(name, was.get(name))) for name in now)


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bottleneck", "prompt_tuning", "bitfit"])
def test_first_loss_is_the_models(small: Small, adapted: dict[str, Path], tmp_path: Path, name: str) -> None:
    """All but prompts and prefixes begin as the model that they adapt."""
    whole_model = small.tune(tmp_path, steps=1)
    difference = abs(losses(adapted[name])[0] - losses(whole_model)[0])
    assert difference > 1e-3 if name == "prompt_tuning" else difference < 3e-6


@pytest.mark.parametrize("name", ["lora", "bottleneck", "bitfit", "prompt_tuning"])
def test_zero3_on_two_ranks_trains_the_same_adapter(
    small: Small, adapted: dict[str, Path], tmp_path: Path, name: str
) -> None:
    out = adapt(small, tmp_path, ctx=context(tmp_path, zero=3, processes=2), **METHODS[name])
    assert losses(out) == pytest.approx(losses(adapted[name]), abs=1e-5)
    ours, theirs = weights_of(out), weights_of(adapted[name])
    assert ours.keys() == theirs.keys()
    assert max((ours[n] - theirs[n]).abs().max().item() for n in ours) < 1e-4


def test_bitfit_trains_biases_where_there_are_some(small: Small, tmp_path: Path) -> None:
    words = {"model_type": "llama", **SIZES, "attention_bias": True, "max_position_embeddings": 64}
    biased = Artifact(path=small.pretrain(tmp_path / "p", architecture=words, lr=1e-2))
    out = adapt(small, tmp_path / "t", {"model": biased}, method="bitfit")
    assert {name.split(".")[-1] for name in weights_of(out)} == {"bias"} and len(weights_of(out)) == 8
    restored = whole(out, tmp_path)
    assert models.load(restored, "auto", 1)[0].config.attention_bias is True
    assert (restored / "config.json").read_bytes() == (biased.path / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "bitfit", "parts": ["bias"]}, "olmo2 has nothing of what parts names .bias.*others of bias, norm"),
        ({"method": "lora", "targets": ["c_attn"]}, "c_attn.*linear layers are q_proj, k_proj"),
        ({"method": "bottleneck", "targets": ["c_proj"]}, "no layer of a olmo2 is called c_proj; there are q_proj"),
        ({"method": "lora", "rank": 0}, "rank is 0"),
        ({"method": "lora", "lr": 0}, "lr is 0.0: a learning rate must be above 0"),
        ({"method": "prompt_tuning", "packing": True}, "packing joins rows"),
        ({"method": "prefix_tuning", "tokens": 0}, "tokens is 0"),
        ({"method": "ia3", "max_length": 3}, "no completion token is left"),
    ],
)
def test_refused(small: Small, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(small, tmp_path, **fields)


@pytest.mark.parametrize("name", ["lora", "bottleneck", "bitfit", "prefix_tuning"])
def test_an_adapter_for_another_base(small: Small, adapted: dict[str, Path], tmp_path: Path, name: str) -> None:
    """One with another number of blocks, put in the place of the base: PEFT alone would take it."""
    other = small.pretrain(tmp_path / "p", architecture={"model_type": "olmo2", **SIZES, "num_hidden_layers": 3})
    (tmp_path / "r").mkdir()
    with pytest.raises(ValueError, match="was trained for another"):
        restore(adapted[name], other, tmp_path / "r")
        models.load(tmp_path / "r", "auto", 1)


@pytest.mark.parametrize("name", ["bottleneck", "prompt_tuning"])
def test_what_is_not_merged_is_refused_as_a_plain_model(
    small: Small, adapted: dict[str, Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match="an adapter that is no part of its weights.*not trained further, converted"):
        small.tune(tmp_path / "t", inputs={"model": Artifact(path=adapted[name])})


def test_a_merged_adapter_is_trained_further_and_the_next_refers_to_it(
    small: Small, adapted: dict[str, Path], tmp_path: Path
) -> None:
    """An adapter upon an adapter: its base is the first one's artifact, not the scratch copy that training used."""
    second = adapt(small, tmp_path / "second", {"model": Artifact(path=adapted["lora"])}, **METHODS["ia3"])
    found = base_of(second)
    assert found is not None and found[1].samefile(adapted["lora"])
    assert (whole(second, tmp_path / "scratch") / "model.safetensors").is_file()
    assert losses(second)[0] < losses(adapted["lora"])[0]


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning", "bottleneck"])
def test_answers_do_not_depend_on_the_batch(adapted: dict[str, Path], tmp_path: Path, name: str) -> None:
    from toolkit.generation.engine import Decoding, Engine
    from toolkit.generation.rows import Row

    model, tokenizer = models.load(whole(adapted[name], tmp_path), "auto", 1)
    engine = Engine(model, tokenizer, Decoding(max_new_tokens=5))
    rows = [Row(id=i, tokens=list(range(40, 44 + 3 * i))) for i in range(3)]
    assert engine.answer(rows) == [engine.answer([row])[0] for row in rows]


def test_an_interrupted_run_ends_with_the_same_bytes(small: Small, adapted: dict[str, Path], tmp_path: Path) -> None:
    from toolkit.stage import Interrupted

    ctx = context(tmp_path)
    ctx.stop_requested = True
    with pytest.raises(Interrupted):
        adapt(small, tmp_path, ctx=ctx, **METHODS["dora"])
    (tmp_path / "out").rename(tmp_path / "lost")
    ctx.stop_requested = False
    out = adapt(small, tmp_path, ctx=ctx, **METHODS["dora"])
    for name in ("adapter_model.safetensors", "adapter_config.json", "loss.parquet"):
        assert (out / name).read_bytes() == (adapted["dora"] / name).read_bytes(), name
