"""Adapters as inputs of a merge: the same weights as when they are merged into their base first; the rest is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from jobs import merge, train
from tests.toolkit.training.small import Small, context, weights
from toolkit import lookup
from toolkit.checkpoints.forms.adapter import restore
from toolkit.merging.methods.delta import Inputs, Spec
from toolkit.spec import build
from toolkit.stage import Artifact


def adapt(small: Small, folder: Path, **fields: Any) -> Path:
    method = lookup.find(train.CHOICE.package, fields["method"], "method")
    usual = {"global_batch": 4, "lr": 1e-2, "max_length": 64, "steps": 3}
    (folder / "out").mkdir(parents=True)
    inputs = method.Inputs(model=small.model, data=small.pairs)
    train.run(build(method.Spec, usual | fields), inputs, folder / "out", context(folder))
    return folder / "out"


def merged(small: Small, trained: Path, instruct: Path, folder: Path) -> Path:
    (folder / "out").mkdir(parents=True)
    inputs = Inputs(trained=Artifact(path=trained), base=small.model, instruct=Artifact(path=instruct))
    merge.run(Spec(method="delta", scale=0.5), inputs, folder / "out", context(folder))
    return folder / "out"


@pytest.mark.parametrize(("method", "words"), [("lora", {"rank": 4}), ("ia3", {})])
def test_an_adapter_merges_as_the_model_that_it_makes(
    small: Small, tmp_path: Path, method: str, words: dict[str, Any]
) -> None:
    adapter = adapt(small, tmp_path / "adapter", method=method, **words)
    assert not (adapter / "model.safetensors").exists()
    instruct = small.tune(tmp_path / "instruct", steps=3, lr=1e-2)
    (tmp_path / "first").mkdir()
    restore(adapter, small.model.path, tmp_path / "first")
    found = weights(merged(small, adapter, instruct, tmp_path / "a"))
    again = weights(merged(small, tmp_path / "first", instruct, tmp_path / "b"))
    base = AutoModelForCausalLM.from_pretrained(small.model.path)
    peft = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    start, tuned = weights(small.model.path), weights(instruct)
    assert any(not torch.equal(peft[name], tensor) for name, tensor in start.items())
    for name, tensor in found.items():
        assert torch.equal(tensor, again[name])
        expected = peft[name] + 0.5 * (tuned[name] - start[name])
        torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("method", "words"),
    [("prompt_tuning", {"tokens": 4}), ("bottleneck", {"size": 4})],
)
def test_one_that_becomes_no_weights_is_refused(
    small: Small, tmp_path: Path, method: str, words: dict[str, Any]
) -> None:
    adapter = adapt(small, tmp_path / "adapter", method=method, **words)
    with pytest.raises(
        ValueError, match=f"adapter-out-whole is a model with an adapter that is no part.*{method}.*merged"
    ):
        merged(small, adapter, small.model.path, tmp_path / "a")
    assert not any((tmp_path / "a" / "out").iterdir())
