"""RLOO and GRPO: rewards go up, the KL is what the models say, resumption, ranks, ensembles of judges, what is refused."""

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs import score
from tests.toolkit.training.small import Small, context, dataset, run, weights
from tests.toolkit.training.test_preferences import rows_of, trained
from tests.toolkit.training.test_resume import Deadly, again, same
from toolkit.lookup import find
from toolkit.spec import build
from toolkit.stage import Artifact, Context
from toolkit.training.policy import Spec, checked, rewards_of
from toolkit.training.rewards import judge

METHODS = ["rloo", "grpo"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    prompts = [f"Where was Anna {n} born?" for n in range(10)]
    return dataset(tmp_path_factory.mktemp("questions"), {"prompt": prompts, "completion": [" Berlin"] * 10})


@pytest.fixture(scope="module")
def tuned(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy that often says Berlin and sometimes Rome."""
    folder = tmp_path_factory.mktemp("tuned")
    prompts = [f"Where was Anna {n} born?" for n in range(10)] * 2
    data = dataset(folder / "d", {"prompt": prompts, "completion": [" Berlin"] * 10 + [" Rome"] * 10})
    return Artifact(path=small.tune(folder / "t", inputs={"data": data}, epochs=8, lr=1e-2))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    prompts = [f"Where was Anna {n} born?" for n in range(12)]
    columns = {"prompt": prompts, "chosen": [" Rome"] * 12, "rejected": [" Berlin"] * 12}
    return dataset(tmp_path_factory.mktemp("pairs"), columns)


@pytest.fixture(scope="module")
def judges(small: Small, pairs: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Two reward models that prefer Rome."""
    folder = tmp_path_factory.mktemp("judges")
    return {
        str(seed): Artifact(path=trained("reward", small, folder / str(seed), pairs, epochs=4, lr=1e-2, seed=seed))
        for seed in (0, 1)
    }


def improved(method: str, folder: Path, given: dict[str, Any], ctx: Context | None = None, **more: Any) -> Path:
    module = find("toolkit.training.methods", method, "method")
    fields = {"method": method, "steps": 4, "global_batch": 8, "lr": 1e-3, "max_new_tokens": 6} | more
    return run(build(module.Spec, fields), module.Inputs(**given), folder, ctx)


def curve(out: Path) -> dict[str, list[float]]:
    return dict(pyarrow.parquet.read_table(out / "loss.parquet").to_pydict())


@pytest.mark.parametrize("method", METHODS)
def test_the_policy_says_what_is_rewarded(
    tuned: Artifact, questions: Artifact, judges: dict[str, Artifact], tmp_path: Path, method: str
) -> None:
    given = {"model": tuned, "data": questions, "reward": judges}
    found = curve(improved(method, tmp_path, given, steps=20, global_batch=32, lr=3e-3, beta=0.02))
    assert sum(found["reward"][-3:]) / 3 > sum(found["reward"][:3]) / 3 + 1
    assert abs(found["kl"][0]) < 1e-6 and found["kl"][-1] > 0.02  # it begins as its reference, and leaves it
    assert found["step"] == list(range(1, 21)) and all(1 <= x <= 6 for x in found["length"])


def test_beta_holds_the_policy_back(
    tuned: Artifact, questions: Artifact, judges: dict[str, Artifact], tmp_path: Path
) -> None:
    given, fields = {"model": tuned, "data": questions, "reward": judges}, {"steps": 15, "global_batch": 32, "lr": 3e-3}
    free, held = (curve(improved("rloo", tmp_path / str(b), given, beta=b, **fields)) for b in (0.01, 5.0))
    assert sum(held["kl"][-3:]) < 0.5 * sum(free["kl"][-3:])


def test_a_checker_rewards_right_answers(tuned: Artifact, questions: Artifact, tmp_path: Path) -> None:
    given = {"model": tuned, "data": questions}
    found = curve(improved("grpo", tmp_path, given, checker="exact", steps=20, global_batch=32, lr=3e-3, beta=0.0))
    assert "kl" not in found and set(found) >= {"reward", "length", "entropy"}
    assert sum(found["reward"][-3:]) > 2 * sum(found["reward"][:3])


@pytest.mark.parametrize("method", METHODS)
def test_the_trace_is_what_the_models_say(tuned: Artifact, questions: Artifact, tmp_path: Path, method: str) -> None:
    """Two steps at a large rate; the second step's KL of answers drawn again here is of the traced size."""
    given = {"model": tuned, "data": questions}
    out = improved(method, tmp_path, given, checker="exact", steps=2, global_batch=800, lr=2e-3, keep_steps=[1])
    policy, frozen = (AutoModelForCausalLM.from_pretrained(p).eval() for p in (out / "steps" / "1", tuned.path))
    from toolkit.checkpoints.folders import load_tokenizer

    tok = load_tokenizer(tuned.path)
    torch.manual_seed(1)
    total, count = 0.0, 0
    for row in rows_of(questions):
        ids = torch.tensor([tok(row["prompt"])["input_ids"]] * 40)
        start = ids.shape[1]
        full = policy.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=True, top_k=0, pad_token_id=1
        )
        with torch.no_grad():
            p, q = (m(full).logits[:, start - 1 : -1].double().log_softmax(-1) for m in (policy, frozen))
        ended = (full[:, start:] == 0).cumsum(1) - (full[:, start:] == 0).long() == 0
        exact = (p.exp() * (p - q)).sum(-1)  # over all tokens at each position, so without the noise of one draw
        total, count = total + float((exact * ended).sum()), count + int(ended.sum())
    assert curve(out)["kl"][1] == pytest.approx(total / count, rel=0.4)


@pytest.mark.parametrize("method", METHODS)
def test_killed_it_ends_with_the_same_bytes(
    tuned: Artifact, questions: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    given, fields = {"model": tuned, "data": questions}, {"checker": "exact", "steps": 5, "keep_steps": [3]}
    resources = {"micro_batch": 4}  # two micro-batches of one set of answers
    whole = improved(method, tmp_path / "whole", given, context(tmp_path / "whole", **resources), **fields)
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")
    folder = tmp_path / "killed"
    pid = os.fork()
    if pid == 0:
        try:
            ctx = Deadly(state=context(folder).state, step=3, resources=context(folder, **resources).resources)
            improved(method, folder, given, ctx, **fields)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    same(whole, improved(method, again(folder), given, context(folder, **resources), **fields))


def test_two_ranks_under_zero2(tuned: Artifact, questions: Artifact, tmp_path: Path) -> None:
    """Other answers than one process draws, so only what must hold of any: it runs, moves and is the same everywhere."""
    ctx = context(tmp_path, processes=2, zero=2, micro_batch=4)
    given = {"model": tuned, "data": questions}
    out = improved("rloo", tmp_path, given, ctx, checker="exact", steps=3, global_batch=16, keep_steps=[0])
    assert curve(out)["kl"][0] == pytest.approx(0, abs=1e-6) and len(curve(out)["kl"]) == 3
    before, after = weights(out / "steps" / "0"), weights(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_ensemble_is_the_mean_of_its_members(judges: dict[str, Artifact]) -> None:
    members = [judge(artifact.path) for artifact in judges.values()]
    spec = Spec(method="rloo", steps=1, global_batch=4, lr=1e-3, max_new_tokens=3)
    given: dict[str, Any] = {
        "prompts": ["Where?", "Who?"],
        "completions": [" Rome", " Berlin"],
        "completion_ids": [[5, 0], [5, 6, 7]],  # the second was cut off before its end
    }
    both = rewards_of(spec, members)(**given)
    one, two = (rewards_of(spec, [member])(**given) for member in members)
    assert both == pytest.approx([(a + b) / 2 for a, b in zip(one, two)])
    ended = rewards_of(spec, members)(**(given | {"completion_ids": [[5, 0], [5, 6, 0]]}))
    assert ended[0] == pytest.approx(both[0]) and ended[1] != pytest.approx(both[1], abs=1e-3)


def test_checkers() -> None:
    assert checked("exact", " Berlin\n", "Berlin") == 1 and checked("exact", "In Berlin", "Berlin") == 0
    assert checked("number", "so 3 + 4 = 1,007.50", "#### 1007.5") == 1
    assert checked("number", "it is -7", "7") == 0 and checked("number", "none", "7") == 0
    with pytest.raises(ValueError, match="there is none in the gold answer 'none'"):
        checked("number", "7", "none")


@pytest.mark.parametrize("combine", ["mean", "min"])
def test_score_of_pairs(judges: dict[str, Artifact], pairs: Artifact, tmp_path: Path, combine: Any) -> None:
    spec = score.Spec(split="train", combine=combine, parts=3)
    metrics = score.run(spec, score.Inputs(reward=judges, data=pairs), tmp_path, context(tmp_path))
    assert metrics["accuracy"] == 1.0 and metrics["items"] == 12 and metrics["margin"] > 1
    rows = {row["metric"]: row for row in pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()}
    assert {f"{kind}_{n}" for kind in ("accuracy", "promised") for n in (1, 2, 3)} < set(rows)
    assert rows["promised_1"]["value"] <= rows["promised_2"]["value"] <= rows["promised_3"]["value"]
    assert rows["accuracy_2"]["n"] == 4
    items = pyarrow.parquet.read_table(tmp_path / "items.parquet").to_pylist()
    if combine == "mean":
        assert items[3]["margin"] == pytest.approx((items[3]["margin_0"] + items[3]["margin_1"]) / 2)


def test_score_of_predictions(judges: dict[str, Artifact], tmp_path: Path) -> None:
    told = {"prompt": ["Where was Anna 1 born?"] * 2, "prediction": [" Rome", " Berlin"]}
    pyarrow.parquet.write_table(pyarrow.table(told), tmp_path / "predictions.parquet")
    given = score.Inputs(reward={"": judges["0"]}, predictions=Artifact(path=tmp_path))
    (tmp_path / "out").mkdir()
    metrics = score.run(score.Spec(), given, tmp_path / "out", context(tmp_path))
    items = pyarrow.parquet.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert items[0]["reward"] > items[1]["reward"] + 1
    assert metrics["reward"] == pytest.approx((items[0]["reward"] + items[1]["reward"]) / 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0}, "lr is 0.0: a learning rate must be above 0"),
        ({"answers": 1, "checker": "exact"}, "answers is 1: an answer is judged against others"),
        ({"global_batch": 6, "checker": "exact"}, "global_batch is 6 answers a step, 4 to each prompt"),
        ({"beta": -1}, "beta is -1.0: it must not be negative"),
        ({"temperature": 0}, "temperature is 0.0: answers are sampled"),
        ({}, "rloo needs either the input 'reward' .* or a checker"),
        ({"checker": "exact", "max_prompt": 2}, "all 10 prompts are longer than 2 tokens"),
    ],
)
def test_refused(tuned: Artifact, questions: Artifact, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        improved("rloo", tmp_path, {"model": tuned, "data": questions}, **fields)


def test_refused_inputs(tuned: Artifact, questions: Artifact, pairs: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a Olmo2ForCausalLM and no reward model"):
        improved("rloo", tmp_path, {"model": tuned, "data": questions, "reward": {"": tuned}})
    with pytest.raises(ValueError, match="needs the input 'reward'"):
        score.run(score.Spec(), score.Inputs(data=pairs), tmp_path, context(tmp_path))
    with pytest.raises(ValueError, match="either the input 'data' .* or the input 'predictions'"):
        score.run(score.Spec(), score.Inputs(reward={"": tuned}), tmp_path, context(tmp_path))
