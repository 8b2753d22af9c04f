"""The job `evaluate`: numbers equal lm-eval's own and direct computation; what is refused."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from jobs import evaluate
from jobs.evaluate import Inputs, Spec
from tests.toolkit.generation.tiny import Tiny, context, save
from tests.toolkit.generation.tiny import tiny as build
from toolkit.data.splits import open_split
from toolkit.stage import Artifact, Interrupted, gather

LOCAL = ("bios_qa", "bios_qa_cloze", "instructions", "instructions_likelihood")
ROWS = ["task", "metric", "value", "stderr", "n", "version"]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return build()


def go(
    folder: Path, inputs: dict[str, Artifact], micro_batch: int = 8, processes: int = 1, **fields: Any
) -> dict[str, Any]:
    out = folder / "out"
    out.mkdir(parents=True)
    ctx = context(folder / "state", micro_batch=micro_batch, processes=processes)
    return evaluate.run(Spec(**fields), gather(Inputs, inputs), out, ctx)


def rows(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    table = pq.read_table(folder / "out" / "rows.parquet")
    assert table.column_names == ROWS
    return {(row["task"], row["metric"]): row for row in table.to_pylist()}


def items(folder: Path, task: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(folder / "out" / "items.parquet").to_pylist() if row["task"] == task]


@pytest.mark.parametrize("shots, chat", [(0, False), (2, False), (2, True)])
def test_numbers_equal_lm_evals_own(tiny: Tiny, tmp_path: Path, shots: int, chat: bool) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    inputs = {"model": tiny.model, "data": tiny.people}
    go(tmp_path, inputs, tasks=LOCAL, shots=shots, apply_chat_template=chat)
    reference = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny.model.path)},
        tasks=list(LOCAL),
        task_manager=TaskManager(include_path=str(tmp_path / "state" / "tasks"), include_defaults=False),
        num_fewshot=shots,
        batch_size=8,
        device="cpu",
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    ours, compared = rows(tmp_path), 0
    for task, values in reference["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                assert ours[task, metric]["value"] == value
                assert ours[task, metric]["stderr"] == values[f"{metric}_stderr,{kind}"]
                assert ours[task, metric]["n"] == 12
                compared += 1
    assert compared == 5
    for task, samples in reference["samples"].items():
        for item, sample in zip(items(tmp_path, task), samples, strict=True):
            assert (item["doc_id"], item["prompt_hash"]) == (sample["doc_id"], sample["prompt_hash"])
            if item["loglikelihoods"]:
                assert item["loglikelihoods"] == [r[0] for r in sample["filtered_resps"]]
            else:
                assert item["prediction"] == sample["filtered_resps"][0]


def test_two_runs_give_the_same_bytes(tiny: Tiny, tmp_path: Path) -> None:
    inputs = {"model": tiny.model, "data": tiny.people}
    first, again = (go(tmp_path / name, inputs, tasks=LOCAL, shots=1) for name in "ab")
    assert first == again
    for name in ("rows.parquet", "items.parquet"):
        assert (tmp_path / "a" / "out" / name).read_bytes() == (tmp_path / "b" / "out" / name).read_bytes()
    go(tmp_path / "c", inputs, tasks=LOCAL, shots=1, seed=7)
    assert items(tmp_path / "a", "bios_qa") != items(tmp_path / "c", "bios_qa"), "another seed, other demonstrations"


def test_a_version_is_the_tasks_whatever_the_shots_and_the_folder(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.people.path, tmp_path / "people")
    moved = Artifact(path=tmp_path / "people")
    go(tmp_path / "a", {"model": tiny.model, "data": tiny.people}, tasks=LOCAL, limit=2)
    go(tmp_path / "b", {"model": tiny.model, "data.bios_qa": moved, "data": tiny.people}, tasks=LOCAL, limit=2, shots=2)
    first, second = rows(tmp_path / "a"), rows(tmp_path / "b")
    assert {key: row["version"] for key, row in first.items()} == {key: row["version"] for key, row in second.items()}
    assert len({row["version"] for row in first.values()}) == len(LOCAL), "and no two tasks have the same"


def test_the_batch_size_moves_nothing_but_rounding(tiny: Tiny, tmp_path: Path) -> None:
    inputs = {"model": tiny.model, "data": tiny.people}
    for size in (1, 8):
        go(tmp_path / str(size), inputs, tasks=LOCAL, micro_batch=size)
    one, eight = rows(tmp_path / "1"), rows(tmp_path / "8")
    assert one.keys() == eight.keys()
    for key, row in one.items():
        assert row["value"] == pytest.approx(eight[key]["value"], rel=1e-5 if key[1] == "bits_per_byte" else 0)


class Reference:
    """Likelihoods by one forward pass a text, without lm-eval."""

    def __init__(self, tiny: Tiny) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(tiny.model.path)
        self.tokenizer = AutoTokenizer.from_pretrained(tiny.model.path)

    def bits(self, prompt: str, answer: str) -> float:
        first = len(self.tokenizer(prompt)["input_ids"])
        whole = self.tokenizer(prompt + answer)["input_ids"]
        with torch.no_grad():
            logp = torch.log_softmax(self.model(torch.tensor([whole])).logits[0].double(), -1)
        return -sum(logp[i - 1, whole[i]].item() for i in range(first, len(whole))) / math.log(2)


def test_bits_per_byte_is_the_models_cross_entropy_of_the_gold(tiny: Tiny, tmp_path: Path) -> None:
    go(tmp_path, {"model": tiny.model, "data": tiny.people}, tasks=("instructions_likelihood", "bios_qa_cloze"))
    reference, found = Reference(tiny), []
    for item in items(tmp_path, "instructions_likelihood"):
        found.append(reference.bits(item["prompt"], item["gold"]) / len(item["gold"].encode()))
        assert item["bits_per_byte"] == pytest.approx(found[-1], rel=1e-5)
        assert item["prediction"] is None
    row = rows(tmp_path)["instructions_likelihood", "bits_per_byte"]
    assert row["value"] == pytest.approx(sum(found) / len(found), rel=1e-5)
    assert row["stderr"] == pytest.approx(stats.sem(found), rel=1e-5)
    cloze = items(tmp_path, "bios_qa_cloze")
    assert [i["bits_per_byte"] for i in cloze] == pytest.approx(found, rel=1e-5)
    for item in cloze:
        assert item["correct"] == (item["prediction"] == item["gold"])


def test_space_that_ends_a_prompt_is_scored_and_counted_with_the_answer(tiny: Tiny, tmp_path: Path) -> None:
    data = [{"prompt": f"Where was {n} born?\n\n", "completion": c} for n, c in [("Bo", "Lima"), ("Cy", "Oslo")]]
    inputs = {"model": tiny.model, "data": save(tmp_path / "data", heldout=data)}
    go(tmp_path, inputs, tasks=("instructions_likelihood",))
    reference = Reference(tiny)
    for row, item in zip(data, items(tmp_path, "instructions_likelihood"), strict=True):
        bits = reference.bits(row["prompt"].rstrip(), "\n\n" + row["completion"])
        assert item["bits_per_byte"] == pytest.approx(bits / len("\n\nLima"), rel=1e-5)


def test_real_piqa_against_likelihoods_without_lm_eval(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "../shared/data"
    if (folder / "piqa_valid.jsonl").exists():
        given = [json.loads(line) for line in (folder / "piqa_valid.jsonl").read_text().splitlines()]
        labels = [int(line) for line in (folder / "piqa_valid_labels.lst").read_text().split()]
    else:
        given = [{"goal": f"Count to {i}?", "sol1": "One" + " and one" * i, "sol2": f"Say {i}."} for i in range(40)]
        labels = [i % 3 % 2 for i in range(40)]
    chosen = [
        {"prompt": f"Question: {g['goal']}\nAnswer:", "choices": [g["sol1"], g["sol2"]], "gold_index": label}
        for g, label in zip(given, labels, strict=True)
        if len(g["goal"] + g["sol1"]) < 70 and len(g["goal"] + g["sol2"]) < 70
    ][:20]
    inputs = {"model": tiny.model, "data": save(tmp_path / "data", heldout=chosen)}
    go(tmp_path, inputs, tasks=("piqa",))
    reference, right, right_norm = Reference(tiny), [], []
    for row, item in zip(chosen, items(tmp_path, "piqa"), strict=True):
        nats = [-reference.bits(row["prompt"], f" {choice}") * math.log(2) for choice in row["choices"]]
        assert item["loglikelihoods"] == pytest.approx(nats, rel=1e-5)
        right.append(nats.index(max(nats)) == row["gold_index"])
        by_length = [value / len(choice) for value, choice in zip(nats, row["choices"], strict=True)]
        right_norm.append(by_length.index(max(by_length)) == row["gold_index"])
    assert rows(tmp_path)["piqa", "acc"]["value"] == sum(right) / 20
    assert rows(tmp_path)["piqa", "acc_norm"]["value"] == sum(right_norm) / 20


def test_piqa_from_a_local_data_set(tiny: Tiny, tmp_path: Path) -> None:
    metrics = go(tmp_path, {"model": tiny.model, "data": tiny.choices}, tasks=("piqa",), shots=1)
    found = rows(tmp_path)["piqa", "acc"]
    right = [item["correct"] for item in items(tmp_path, "piqa")]
    assert found["n"] == 8 and found["value"] == sum(right) / 8 == metrics["piqa/acc"]
    assert found["stderr"] == pytest.approx(stats.sem([float(r) for r in right]))
    assert items(tmp_path, "piqa")[0]["gold"] in ("Paris", "Lima", "Oslo", "Cairo", "Quito", "Delhi", "Art", "Music")


def test_limit_and_progress(tiny: Tiny, tmp_path: Path) -> None:
    told = go(tmp_path, {"model": tiny.model, "data": tiny.people}, tasks=("bios_qa", "bios_qa_cloze"), limit=3)
    assert {row["n"] for row in rows(tmp_path).values()} == {3}
    assert (
        told["bios_qa/left_out"] == told["bios_qa_cloze/left_out"] == len(open_split(tiny.people.path, "heldout")) - 3
    )
    assert '"unit": "request"' in (tmp_path / "state" / "progress.json").read_text()


def test_prompts_that_lose_tokens_are_counted(tiny: Tiny, tmp_path: Path) -> None:
    inputs = {"model": tiny.model, "data": tiny.people}
    whole = go(tmp_path / "a", inputs, tasks=("bios_qa", "bios_qa_cloze"), shots=1)
    cut = go(tmp_path / "b", inputs, tasks=("bios_qa", "bios_qa_cloze"), shots=4, max_length=40)
    assert whole["truncated_requests"] == 0
    assert cut["truncated_requests"] > 12
    assert cut["truncated_requests"] == cut["bios_qa/truncated_requests"] + cut["bios_qa_cloze/truncated_requests"]


def test_a_stop_request_interrupts(tiny: Tiny, tmp_path: Path) -> None:
    ctx = context(tmp_path / "state")
    ctx.stop_requested = True
    with pytest.raises(Interrupted):
        evaluate.run(Spec(tasks=("bios_qa",)), Inputs(model=tiny.model, data={"": tiny.people}), tmp_path, ctx)


def predictions(folder: Path, **columns: list[Any]) -> Artifact:
    folder.mkdir(parents=True)
    n = len(columns["gold"])
    table = {"id": list(range(n)), "prompt": [f"q{i}" for i in range(n)], **columns}
    pq.write_table(pa.table(table), folder / "predictions.parquet")
    return Artifact(path=folder)


def test_predictions_are_scored_over_all_and_by_attribute(tmp_path: Path) -> None:
    said, gold = ["Paris.", "in Lima", "x", "Law"], ["paris", "Lima", "Music", "Law"]
    given = predictions(tmp_path / "p", prediction=said, gold=gold, attribute=["city", "city", "field", "field"])
    go(tmp_path, {"predictions": given}, metrics=("exact_match", "f1", "rouge_l"))
    found = rows(tmp_path)
    assert {task for task, _ in found} == {"all", "city", "field"}
    assert found["all", "exact_match"]["value"] == 0.5 and found["all", "exact_match"]["n"] == 4
    assert found["all", "exact_match"]["stderr"] == pytest.approx(stats.sem([1, 0, 0, 1]))
    assert found["city", "f1"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["field", "rouge_l"]["stderr"] == pytest.approx(stats.sem([0, 1]))
    item = items(tmp_path, "city")[0]
    assert (item["doc_id"], item["prediction"], item["gold"], item["correct"]) == (0, "Paris.", "paris", True)


def test_one_row_has_no_standard_error(tmp_path: Path) -> None:
    given = predictions(tmp_path / "p", prediction=["a", "b"], gold=["a", "c"])
    go(tmp_path, {"predictions": given}, metrics=("f1",), limit=1)
    row = {"task": "all", "metric": "f1", "value": 1.0, "stderr": None, "n": 1, "version": None}
    assert rows(tmp_path)["all", "f1"] == row


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"metrics": ("rouge",)}, "unknown metric 'rouge'; did you mean 'rouge_l'"),
        ({}, "scoring predictions needs 'metrics'"),
        ({"metrics": ("f1",), "tasks": ("piqa",)}, "'tasks' means nothing for predictions"),
        ({"metrics": ("f1",), "shots": 2}, "'shots' means nothing for predictions"),
    ],
)
def test_fields_that_do_not_fit_predictions(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    given = predictions(tmp_path / "p", prediction=["a", "b"], gold=["a", "c"])
    with pytest.raises(ValueError, match=said):
        go(tmp_path, {"predictions": given}, **fields)


def test_inputs_that_do_not_go_together(tiny: Tiny, tmp_path: Path) -> None:
    given = predictions(tmp_path / "p", prediction=["a", "b"], gold=["a", "c"])
    with pytest.raises(ValueError, match="either the input 'model' or the input 'predictions'"):
        go(tmp_path / "a", {}, tasks=("piqa",))
    with pytest.raises(ValueError, match="either the input 'model' or the input 'predictions'"):
        go(tmp_path / "b", {"model": tiny.model, "predictions": given}, tasks=("piqa",))
    with pytest.raises(ValueError, match="needs 'tasks' and no 'metrics'"):
        go(tmp_path / "c", {"model": tiny.model}, metrics=("f1",))
    with pytest.raises(ValueError, match="'split' and 'shots_split' choose among the splits of the input 'data'"):
        go(tmp_path / "e", {"model": tiny.model}, tasks=("sciq",), split="train")
    with pytest.raises(ValueError, match="holds no predictions.parquet"):
        go(tmp_path / "d", {"predictions": tiny.people}, metrics=("f1",))


def test_predictions_that_cannot_be_scored(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all 3 rows of .* have the same gold answer 'x'"):
        given = predictions(tmp_path / "p", prediction=["a", "b", "c"], gold=["x", "x", "x"])
        go(tmp_path / "a", {"predictions": given}, metrics=("f1",))
    with pytest.raises(ValueError, match="row 1 has no gold answer"):
        go(
            tmp_path / "b",
            {"predictions": predictions(tmp_path / "q", prediction=["a", "b"], gold=["x", None])},
            metrics=("f1",),
        )


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"shots": -1}, "'shots' must be at least 0"),
        ({"limit": 0}, "'limit' must be at least 1"),
        ({"max_length": 1}, "'max_length' must be at least 2"),
        ({"tasks": ("piqa", "sciq", "piqa")}, "'tasks' names 'piqa' twice"),
    ],
)
def test_values_that_are_wrong_in_themselves(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Spec(**fields)


def test_what_generate_writes_is_what_evaluate_reads(tiny: Tiny, tmp_path: Path) -> None:
    from jobs import generate
    from toolkit.generation.recipes import predict

    (tmp_path / "answers").mkdir()
    spec = predict.Spec(recipe="predict", split="heldout", max_new_tokens=8)
    inputs = predict.Inputs(model=tiny.model, data=tiny.people)
    generate.run(spec, inputs, tmp_path / "answers", context(tmp_path / "state"))
    given = Artifact(path=tmp_path / "answers")
    go(tmp_path / "scores", {"predictions": given}, metrics=("exact_match",))
    go(tmp_path / "tasks", {"model": tiny.model, "data": tiny.people}, tasks=("bios_qa",))
    scored, asked = rows(tmp_path / "scores")["all", "exact_match"], rows(tmp_path / "tasks")["bios_qa", "exact_match"]
    assert 0 < scored["value"] < 1 and scored == asked | {"task": "all", "version": None}


def test_planning_imports_nothing_heavy() -> None:
    heavy = "torch transformers datasets pandas pyarrow numpy lm_eval"
    code = f"import sys, jobs.evaluate; sys.exit([m for m in '{heavy}'.split() if m in sys.modules] or None)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
