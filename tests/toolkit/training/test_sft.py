"""Fine-tuning: the loss is that of completions, as torch computes it by hand; packing keeps rows apart; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toolkit.training.small import SIZES, Small, context, dataset, losses, run, tokenizer, weights
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.spec import build
from toolkit.stage import Artifact
from toolkit.training.methods.sft import Spec
from toolkit.training.turns import tokenise

EOS = 0


def by_hand(model: Any, tok: Any, prompts: list[str], completions: list[str]) -> float:
    """Mean cross-entropy of all completion tokens and the end token, one row at a time, no padding."""
    total, count = torch.zeros(()), 0
    for prompt, completion in zip(prompts, completions, strict=True):
        head = tok(prompt)["input_ids"]
        ids = tok(prompt + completion)["input_ids"] + [EOS]
        assert ids[: len(head)] == head
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        targets = torch.tensor(ids[len(head) :])
        total += torch.nn.functional.cross_entropy(logits[len(head) - 1 : -1], targets, reduction="sum")
        count += len(targets)
    return (total / count).item()


@pytest.mark.parametrize("model_type", ["olmo2", "gemma2"])  # gemma2 caps its logits, which a fused head must do too
@pytest.mark.parametrize("packing", [False, True])
def test_loss_on_completions_only(small: Small, tmp_path: Path, model_type: str, packing: bool) -> None:
    source = small.pretrain(tmp_path / "p", architecture={"model_type": model_type, **SIZES}, lr=1e-2)
    rows = load_from_disk(str(small.pairs.path / "data"))["train"]
    model, tok = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    expected = by_hand(model, tok, rows["prompt"], rows["completion"])
    given = {"model": Artifact(path=source)}
    if packing:  # one step over all packed rows; documents must not see each other
        _, counts = tokenise(rows, tok, "plain", 64, context(tmp_path / "count").state)
        batch = packed_rows(small, tmp_path / "n", tok)
        out = small.tune(tmp_path / "t", inputs=given, packing=True, global_batch=batch, steps=1)
        assert counts["targets"] > 60
    else:
        out = small.tune(tmp_path / "t", inputs=given, global_batch=20, steps=1)
    assert losses(out)[0] == pytest.approx(expected, abs=3e-6)


def packed_rows(small: Small, folder: Path, tok: Any) -> int:
    from toolkit.training.methods.sft import _pack

    rows = load_from_disk(str(small.pairs.path / "data"))["train"]
    return len(_pack(tokenise(rows, tok, "plain", 64, context(folder).state)[0], 64))


@pytest.mark.parametrize("micro", [1, 5])
def test_micro_batch_changes_nothing_but_rounding(small: Small, tmp_path: Path, micro: int) -> None:
    whole = small.tune(tmp_path / "a", global_batch=20, lr=1e-2, ctx=context(tmp_path / "a", micro_batch=20))
    cut = small.tune(tmp_path / "b", global_batch=20, lr=1e-2, ctx=context(tmp_path / "b", micro_batch=micro))
    assert losses(cut) == pytest.approx(losses(whole), abs=5e-6)
    for name, tensor in weights(cut).items():
        torch.testing.assert_close(tensor, weights(whole)[name], rtol=0, atol=5e-5)


def test_it_learns_and_stops(small: Small, tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", {"prompt": ["Where was Anna born?"] * 8, "completion": [" Berlin"] * 8})
    out = small.tune(tmp_path / "t", inputs={"data": data}, epochs=20, lr=3e-2)
    model, tok = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    prompt = tok("Where was Anna born?", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tok.decode(ids) == " Berlin<eos>"


def test_everything_but_weights_is_the_models(small: Small, tmp_path: Path) -> None:
    out = small.tune(tmp_path, steps=1)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
    ):
        assert (out / name).read_bytes() == (small.model.path / name).read_bytes(), name


def test_epochs_are_rounded_up_to_full_batches(small: Small, tmp_path: Path) -> None:
    assert len(losses(small.tune(tmp_path / "a", epochs=1.5, global_batch=8))) == 4  # 30 rows


def test_chat_turns(small: Small, tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": ["Where was Anna born?"], "completion": [" Berlin"]})
    tok = load_tokenizer(small.model.path)
    rows, _ = tokenise(data, tok, "chat", 64, context(tmp_path).state)
    ids, labels = rows[0]["input_ids"], rows[0]["labels"]
    assert tok.decode(ids) == "<|user|>Where was Anna born?<|assistant|> Berlin<eos>"
    assert tok.decode([i for i in labels if i != -100]) == " Berlin<eos>"
    assert len(losses(small.tune(tmp_path / "t", template="chat", steps=2))) == 2


def test_cut_rows_are_counted_and_rows_without_a_target_dropped(small: Small, tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": ["a", "a" * 40, "b"], "completion": ["b" * 40, "c", ""]})
    rows, counts = tokenise(data, load_tokenizer(small.model.path), "plain", 10, context(tmp_path).state)
    assert counts == {"rows": 1, "truncated": 2, "dropped": 2, "longest": 10, "targets": 9}
    assert rows[0]["labels"][0] == -100 and len(rows) == 1


def test_no_target_left(small: Small, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="no completion token is left in any of the 20 rows after cutting to max_length 3"
    ):
        small.tune(tmp_path, max_length=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0}, "lr is 0.0: a learning rate must be above 0"),
        ({"epochs": 1, "steps": 2}, "either epochs or steps"),
        ({"steps": None}, "either epochs or steps"),
        ({"warmup_ratio": 2}, "warmup_ratio is 2.0"),
        ({"template": "chatml"}, "unknown value of 'template' 'chatml'"),
        ({"split": "heldout"}, "unknown split 'heldout'"),
        ({"keep_steps": [7]}, r"keep_steps names step 7, but this run has steps 0 \(initialisation\) to 4"),
    ],
)
def test_refused(small: Small, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.tune(tmp_path, **fields)


def test_refused_inputs(small: Small, tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})
    plain = load_tokenizer(tokenizer(tmp_path / "t"))
    with pytest.raises(ValueError, match="the tokenizer has no chat template: use plain"):
        tokenise(data, plain, "chat", 10, context(tmp_path).state)
    plain.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        tokenise(data, plain, "plain", 10, context(tmp_path).state)
    numbers = Dataset.from_dict({"prompt": [1], "completion": ["b"]})
    with pytest.raises(ValueError, match="column 'prompt' must hold text; it holds 1"):
        tokenise(numbers, load_tokenizer(small.model.path), "plain", 10, context(tmp_path / "n").state)
    with pytest.raises(ValueError, match="has no column 'prompt'; it has input_ids"):
        small.tune(tmp_path / "x", inputs={"data": small.packed})


def test_spec_of_a_study_file_runs(small: Small, tmp_path: Path) -> None:
    from toolkit.training.methods.sft import Inputs

    spec = build(Spec, {"method": "sft", "epochs": "1", "global_batch": "10", "lr": "1e-4", "precision": "bf16"})
    out = run(spec, Inputs(model=small.model, data=small.pairs), tmp_path, None)
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
