"""Measure a model with lm-eval tasks, or predictions with text metrics; the rows are what `tidemark table` shows.

A stage has the input `model` (with `tasks`, and `data` or `data.NAME` for what they read) or `predictions` (with
`metrics`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.checkpoints.whole import whole_inputs
from toolkit.generation.models import Precision
from toolkit.provenance import machine
from toolkit.spec import defaults
from toolkit.stage import Artifact, Context

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
    """tasks: names of tasks and groups, of configs/tasks or lm-eval's own. shots: demonstrations, drawn by `seed`.

    metrics: of predictions: exact_match, f1, rouge_l. limit: the first rows of each task only. max_length: tokens of
    context, the model's own if None. split, shots_split: for tasks on `data`, instead of those the task file names.
    precision: "auto" takes the type that the weights are stored in, as lm-eval does. format: of the prompts, for tasks
    of configs/tasks that have several. repeat: above 0, the same evaluation once more, from nothing: whether it comes
    out the same is what a sentinel asks.
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
    format: str = "default"
    repeat: int = 0

    def __post_init__(self) -> None:
        for name, least in (("shots", 0), ("limit", 1), ("max_length", 2), ("repeat", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name!r} must be at least {least}, not {value}")
        for name in ("tasks", "metrics"):
            twice = [v for i, v in enumerate(getattr(self, name)) if v in getattr(self, name)[:i]]
            if twice:
                raise ValueError(f"{name!r} names {twice[0]!r} twice")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: an HF folder. data: by name, rows for tasks of configs/tasks, and downloads of built-in tasks' data sets.

    predictions: an artifact of `generate`.
    """

    model: Artifact | None = None
    data: dict[str, Artifact] = field(default_factory=dict)
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
        if not inputs.data and (spec.split or spec.shots_split):
            raise ValueError(
                "'split' and 'shots_split' choose among the splits of the input 'data', which is not there"
            )
        return _model(spec, inputs, out, ctx)
    assert inputs.predictions is not None
    unset = defaults(Spec)
    idle = [name for name in unset if name not in {*EITHER, "metrics"} and getattr(spec, name) != unset[name]]
    if not spec.metrics or idle or inputs.data:
        wrong = f"; {idle[0]!r} means nothing for predictions" if idle else ""
        raise ValueError(f"scoring predictions needs 'metrics' and takes no 'tasks' and no input 'data'{wrong}")
    return _predictions(spec, inputs.predictions, out)


def _predictions(spec: Spec, predictions: Artifact, out: Path) -> dict[str, Any]:
    from toolkit.evaluation.predictions import ALL, score
    from toolkit.evaluation.rows import write

    rows, items = score(predictions.path, spec.metrics, spec.limit)
    write(out, rows, items)
    return {"items": len(items), **{row["metric"]: row["value"] for row in rows if row["task"] == ALL}}


def _model(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    from toolkit.evaluation import rows
    from toolkit.evaluation.answers import Answers, identity
    from toolkit.evaluation.harness import Model, Watch, evaluate
    from toolkit.evaluation.join import Given, Source
    from toolkit.evaluation.tasks import load

    # Tasks first: a wrong name or missing data should not wait for the weights.
    given = {
        label: Given(path=data.path, repo=data.record.get("spec", {}).get("repo"))  # of a download
        for label, data in inputs.data.items()
    }
    source = Source(data=given, split=spec.split, shots_split=spec.shots_split, format=spec.format)
    loaded = load(spec.tasks, source, spec.shots, spec.seed, ctx.state / "tasks")
    assert inputs.model is not None
    model = Model(folder=inputs.model.path, precision=spec.precision, max_length=spec.max_length)
    gpus = sorted(set(machine()["gpus"]))
    where = {"gpus": gpus} if gpus else {"threads": ctx.resources.threads}  # what else decides the last bits
    who = identity(inputs.model, model.folder, precision=spec.precision, max_length=spec.max_length, **where)
    answers = Answers(ctx.state / "answers" / who, _shared(spec, who, ctx))
    watch = Watch(report=lambda done, total: ctx.progress(done, total, unit="request"), stop=lambda: ctx.stop_requested)
    results = evaluate(
        model, loaded, answers, ctx.resources, watch, limit=spec.limit, chat=spec.apply_chat_template
    )  # fmt: skip
    items = rows.harness_items(results, loaded.tasks)
    measured = rows.harness_rows(results, items)
    rows.write(out, measured, items)
    lost = results["truncated"]
    counts = {"items": len(items), "truncated_requests": sum(lost.values())}
    counts |= {f"{task}/truncated_requests": count for task, count in lost.items()}
    counts |= {f"{task}/left_out": count for task, count in rows.left_out(results).items()}
    return {**counts, **{f"{r['task']}/{r['metric']}": r["value"] for r in measured}}


def _shared(spec: Spec, who: str, ctx: Context) -> Path | None:
    """Where cells leave answers for each other, below the root; a repeated evaluation looks at nobody's."""
    root, work = ctx.state.parents[2], ctx.state.parent.parent
    return None if spec.repeat or work != root / "work" else root / "index" / "answers" / who
