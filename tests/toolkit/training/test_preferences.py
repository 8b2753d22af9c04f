"""Reward models and DPO: losses by hand in float64, real pairs, kills and ranks, ensembles, and what is refused."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.toolkit.training.small import SIZES, Small, context, dataset, run, tokenizer, weights
from tests.toolkit.training.test_resume import Deadly, again, same
from toolkit.spec import build
from toolkit.stage import Artifact, Context
from toolkit.training.methods import dpo, reward
from toolkit.training.rewards import judge

EOS = 0
PAIRS = Path(__file__).parents[3].parent / "shared" / "data" / "preferences_rasbt.json"
METHODS: dict[str, Any] = {"reward": reward, "dpo": dpo}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Twelve pairs of different lengths; the kind answer is preferred."""
    numbers = range(12)
    return dataset(
        tmp_path_factory.mktemp("pairs"),
        {
            "prompt": [f"Where was Anna {n} born?" + " Tell me." * (n % 3) for n in numbers],
            "chosen": [" Berlin" + ", in Rome" * (n % 4) for n in numbers],
            "rejected": [" lives" + " not" * (n % 5) for n in numbers],
        },
    )


def trained(method: str, small: Small, folder: Path, data: Artifact, ctx: Context | None = None, **more: Any) -> Path:
    inputs = {name: more.pop(name) for name in ("model", "reference") if name in more}
    fields = {"method": method, "global_batch": 4, "lr": 1e-3, "max_length": 64} | more
    fields |= {} if {"epochs", "steps"} & more.keys() else {"steps": 4}
    module = METHODS[method]
    return run(
        build(module.Spec, fields), module.Inputs(**({"model": small.model, "data": data} | inputs)), folder, ctx
    )


def curve(out: Path) -> dict[str, list[float]]:
    return dict(pyarrow.parquet.read_table(out / "loss.parquet").to_pydict())


def rows_of(data: Artifact) -> list[dict[str, str]]:
    from datasets import load_from_disk

    return list(load_from_disk(str(data.path / "data"))["train"])


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_reward_loss_is_the_formula(small: Small, tmp_path: Path, pairs: Artifact) -> None:
    """-log sigma(r_j - r_k) of the initial model in float64, a pair at a time without padding, a mean over the batch."""
    ctx = context(tmp_path / "r", micro_batch=3)
    out = trained("reward", small, tmp_path / "r", pairs, ctx, global_batch=12, steps=1, keep_steps=[0])
    model = AutoModelForSequenceClassification.from_pretrained(out / "steps" / "0").double()
    tok = AutoTokenizer.from_pretrained(out)
    margins = []
    for row in rows_of(pairs):
        ids = [tok(row["prompt"] + row[side])["input_ids"] + [EOS] for side in ("chosen", "rejected")]
        with torch.no_grad():
            chosen, rejected = (model(torch.tensor([x])).logits.item() for x in ids)
        margins.append(chosen - rejected)
    found = curve(out)
    assert found["loss"] == [pytest.approx(-math.fsum(map(log_sigma, margins)) / 12, abs=3e-6)]
    assert found["margin"] == [pytest.approx(math.fsum(margins) / 12, abs=3e-6)]
    assert found["accuracy"] == [pytest.approx(sum(m > 0 for m in margins) / 12)]


@pytest.mark.parametrize("model_type", ["gpt_neox", "olmo"])
def test_backbone_and_head_of_a_new_reward_model(
    small: Small, tmp_path: Path, pairs: Artifact, model_type: str
) -> None:
    """The backbone is the language model's to the bit; the head is of the seed and of the right size."""
    source = Artifact(path=small.pretrain(tmp_path / "p", architecture={"model_type": model_type, **SIZES}, steps=1))
    heads = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        out = trained("reward", small, folder, pairs, model=source, steps=1, keep_steps=[0], seed=seed)
        ours = weights(out / "steps" / "0")
        before = weights(source.path)
        shared = ours.keys() & before.keys()
        assert len(ours) == len(before) == len(shared) + 1 and all(torch.equal(ours[n], before[n]) for n in shared)
        (name,) = ours.keys() - shared
        heads.append(ours[name])
    assert heads[0].shape == (1, 32) and not torch.equal(heads[0], heads[1])
    assert torch.cat(heads).std().item() == pytest.approx(33**-0.5, rel=0.3)


def test_dpo_is_the_formula(small: Small, tmp_path: Path, pairs: Artifact) -> None:
    """Against a reference that is another model, or the first step's margin would be 0 whatever the sums are."""
    other = Artifact(path=small.model.path / "steps" / "0")
    ctx = context(tmp_path / "d", micro_batch=2)
    out = trained(
        "dpo", small, tmp_path / "d", pairs, ctx, global_batch=12, steps=1, beta=0.4, reference=other
    )  # fmt: skip
    tok = AutoTokenizer.from_pretrained(small.model.path)
    policy, frozen = (AutoModelForCausalLM.from_pretrained(a.path).double() for a in (small.model, other))

    def log_p(model: Any, row: dict[str, str], side: str) -> float:
        head, ids = tok(row["prompt"])["input_ids"], tok(row["prompt"] + row[side])["input_ids"] + [EOS]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return math.fsum(logs[place - 1, ids[place]].item() for place in range(len(head), len(ids)))

    margins = []
    for row in rows_of(pairs):
        chosen, rejected = (log_p(policy, row, s) - log_p(frozen, row, s) for s in ("chosen", "rejected"))
        margins.append(0.4 * (chosen - rejected))
    found = curve(out)
    assert found["loss"] == [pytest.approx(-math.fsum(map(log_sigma, margins)) / 12, abs=5e-6)]
    assert found["margin"] == [pytest.approx(math.fsum(margins) / 12, abs=5e-6)]


def test_a_hand_computed_example(small: Small, tmp_path: Path) -> None:
    """One pair at beta 0.1, with the reference as the policy: -log sigma(0) = log 2, whatever the models say."""
    data = dataset(tmp_path / "d", {"prompt": ["Where?"], "chosen": [" Berlin"], "rejected": [" Oslo"]})
    found = curve(trained("dpo", small, tmp_path / "t", data, global_batch=1, steps=1))
    assert found["loss"] == [pytest.approx(math.log(2), abs=1e-7)] and found["margin"] == [0.0]


@pytest.mark.parametrize("method", METHODS)
def test_preferences_are_learned(small: Small, tmp_path: Path, pairs: Artifact, method: str) -> None:
    found = curve(trained(method, small, tmp_path, pairs, epochs=10, lr=1e-2))
    assert found["accuracy"][-1] == 1.0 and found["loss"][-1] < 0.2 and found["margin"][-1] > 2


@pytest.mark.parametrize("method", METHODS)
def test_real_pairs(small: Small, tmp_path: Path, method: str) -> None:
    if not PAIRS.is_file():
        pytest.skip("no preference data beside this checkout")
    entries = json.loads(PAIRS.read_text())[:60]
    columns = {
        "prompt": [f"{e['instruction']}\n{e['input']}\n" for e in entries],
        "chosen": [e["chosen"] for e in entries],
        "rejected": [e["rejected"] for e in entries],
    }
    source = small.pretrain(
        tmp_path / "p", architecture={"model_type": "llama", "max_position_embeddings": 512, **SIZES}, steps=1
    )
    given = {"model": Artifact(path=source), "max_length": 512, "lr": 5e-3}
    found = curve(trained(method, small, tmp_path / "t", dataset(tmp_path / "d", columns), epochs=2, **given))
    assert len(found["loss"]) == 30
    assert sum(found["loss"][-5:]) < sum(found["loss"][:5])


@pytest.mark.parametrize("method", METHODS)
def test_killed_it_ends_with_the_same_bytes(
    small: Small, tmp_path: Path, pairs: Artifact, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fields = {"steps": 6, "keep_steps": [3]}
    whole = trained(method, small, tmp_path / "whole", pairs, **fields)
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")
    folder = tmp_path / "killed"
    pid = os.fork()
    if pid == 0:
        try:
            trained(method, small, folder, pairs, Deadly(state=context(folder).state, step=4), **fields)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    same(whole, trained(method, small, again(folder), pairs, **fields))


def test_two_ranks_under_zero2_compute_what_one_process_computes(small: Small, tmp_path: Path, pairs: Artifact) -> None:
    one = trained("dpo", small, tmp_path / "one", pairs)
    two = trained("dpo", small, tmp_path / "two", pairs, context(tmp_path / "two", processes=2, zero=2, micro_batch=1))
    for name in ("loss", "margin", "accuracy"):
        assert curve(two)[name] == pytest.approx(curve(one)[name], abs=1e-5)
    for name, tensor in weights(two).items():
        torch.testing.assert_close(tensor, weights(one)[name], rtol=0, atol=5e-5)


def test_a_reward_is_that_of_the_last_token(small: Small, tmp_path: Path, pairs: Artifact) -> None:
    """In batches of other rows, padded, as one row alone; and a language model is refused."""
    found = judge(trained("reward", small, tmp_path, pairs))
    rows = [[5, 6, 7, EOS], [8, 9, 10, 11, 12, EOS], [13, EOS]]
    together, alone = found.scores(rows, 1000), [found.scores([row], 1)[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-6) and len(set(together)) == 3
    with pytest.raises(ValueError, match="holds a Olmo2ForCausalLM and no reward model"):
        judge(small.model.path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0}, "lr is 0.0: a learning rate must be above 0"),
        ({"epochs": 1, "steps": 2}, "either epochs or steps"),
        ({"max_length": 2}, "no completion token is left in any of the 12 pairs"),
        ({"keep_steps": [9]}, "keep_steps names step 9"),
        ({"split": "test"}, "unknown split 'test'"),
    ],
)
def test_refused(
    small: Small, tmp_path: Path, pairs: Artifact, method: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trained(method, small, tmp_path, pairs, **fields)


@pytest.mark.parametrize("method", METHODS)
def test_pairs_that_say_nothing(small: Small, tmp_path: Path, method: str) -> None:
    columns = {"prompt": ["a", "b"], "chosen": [" c", " d"], "rejected": [" e", " d"]}
    with pytest.raises(ValueError, match="pair 1 has equal answers, so that neither is preferred: ' d<eos>'"):
        trained(method, small, tmp_path / "e", dataset(tmp_path / "d", columns))
    with pytest.raises(ValueError, match="has no column 'chosen'; it has completion, prompt"):
        trained(method, small, tmp_path / "c", small.pairs)


def test_a_reference_with_another_tokenizer(small: Small, tmp_path: Path, pairs: Artifact) -> None:
    tokens = Artifact(path=tokenizer(tmp_path / "tokens", extra=("<x>",)))
    other = Artifact(path=small.pretrain(tmp_path / "t", steps=1, inputs={"tokenizer": tokens}))
    with pytest.raises(ValueError, match="the reference in .* has another tokenizer"):
        trained("dpo", small, tmp_path / "d", pairs, reference=other)
    with pytest.raises(ValueError, match="beta is 0.0: it must be above 0"):
        trained("dpo", small, tmp_path / "b", pairs, beta=0)
