"""Pre-training: five architectures, what is kept, a step against torch, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM

from tests.toolkit.training.small import OLMO, SIZES, Small, context, dataset, losses, packed, tokenizer, weights
from toolkit.failures import NanLoss
from toolkit.stage import Artifact
from toolkit.training.architecture import make_config
from toolkit.training.methods.pretrain import Spec
from toolkit.training.order import Order

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "olmo2": OLMO,
    "olmo3": {**OLMO, "model_type": "olmo3", "sliding_window": 8, "rope_theta": 1e4, "num_hidden_layers": 4},
    "llama": {"model_type": "llama", **SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", **SIZES, "num_key_value_heads": 1, "sliding_window": 8},
    "mistral": {"model_type": "mistral", **SIZES, "num_key_value_heads": 2, "sliding_window": 8, "vocab_size": 512},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_train_and_load_again(small: Small, tmp_path: Path, name: str) -> None:
    words = ARCHITECTURES[name]
    out = small.pretrain(tmp_path, architecture=words, steps=2, keep_steps=[0])
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    config = model.config
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "sliding_window", "vocab_size"):
        if key in words:
            assert getattr(config, key) == words[key]
    assert model.model.layers[0].self_attn.k_proj.out_features == 8 * config.num_key_value_heads  # head_dim 32 / 4
    first = losses(out)[0]
    assert abs(first - math.log(config.vocab_size)) < 0.5  # a model at random knows nothing
    before, after = weights(out / "steps" / "0"), weights(out / "steps" / "2")
    assert all(not torch.equal(before[key], after[key]) for key in before)
    assert config.eos_token_id == 0 and config.pad_token_id == 1


def test_olmo3_has_one_theta_for_every_layer_type(small: Small) -> None:
    config = make_config(ARCHITECTURES["olmo3"], small.tokenizer.path)
    assert {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()} == {
        "sliding_attention": 1e4,
        "full_attention": 1e4,
    }


def test_a_pad_token_that_ends_texts_is_not_the_configs(tmp_path: Path) -> None:
    """An embedding never learns the row of its padding index: the end of text must not be it."""
    folder = tokenizer(tmp_path / "t", pad=False)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<eos>"}))
    config = make_config(OLMO, folder)
    assert config.eos_token_id == 0 and config.pad_token_id is None


def test_first_steps_are_those_of_a_plain_torch_loop(small: Small, tmp_path: Path) -> None:
    out = small.pretrain(tmp_path, steps=3, lr=1e-2, schedule="constant", clip=0.1, weight_decay=0.1, keep_steps=[0])
    rows = torch.tensor(load_from_disk(str(small.packed.path / "data"))["train"]["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(out / "steps" / "0").train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    order = list(Order(rows=len(rows), total=24, seed=0))
    for step in range(3):
        batch = rows[order[8 * step : 8 * step + 8]]
        logits = model(batch, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1))
        assert losses(out)[step] == pytest.approx(loss.item(), abs=2e-6)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    expected = model.state_dict()
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=2e-5)


def test_kept_steps_and_curve(small: Small, tmp_path: Path) -> None:
    out = small.pretrain(tmp_path, steps=5, warmup=2, keep_steps=[0, 2], final_lr_ratio=0.1)
    assert sorted(p.name for p in (out / "steps").iterdir()) == ["0", "2", "5"]
    root, last = out / "model.safetensors", out / "steps" / "5" / "model.safetensors"
    assert root.stat().st_ino == last.stat().st_ino  # the same bytes once
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / "steps" / "2" / name).read_bytes() == (small.tokenizer.path / name).read_bytes()
    curve = pyarrow.parquet.read_table(out / "loss.parquet").to_pydict()
    assert curve["step"] == [1, 2, 3, 4, 5] and curve["tokens"] == [128, 256, 384, 512, 640]
    cosine = [1e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * done / 3)) / 2) for done in range(3)]
    assert curve["learning_rate"] == pytest.approx([0, 5e-4, *cosine])
    assert oct(root.stat().st_mode & 0o777) == oct((out / "config.json").stat().st_mode & 0o777)


def test_same_bytes_again_and_another_seed_another_model(small: Small, tmp_path: Path) -> None:
    one, two, other = (small.pretrain(tmp_path / str(n), seed=seed) for n, seed in enumerate([0, 0, 1]))
    for name in ("model.safetensors", "loss.parquet", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batch_changes_nothing_but_rounding(small: Small, tmp_path: Path, micro: int) -> None:
    """With short documents, micro-batches have different numbers of targets; the mean is over the global batch."""
    rows = [[(start + i) % 250 + 2 for i in range(16)] for start in range(24)]
    positions = [[i % (number % 13 + 1) for i in range(16)] for number in range(24)]
    data = {"data": dataset(tmp_path / "d", {"input_ids": rows, "position_ids": positions})}
    whole = small.pretrain(tmp_path / "whole", inputs=data, lr=1e-2, ctx=context(tmp_path / "whole", micro_batch=8))
    cut = small.pretrain(tmp_path / "cut", inputs=data, lr=1e-2, ctx=context(tmp_path / "cut", micro_batch=micro))
    assert losses(cut) == pytest.approx(losses(whole), abs=3e-6)


def test_documents_in_a_row_do_not_see_each_other(small: Small, tmp_path: Path) -> None:
    """The first loss of rows of two documents is that of the documents one by one, computed by a plain forward pass."""
    rows = [[(start + i * i) % 250 + 2 for i in range(16)] for start in range(8)]
    positions = [[*range(6), *range(10)]] * 8
    data = dataset(tmp_path / "d", {"input_ids": rows, "position_ids": positions})
    out = small.pretrain(tmp_path, inputs={"data": data}, steps=1, keep_steps=[0])
    model = AutoModelForCausalLM.from_pretrained(out / "steps" / "0")
    total = 0.0
    for row in rows:
        for document in (row[:6], row[6:]):
            ids = torch.tensor([document])
            logits = model(ids, use_cache=False).logits[0, :-1]
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    assert losses(out)[0] == pytest.approx(total / (8 * 14), abs=3e-6)


def test_batches_reach_over_the_end_of_the_data(small: Small, tmp_path: Path) -> None:
    out = small.pretrain(tmp_path, inputs={"data": packed(tmp_path / "d", rows=5)}, steps=3)
    assert pyarrow.parquet.read_table(out / "loss.parquet")["tokens"].to_pylist() == [128, 256, 384]


def test_goes_on_from_a_model(small: Small, tmp_path: Path) -> None:
    out = small.pretrain(tmp_path, inputs={"model": small.model}, steps=1, lr=1e-9)
    assert losses(out)[0] < losses(small.model.path)[0] - 0.1


def test_bf16_keeps_fp32_weights(small: Small, tmp_path: Path) -> None:
    out = small.pretrain(tmp_path, precision="bf16", steps=2)
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    assert losses(out) == pytest.approx(losses(small.pretrain(tmp_path / "fp32", steps=2)), abs=2e-2)


def test_a_loss_that_is_not_finite_stops(small: Small, tmp_path: Path) -> None:
    with pytest.raises(NanLoss, match=r"(at|after) step \d+ of 30.*lower lr"):
        small.pretrain(tmp_path, steps=30, lr=1e30, clip=1e30)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"architecture": {**OLMO, "hiden_act": "silu"}},
            "unknown field of architecture for olmo2 'hiden_act'; did you mean 'hidden_act'",
        ),
        (
            {"architecture": {**OLMO, "model_type": "olmo22"}},
            "unknown architecture.model_type 'olmo22'; did you mean 'olmo2'",
        ),
        (
            {"architecture": {**OLMO, "vocab_size": 100}},
            r"has 2\d\d tokens and the embedding only 100 rows: set vocab_size",
        ),
        ({"architecture": {"model_type": "olmo2"}}, "architecture lacks hidden_size, intermediate_size"),
        (
            {"architecture": {**OLMO, "num_attention_heads": 3}},
            "hidden_size 32 is not a multiple of num_attention_heads 3",
        ),
        (
            {"architecture": {**OLMO, "num_key_value_heads": 3}},
            "num_key_value_heads 3 does not divide num_attention_heads 4",
        ),
        ({"architecture": {**OLMO, "max_position_embeddings": 8}}, "rows have 16 tokens and the model 8 positions"),
        ({"architecture": {}}, "neither an architecture nor a model"),
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
        ({"lr": 0}, "lr is 0.0: a learning rate must be above 0"),
        ({"warmup": 4}, "warm-up of 4 steps does not fit into 4 steps"),
        ({"keep_steps": [9]}, r"keep_steps names step 9, but this run has steps 0 \(initialisation\) to 4"),
        ({"schedule": "cosin"}, "unknown value of 'schedule' 'cosin'; did you mean 'cosine'"),
        ({"betas": [0.9]}, "AdamW takes two numbers"),
        ({"clip": 0}, "clip is 0.0"),
    ],
)
def test_refused(small: Small, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.pretrain(tmp_path, **fields)


def test_refused_inputs(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="architecture is given and a model as well"):
        small.pretrain(tmp_path / "a", inputs={"model": small.model}, architecture=OLMO)
    other = Artifact(path=tokenizer(tmp_path / "t", extra=("<more>",)))
    with pytest.raises(ValueError, match="tokens have other ids, such as"):
        small.pretrain(tmp_path / "b", inputs={"model": small.model, "tokenizer": other})
    with pytest.raises(ValueError, match="has no column 'input_ids'; it has completion, prompt"):
        small.pretrain(tmp_path / "c", inputs={"data": small.pairs})
    wide = dataset(tmp_path / "wide", {"input_ids": [[2, 3, 5000, 4]] * 8})
    with pytest.raises(ValueError, match="token id 5000 and the embedding only 2.. rows"):
        small.pretrain(tmp_path / "d", inputs={"data": wide})
    with pytest.raises(ValueError, match="holds no data set"):
        small.pretrain(tmp_path / "e", inputs={"data": small.tokenizer})


def test_plan_time_checks_are_light() -> None:
    """A study plans thousands of cells: a wrong number is found without torch (see the layer tests for imports)."""
    with pytest.raises(ValueError, match="global_batch is 0"):
        Spec(method="pretrain", steps=1, global_batch=0, lr=1e-3)
