"""A gradient that is not a number: the batch that made it is named, and no save holds what came of it."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from safetensors.torch import load_file

from tests.toolkit.training.small import Small, context
from toolkit.failures import NanLoss
from toolkit.training import engine
from toolkit.training.exact import Exact
from toolkit.training.methods import pretrain
from toolkit.training.order import Order
from toolkit.training.recipe import Recipe


@pytest.mark.parametrize(("zero", "processes"), [(None, 1), (None, 2), (0, 1), (2, 2), (3, 2)])
def test_the_batch_that_made_a_nan_is_named_and_nothing_of_it_is_saved(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero: int | None, processes: int
) -> None:
    """The loss of step 3 is finite and its gradient is not: step 4 would see a loss that is not, and blame its rows."""
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")  # a save after every step
    rows = load_from_disk(str(small.packed.path / "data"))["train"]

    def build(arguments: dict[str, Any], load: Any) -> Exact:
        trainer = pretrain._trainer(arguments, load, rows, 280)
        calls = itertools.count(1)
        spoil = lambda gradient: gradient * (float("nan") if next(calls) == 3 else 1.0)  # noqa: E731
        next(p for name, p in trainer.model.named_parameters() if "up_proj" in name).register_hook(spoil)
        return trainer

    recipe = Recipe(
        steps=8, global_batch=8, lr=1e-3, schedule="constant", warmup_steps=0, weight_decay=0.0, betas=(0.9, 0.999),
        clip=1.0, precision="fp32", seed=0, keep_steps=(),
    )  # fmt: skip
    model = small.model.path
    run = engine.Run(recipe=recipe, source=model, tokenizer=model, rows=rows, tokens_a_row=16, build=build)
    ctx = context(tmp_path, zero=zero, processes=processes)
    with pytest.raises(
        NanLoss, match=r"(the gradient is nan at|is not finite after) step 3 of 8, in the batch"
    ) as caught:
        engine.train(run, tmp_path / "out", ctx)
    named = re.search(r"rows ([\d, ]+):", str(caught.value))
    assert named is not None
    assert [int(row) for row in named[1].split(", ")] == list(Order(rows=40, total=64, seed=0))[16:24]
    assert sorted(path.name for path in (tmp_path / "state" / "saves").iterdir()) == ["1", "2"]
    assert all(bool(t.isfinite().all()) for t in load_file(tmp_path / "state/saves/2/state.safetensors").values())
