"""LoRA on a base of four bits: the rounding by hand, what is trained and stored, layouts, kills, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toolkit.training.small import OLMO, Small, context, losses, weights
from tests.toolkit.training.test_adapters import adapt, logits, weights_of
from tests.toolkit.training.test_sft import by_hand
from toolkit.checkpoints.whole import whole
from toolkit.generation import models
from toolkit.stage import Artifact, Interrupted
from toolkit.training.adapters import attach

QLORA = {"method": "lora", "rank": 4, "base": "nf4"}
# NF4 as the paper lists it (arXiv 2305.14314, appendix E): quantiles of a normal distribution, and an exact zero.
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


@pytest.fixture(scope="module")
def wide(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model whose rows are whole blocks of 64 weights."""
    words = OLMO | {"hidden_size": 64, "intermediate_size": 128}
    return Artifact(path=small.pretrain(tmp_path_factory.mktemp("wide"), architecture=words, lr=1e-2))


@pytest.fixture(scope="module")
def tuned(small: Small, wide: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapt(small, tmp_path_factory.mktemp("tuned"), {"model": wide}, **QLORA)


def test_the_first_loss_is_of_a_base_in_four_bits(small: Small, wide: Artifact, tmp_path: Path) -> None:
    """Rounded by hand here: blocks of 64 weights by the largest of them, each to the nearest of 16 values. The scales
    themselves are rounded to eight bits, which moves the loss by less than a tenth of what four bits move it."""
    out = adapt(small, tmp_path, {"model": wide}, steps=1, global_batch=20, **QLORA)
    model, tok = AutoModelForCausalLM.from_pretrained(wide.path), AutoTokenizer.from_pretrained(wide.path)
    rows = load_from_disk(str(small.pairs.path / "data"))["train"]
    plain = by_hand(model, tok, rows["prompt"], rows["completion"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                blocks = parameter.view(-1, 64)
                scale = blocks.abs().amax(1, keepdim=True)
                nearest = (blocks / scale).unsqueeze(-1).sub(NF4).abs().argmin(-1)
                parameter.copy_((NF4[nearest] * scale).view_as(parameter))
    rounded = by_hand(model, tok, rows["prompt"], rows["completion"])
    assert abs(rounded - plain) > 1e-3
    assert losses(out)[0] == pytest.approx(rounded, abs=abs(rounded - plain) / 10)


def test_only_the_adapter_is_trained_and_every_weight_is_counted(small: Small, wide: Artifact, tuned: Path) -> None:
    how = json.loads((tuned / "training.json").read_text())["trained"]
    whole_model = AutoModelForCausalLM.from_pretrained(wide.path)
    assert all("lora_A" in name or "lora_B" in name for name in how["names"])
    assert how["of"] - how["parameters"] == sum(p.numel() for p in whole_model.parameters())  # codes: two in a byte
    assert sum(tensor.numel() for tensor in weights_of(tuned).values()) == how["parameters"]
    assert losses(tuned)[-1] < losses(tuned)[0]


def test_it_is_merged_into_the_base_as_it_is_stored(wide: Artifact, tuned: Path, tmp_path: Path) -> None:
    """Not into rounded weights: what a layer gains is the product of the two thin matrices, and no more."""
    restored, was, words = whole(tuned, tmp_path), weights(wide.path), weights_of(tuned)
    for name, tensor in weights(restored).items():
        change = torch.zeros_like(tensor)
        if "_proj" in name:
            first, second = (words[f"base_model.model.{name.replace('weight', f'lora_{m}.weight')}"] for m in "AB")
            change = 32 / 4 * second @ first
        torch.testing.assert_close(tensor, was[name] + change, rtol=0, atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(wide.path, dtype=torch.float32)
    merged, _ = models.load(restored, "auto", 1)
    assert (logits(merged) - logits(attach(plain, tuned))).abs().max() <= 2e-5


@pytest.mark.parametrize(
    "fields", [{"base": "fp4"}, {"dora": True}, {"precision": "bf16"}], ids=["fp4", "dora", "bf16"]
)
def test_it_learns_in_each_of_its_forms(small: Small, wide: Artifact, tmp_path: Path, fields: dict[str, Any]) -> None:
    ctx = context(tmp_path, gradient_checkpointing=True)
    out = adapt(small, tmp_path, {"model": wide}, ctx, **QLORA | fields)
    assert losses(out)[-1] < losses(out)[0]


@pytest.mark.parametrize("zero", [None, 2])
def test_two_ranks_compute_what_one_process_computes(
    small: Small, wide: Artifact, tuned: Path, tmp_path: Path, zero: int | None
) -> None:
    out = adapt(small, tmp_path, {"model": wide}, context(tmp_path, zero=zero, processes=2), **QLORA)
    assert losses(out) == pytest.approx(losses(tuned), abs=1e-5)


def test_interrupted_it_ends_with_the_same_bytes(small: Small, wide: Artifact, tuned: Path, tmp_path: Path) -> None:
    ctx = context(tmp_path)
    ctx.stop_requested = True
    with pytest.raises(Interrupted):
        adapt(small, tmp_path, {"model": wide}, ctx, **QLORA)
    (tmp_path / "out").rename(tmp_path / "lost")
    ctx.stop_requested = False
    out = adapt(small, tmp_path, {"model": wide}, ctx, **QLORA)
    for name in ("adapter_model.safetensors", "adapter_config.json", "loss.parquet"):
        assert (out / name).read_bytes() == (tuned / name).read_bytes(), name


def test_refused(small: Small, wide: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base is nf4 and zero is 3, which cuts up weights .* take zero 2"):
        adapt(small, tmp_path / "z", {"model": wide}, context(tmp_path / "z", zero=3, processes=2), **QLORA)
    with pytest.raises(ValueError, match="rows of .* have 32 weights: on a CPU bitsandbytes computes wrongly"):
        adapt(small, tmp_path / "r", **QLORA)
    with pytest.raises(ValueError, match="unknown value of 'base' 'int4'"):
        adapt(small, tmp_path / "b", {"model": wide}, **QLORA | {"base": "int4"})
