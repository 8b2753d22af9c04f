"""Measure a model with lm-eval tasks, or predictions with text metrics; the rows are what `tidemark table` shows.

A stage has the input `model` (with `tasks`, and `data` for those of configs/tasks) or `predictions` (with `metrics`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoints.whole import whole_inputs
from toolkit.generation.models import Precision
from toolkit.spec import defaults
from toolkit.stage import Artifact, Context, Interrupted

VERSION = 1
WARM = (
    "torch",
    "transformers",
    "datasets",
    "pyarrow.parquet",
    "lm_eval.evaluator",
    "lm_eval.models.huggingface",
    "rouge_score.rouge_scorer",
)
EITHER = {"limit"}  # fields that mean something for a model and for predictions


@dataclass(frozen=True, kw_only=True)
class Spec:
    """tasks: lm-eval names, those of configs/tasks or built-in ones. shots: demonstrations, drawn by `seed`.

    metrics: of predictions: exact_match, f1, rouge_l. limit: the first rows of each task only. max_length: tokens of
    context, the model's own if None. split, shots_split: for tasks on `data`, instead of those the task file names.
    precision: "auto" takes the type that the weights are stored in, as lm-eval does.
    """

    tasks: tuple[str, ...] = ()
    shots: int = 0
    metrics: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 1234
    max_length: int | None = None
    apply_chat_template: bool = False
    split: str | None = None
    shots_split: str | None = None
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("limit", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name!r} must be at least {least}, not {value}")
        for name in ("tasks", "metrics"):
            twice = [v for i, v in enumerate(getattr(self, name)) if v in getattr(self, name)[:i]]
            if twice:
                raise ValueError(f"{name!r} names {twice[0]!r} twice")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: an HF folder. data: rows for the tasks of configs/tasks, or the download of a built-in task's data set.

    predictions: an artifact of `generate`.
    """

    model: Artifact | None = None
    data: Artifact | None = None
    predictions: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with rows.parquet and items.parquet.

    Raises:
        ValueError: inputs that do not go together, fields that mean nothing for them, and what tasks or metrics refuse.
    """
    inputs = whole_inputs(inputs, ctx.state)
    if (inputs.model is None) == (inputs.predictions is None):
        raise ValueError("evaluate needs either the input 'model' or the input 'predictions', and not both")
    if inputs.model is not None:
        if not spec.tasks or spec.metrics:
            raise ValueError("evaluating a model needs 'tasks' and no 'metrics': a task brings its own")
        if inputs.data is None and (spec.split or spec.shots_split):
            raise ValueError(
                "'split' and 'shots_split' choose among the splits of the input 'data', which is not there"
            )
        return _model(spec, inputs.model, inputs.data, out, ctx)
    assert inputs.predictions is not None
    unset = defaults(Spec)
    idle = [name for name in unset if name not in {*EITHER, "metrics"} and getattr(spec, name) != unset[name]]
    if not spec.metrics or idle or inputs.data is not None:
        wrong = f"; {idle[0]!r} means nothing for predictions" if idle else ""
        raise ValueError(f"scoring predictions needs 'metrics' and takes no 'tasks' and no input 'data'{wrong}")
    return _predictions(spec, inputs.predictions, out)


def _predictions(spec: Spec, predictions: Artifact, out: Path) -> dict[str, Any]:
    from toolkit.evaluation.predictions import ALL, score
    from toolkit.evaluation.rows import write

    rows, items = score(predictions.path, spec.metrics, spec.limit)
    write(out, rows, items)
    return {"items": len(items), **{row["metric"]: row["value"] for row in rows if row["task"] == ALL}}


def _model(spec: Spec, model: Artifact, data: Artifact | None, out: Path, ctx: Context) -> dict[str, Any]:
    from toolkit.evaluation import rows
    from toolkit.evaluation.harness import evaluate
    from toolkit.evaluation.tasks import Source, load
    from toolkit.generation import models

    # Tasks first: a wrong name or missing data should not wait for the weights.
    repo = data.record.get("spec", {}).get("repo") if data else None  # of a download
    source = Source(data=data.path if data else None, repo=repo, split=spec.split, shots_split=spec.shots_split)
    tasks = load(spec.tasks, source, spec.shots, spec.seed, ctx.state / "tasks")
    weights, tokenizer = models.load(model.path, spec.precision, ctx.resources.threads)
    longest = spec.max_length or models.context_length(weights) or 2048
    batch = max(1, (ctx.resources.micro_batch or ctx.resources.batch_tokens // longest) >> ctx.resources.halvings)
    batch = 1 if models.padding_matters(weights) else batch

    def report(done: int, total: int) -> None:
        ctx.progress(done, total, unit="request")
        if ctx.stop_requested:
            raise Interrupted

    results = evaluate(
        weights,
        tokenizer,
        tasks,
        batch=batch,
        max_length=spec.max_length,
        limit=spec.limit,
        chat=spec.apply_chat_template,
        report=report,
    )
    items = rows.harness_items(results, tasks)
    measured = rows.harness_rows(results, items)
    rows.write(out, measured, items)
    counts = {"items": len(items), "truncated_requests": results["truncated"]}
    return {**counts, **{f"{r['task']}/{r['metric']}": r["value"] for r in measured}}
