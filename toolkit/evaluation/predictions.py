"""Score a predictions artifact: each metric over all rows, and over the rows of each task or attribute."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from toolkit.evaluation.rows import mean_row, prompt_hash
from toolkit.evaluation.scores import METRICS
from toolkit.evaluation.tasks import refuse_single_class
from toolkit.generation.rows import PASSED
from toolkit.lookup import unknown

ALL = "all"  # the group of every row


def score(
    path: Path, metrics: Sequence[str], limit: int | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measurements and items of the predictions in folder `path`.

    Raises:
        ValueError: an unknown metric, no predictions in the folder, a row without gold, a single gold for all rows.
    """
    for name in metrics:
        if name not in METRICS:
            raise ValueError(unknown("metric", name, METRICS))
    answers = _read(path)[:limit]
    refuse_single_class(str(path), (row["gold"] for row in answers))
    kind = next((name for name in PASSED if name in answers[0]), None)
    items = [_item(row, str(row[kind]) if kind else ALL, metrics) for row in answers]
    groups: dict[str, list[dict[str, Any]]] = {ALL: items}
    for item in items if kind else ():
        groups.setdefault(item["task"], []).append(item)
    rows = [mean_row(task, m, [item[m] for item in group]) for task, group in groups.items() for m in metrics]
    return rows, items


def _read(path: Path) -> list[dict[str, Any]]:
    file = path / "predictions.parquet"
    if not file.is_file():
        raise ValueError(f"{path} holds no predictions.parquet; give an artifact of the job 'generate'")
    answers: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    bare = [row["id"] for row in answers if row["gold"] is None]
    if bare or not answers:
        raise ValueError(f"{file}: row {bare[0]} has no gold answer" if bare else f"{file} has no rows")
    return answers


def _item(row: dict[str, Any], task: str, metrics: Sequence[str]) -> dict[str, Any]:
    values = {name: METRICS[name](row["prediction"], row["gold"]) for name in metrics}
    return {
        "task": task,
        "doc_id": row["id"],
        "filter": "none",
        "prompt_hash": prompt_hash(row["prompt"]),
        "prompt": row["prompt"],
        "prediction": row["prediction"],
        "gold": row["gold"],
        "correct": values["exact_match"] == 1.0 if "exact_match" in values else None,
        "loglikelihoods": None,
        "bits_per_byte": None,
        **values,
    }
