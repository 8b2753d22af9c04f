"""Kinds of lm-eval tasks that configs/tasks has none of: their rows and items equal lm-eval's own results.

The tasks are lm-eval's files (winogrande, gsm8k, wikitext) on local rows: choices in the prompt, several filters, text whose
likelihood is taken in windows, and their own scoring.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import simple_evaluate
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from tests.toolkit.generation.tiny import Tiny
from toolkit.evaluation import rows
from toolkit.evaluation.answers import Answers
from toolkit.evaluation.harness import Model, Watch, evaluate
from toolkit.evaluation.names import shipped
from toolkit.evaluation.tasks import Loaded
from toolkit.stage import Resources

DATA: dict[str, list[dict[str, Any]]] = {
    "winogrande": [
        {"sentence": f"{a} met {b} and _ was born in {c}.", "option1": a, "option2": b, "answer": str(1 + i % 2)}
        for i, (a, b, c) in enumerate([("Ada", "Bo", "Paris"), ("Cy", "Dee", "Lima"), ("Eli", "Fay", "Oslo")])
    ],
    "gsm8k": [
        {"question": f"What is {i} and {i + 1}?", "answer": f"It is {i} and {i + 1}.\n#### {2 * i + 1}"}
        for i in range(4)
    ],
    "wikitext": [{"page": "Where was Ada born? In Paris, a town of physics. " * (1 + i)} for i in range(3)],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files that put lm-eval's own on local rows."""
    root = tmp_path_factory.mktemp("tasks")
    for name, data in DATA.items():
        (root / f"{name}.jsonl").write_text("\n".join(map(json.dumps, data)))
        files = {split: str(root / f"{name}.jsonl") for split in ("train", "validation", "test")}
        over = {"include": str(shipped(name)), "task": name, "dataset_path": "json", "dataset_name": None}
        over |= {"dataset_kwargs": {"data_files": files, "cache_dir": str(root / "cache")}, "num_fewshot": 0}
        if name == "gsm8k":
            over["generation_kwargs"] = {"until": ["Question:"], "max_gen_toks": 12, "do_sample": False}
        (root / f"{name}.yaml").write_text(yaml.safe_dump(over))
    return root


@pytest.fixture(scope="module")
def run(
    tiny: Tiny, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Task], dict[str, Any]]:
    """Our results, the tasks, and those of lm-eval's own entry point."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    tasks = manager.load(list(DATA))["tasks"]
    for task in tasks.values():
        task.set_fewshot_seed(seed=1234)
    told: list[tuple[int, int]] = []
    watch = Watch(report=lambda done, total: told.append((done, total)), stop=lambda: False)
    answers = Answers(tmp_path_factory.mktemp("answers"))
    loaded = Loaded(tasks=tasks, groups={})
    ours = evaluate(Model(folder=tiny.model.path), loaded, answers, Resources(micro_batch=4), watch)
    assert told[-1][0] == told[-1][1] and [done for done, _ in told] == sorted({done for done, _ in told})
    arguments = {"pretrained": str(tiny.model.path)}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    theirs = simple_evaluate("hf", arguments, tasks=list(DATA), task_manager=manager, batch_size=4, device="cpu")
    return ours, tasks, theirs


def test_rows_equal_the_results_of_lm_eval(run: tuple[dict[str, Any], dict[str, Task], dict[str, Any]]) -> None:
    ours, tasks, theirs = run
    found = {(r["task"], r["metric"]): r for r in rows.harness_rows(ours, rows.harness_items(ours, tasks))}
    expected = {
        ("winogrande", "acc"): ("acc,none", 3),
        ("gsm8k", "exact_match/strict-match"): ("exact_match,strict-match", 4),
        ("gsm8k", "exact_match/flexible-extract"): ("exact_match,flexible-extract", 4),
        **{("wikitext", m): (f"{m},none", 3) for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")},
    }
    assert found.keys() - {("winogrande", "bits_per_byte")} == expected.keys()
    for (task, metric), (key, n) in expected.items():
        row = found[task, metric]
        assert row["value"] == theirs["results"][task][key] and row["n"] == n
        stderr = theirs["results"][task][key.replace(",", "_stderr,")]
        assert row["stderr"] == (None if stderr == "N/A" else stderr)
    assert found["wikitext", "bits_per_byte"]["stderr"] is None, "lm-eval says N/A"


def test_items_of_choices_in_the_prompt(run: tuple[dict[str, Any], dict[str, Task], dict[str, Any]]) -> None:
    ours, tasks, theirs = run
    items = [item for item in rows.harness_items(ours, tasks) if item["task"] == "winogrande"]
    for doc, item, sample in zip(DATA["winogrande"], items, theirs["samples"]["winogrande"], strict=True):
        gold = int(doc["answer"]) - 1
        likelihoods = [r[0] for r in sample["filtered_resps"]]
        options = [doc["option1"], doc["option2"]]
        assert item["loglikelihoods"] == likelihoods
        assert item["gold"].endswith(f" and {options[gold]}")
        assert item["correct"] == (likelihoods[gold] == max(likelihoods)) == (item["prediction"] == item["gold"])
        tail = " was born" + doc["sentence"].split("was born")[1]
        assert item["bits_per_byte"] == pytest.approx(-likelihoods[gold] / math.log(2) / len(tail))


def test_items_of_several_filters(run: tuple[dict[str, Any], dict[str, Task], dict[str, Any]]) -> None:
    ours, tasks, _ = run
    items = [item for item in rows.harness_items(ours, tasks) if item["task"] == "gsm8k"]
    assert sorted((i["filter"], i["doc_id"]) for i in items) == [
        (kind, doc) for kind in ("flexible-extract", "strict-match") for doc in range(4)
    ]
    assert all(i["gold"].endswith(f"#### {2 * i['doc_id'] + 1}") for i in items)


def test_items_of_text_scored_in_windows(run: tuple[dict[str, Any], dict[str, Task], dict[str, Any]]) -> None:
    ours, tasks, theirs = run
    items = [item for item in rows.harness_items(ours, tasks) if item["task"] == "wikitext"]
    for item, sample in zip(items, theirs["samples"]["wikitext"], strict=True):
        assert item["loglikelihoods"] == [sample["filtered_resps"][0]]
        text = sample["arguments"][0][0]
        assert item["bits_per_byte"] == pytest.approx(-item["loglikelihoods"][0] / math.log(2) / len(text))
        assert item["correct"] is None


def test_both_files_are_written(run: tuple[dict[str, Any], dict[str, Task], dict[str, Any]], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    ours, tasks, _ = run
    items = rows.harness_items(ours, tasks)
    rows.write(tmp_path, rows.harness_rows(ours, items), items)
    table = pq.read_table(tmp_path / "rows.parquet")
    keys = list(zip(table["task"].to_pylist(), table["metric"].to_pylist(), strict=True))
    assert keys == sorted(keys) and len(keys) == 7
    assert pq.read_table(tmp_path / "items.parquet").num_rows == 3 + 8 + 3
