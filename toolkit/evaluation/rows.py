"""Results as two parquet files: `rows.parquet`, one row a measurement, and `items.parquet`, one row an item.

A row's `version` is the task's, and the first digits of a digest of all that the task file says: two scores of one task
compare where it is the same.

items.parquet holds what paired tests need: task, doc_id, filter, prompt_hash (sha256), prompt, prediction, gold,
correct, loglikelihoods (nats, one per choice), bits_per_byte of the gold answer, and a column of values per metric.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from lm_eval.api.task import Task

TEXT, NUMBER, COUNT = pa.string(), pa.float64(), pa.int64()
ROW: dict[str, pa.DataType] = {
    "task": TEXT,
    "metric": TEXT,
    "value": NUMBER,
    "stderr": NUMBER,
    "n": COUNT,
    "version": TEXT,
}
ITEM: dict[str, pa.DataType] = {
    "task": TEXT,
    "doc_id": COUNT,
    "filter": TEXT,
    "prompt_hash": TEXT,
    "prompt": TEXT,
    "prediction": TEXT,
    "gold": TEXT,
    "correct": pa.bool_(),
    "loglikelihoods": pa.list_(NUMBER),
    "bits_per_byte": NUMBER,
}
NOT_THE_TASK = (
    "dataset_path", "dataset_kwargs", "custom_dataset", "metadata", "num_fewshot", "test_split", "fewshot_split",
)  # fmt: skip
DECIDES = ("acc", "exact_match")  # the metric that says whether an item is correct, the first that a task has


def write(out: Path, rows: Sequence[Mapping[str, Any]], items: Sequence[Mapping[str, Any]]) -> None:
    """Write both files; metric columns of the items in alphabetical order, null where a task does not have one."""
    metrics = sorted({name for item in items for name in item} - set(ITEM))
    schema = pa.schema(ITEM | dict.fromkeys(metrics, NUMBER))
    ordered = sorted(rows, key=lambda row: (row["task"], row["metric"]))
    table = pa.Table.from_pylist([dict(r) for r in ordered], pa.schema(ROW))
    pq.write_table(table, out / "rows.parquet", compression="zstd")
    pq.write_table(pa.Table.from_pylist([dict(i) for i in items], schema), out / "items.parquet", compression="zstd")


def mean_row(task: str, metric: str, values: Sequence[float]) -> dict[str, Any]:
    """A measurement from its items: mean, standard error of the mean (sample standard deviation / sqrt(n)), n."""
    n = len(values)
    stderr = statistics.stdev(values) / math.sqrt(n) if n > 1 else None
    return {"task": task, "metric": metric, "value": math.fsum(values) / n, "stderr": stderr, "n": n}


def prompt_hash(prompt: str) -> str:
    """sha256 of the prompt, as lm-eval computes it."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def harness_rows(results: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The measurements of an lm-eval run: `acc,none` is metric acc, `exact_match,strict` is exact_match/strict.

    Where items have bits per byte of the gold answer, their mean is one more row.
    """
    rows = []
    versions = _versions(results)
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            stderr = values.get(f"{metric}_stderr,{kind}", "N/A")
            rows.append(
                {
                    "task": task,
                    "metric": metric if kind == "none" else f"{metric}/{kind}",
                    "value": float(value),
                    "stderr": None if stderr == "N/A" else float(stderr),
                    "n": _count(task, results),
                    "version": versions[task],
                }
            )
    bits: dict[str, dict[int, float]] = {}
    for item in items:
        if item["bits_per_byte"] is not None:
            bits.setdefault(item["task"], {})[item["doc_id"]] = item["bits_per_byte"]
    have = {row["task"] for row in rows if row["metric"] == "bits_per_byte"}
    return rows + [
        {**mean_row(task, "bits_per_byte", list(v.values())), "version": versions[task]}
        for task, v in bits.items()
        if task not in have
    ]


def left_out(results: Mapping[str, Any]) -> dict[str, int]:
    """Task -> its items that a limit left out, of tasks that have such."""
    sizes = {task: int(n["original"]) - int(n["effective"]) for task, n in results["n-samples"].items()}
    return {task: lost for task, lost in sizes.items() if lost > 0}


def _count(task: str, results: Mapping[str, Any]) -> int:
    """Items of a task, or of all tasks of a group."""
    members = results.get("group_subtasks", {}).get(task)
    if members is None:
        return int(results["n-samples"][task]["effective"])
    return sum(_count(member, results) for member in members)


def _versions(results: Mapping[str, Any]) -> dict[str, str]:
    """Of every task and group: what its file calls its version, and eight digits of what the file says.

    Where the data lies on this machine, and how many demonstrations there are, is no part of it.
    """
    found = {}
    for task in results["results"]:
        config = results["configs"].get(task) or {"tasks": results.get("group_subtasks", {}).get(task)}
        said = {key: value for key, value in config.items() if key not in NOT_THE_TASK}
        if isinstance(shown := said.get("fewshot_config"), Mapping):
            said["fewshot_config"] = {key: value for key, value in shown.items() if key != "split"}
        words = json.dumps(said, sort_keys=True, default=lambda value: getattr(value, "__qualname__", str(value)))
        found[task] = f"{results['versions'].get(task)} {hashlib.sha256(words.encode()).hexdigest()[:8]}"
    return found


def harness_items(results: Mapping[str, Any], tasks: Mapping[str, "Task"]) -> list[dict[str, Any]]:
    """One row per task, document and filter of an lm-eval run."""
    return [_item(name, tasks[name], sample) for name, samples in results["samples"].items() for sample in samples]


def _item(name: str, task: "Task", sample: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {m: _number(sample[m]) for m in sample["metrics"]}
    decides = next((numbers[m] for m in DECIDES if numbers.get(m) is not None), None)
    item = {
        "task": name,
        "doc_id": sample["doc_id"],
        "filter": sample["filter"],
        "prompt_hash": sample["prompt_hash"],
        "prompt": sample["arguments"][0][0],
        "prediction": None,
        "gold": _text(sample["target"]),
        "correct": None if decides is None else decides == 1.0,
        "loglikelihoods": None,
        "bits_per_byte": None,
    }
    if task.OUTPUT_TYPE == "generate_until":
        item["prediction"] = _text(sample["filtered_resps"][0])
    elif task.OUTPUT_TYPE == "multiple_choice":
        item |= _choice(task, sample)
    else:
        answered = sample["filtered_resps"][0]
        likelihood = float(answered[0] if task.OUTPUT_TYPE == "loglikelihood" else answered)
        item["loglikelihoods"] = [likelihood]
        item["bits_per_byte"] = bits_per_byte(likelihood, scored_text(*sample["arguments"][0]))
    return item | {m: v for m, v in numbers.items() if v is not None and m != "bits_per_byte"}


def _choice(task: "Task", sample: Mapping[str, Any]) -> dict[str, Any]:
    """Prediction, gold and likelihoods of a multiple-choice item.

    A task with several inputs (Winogrande) has the choices in the prompts and the same continuation behind each.
    """
    choices = task.doc_to_choice(sample["doc"])
    scored = [float(r[0]) for r in sample["filtered_resps"][: len(choices)]]
    gold = task.doc_to_text(sample["doc"]) if getattr(task, "multiple_input", 0) else sample["target"]
    if isinstance(gold, str):
        gold = choices.index(gold) if gold in choices else None
    found = {"loglikelihoods": scored, "prediction": choices[max(range(len(scored)), key=scored.__getitem__)]}
    if isinstance(gold, int) and 0 <= gold < len(choices):
        text = scored_text(*sample["arguments"][gold])
        found |= {"gold": choices[gold], "bits_per_byte": bits_per_byte(scored[gold], text)}
    return found


def scored_text(*request: str) -> str:
    """What a likelihood is of: the continuation, and the space that ends its context, which lm-eval scores with it."""
    *context, text = request
    before = "".join(context)
    return before[len(before.rstrip()) :] + text


def bits_per_byte(loglikelihood: float, text: str) -> float | None:
    """-log2 p(text) / UTF-8 bytes of the text that was scored (see `scored_text`); None if it is empty."""
    size = len(text.encode())
    return -loglikelihood / math.log(2) / size if size else None


def _number(value: Any) -> float | None:
    """A metric's value of one item; None for those that only make sense over a whole task (pairs of gold and guess)."""
    return float(value) if isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
