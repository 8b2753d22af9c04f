"""The tables that Amuro & Char released (K. Sun, M. Dredze, arXiv 2408.06663 v5) as rows of ours.

`all_perf_table.csv` holds the scores of the authors' own prompts, `official_eval_table.csv` those of OLMo-Eval; a name
of a model says all: checkpoint, what it was tuned on, epochs, learning rate, shots. Each row has these as coordinates
of its own (step, tokens, train, epochs, lr, format, shots, harness), so that it stands in a table with one's own runs.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.analysis.charts import Chart

OWN, OFFICIAL = "all_perf_table.csv", "official_eval_table.csv"
HARNESS = {OWN: "amuro", OFFICIAL: "olmo-eval"}
BASE = "base"  # the coordinate `train` of a checkpoint that was not tuned
INSTRUCTION = ("hellaswag", "arc_challenge", "arc_easy", "sciq", "openbookqa", "boolq")  # by likelihood, no shots
STEPS = (1000, 18000, 342000, 424000, 505000, 592000, 738000, 738020)  # the last is `main`
MAIN = STEPS[-1]
TOKENS_A_STEP = 2048 * 2048
TUNED = re.compile(r"olmo1b_hf_(?:ckpt(\d+)|main)_([a-z0-9]+)_(\d+)epoch_(\d+e-\d+)(?:_(\d+)shots)?")
UNTUNED = re.compile(r"(?:olmo1b_)?(?:checkpoint-(\d+)(?:_original(?:_hf)?)?|original_hf)(?:_(\d+)shots)?")
FORMATS = ("instruct", "inputoutput")
TEXT_TASKS = ("cnn", "sciq", "socialiqa", "tweetqa", "xlsum", "xsum")  # scored by ROUGE-L in the authors' own table
# Rows of the sets that OLMo-Eval scores (validation, or test for SciQ); used where value * n is a whole number.
ITEMS = {
    "arc_challenge": 299, "arc_easy": 570, "boolq": 3270, "hellaswag": 10042, "openbookqa": 500, "qqp": 40430,
    "rte": 277, "sciq": 1000,
}  # fmt: skip
CHANCE = {
    **dict.fromkeys(("mnli_matched", "mnli_mismatched", "gpt3nli"), 1 / 3),
    **dict.fromkeys(("arc_challenge", "arc_easy", "hellaswag", "openbookqa", "sciq"), 1 / 4),
    **dict.fromkeys(("boolq", "paws", "qqp", "rte", "stsb"), 1 / 2),
    **dict.fromkeys(("llmbar_Natural", "llmbar_Adversarial_Manual", "llmbar_Adversarial_Neighbor"), 1 / 2),
}
# (trained on, evaluated on): the groups that the paper averages over
IN_DOMAIN = (
    ("mnli", "mnli_matched"), ("mnli", "mnli_mismatched"), ("paws", "paws"), ("xsum", "xsum"), ("xsum", "xlsum"),
    ("socialiqa", "socialiqa"),
)  # fmt: skip
# The test labels of QQP and STS-B are not public (-1 in every row): a model that always says "no" scores 1 there, and
# the guards say so of these rows (`guards.perfect_before_training`).
OUT_OF_DOMAIN = (
    ("mnli", "rte"), ("mnli", "gpt3nli"), ("xsum", "cnn"), ("paws", "qqp"), ("paws", "stsb"), ("socialiqa", "tweetqa"),
    ("socialiqa", "sciq"),
)  # fmt: skip
_MAIN_TASK = {"mnli": "mnli_matched", "paws": "paws", "socialiqa": "socialiqa", "xsum": "xsum"}
CROSS_TASK = tuple((t, task) for t in _MAIN_TASK for other, task in _MAIN_TASK.items() if other != t)
# The authors' notebook averages these by direction, too: from tasks answered by a word to those that write, and back.
_CLASSES, _TEXTS = ("mnli", "paws"), ("xsum", "socialiqa")
CLASSES_TO_TEXTS = tuple((t, task) for t, task in CROSS_TASK if t in _CLASSES and task in _TEXTS)
TEXTS_TO_CLASSES = tuple((t, task) for t, task in CROSS_TASK if t in _TEXTS and task not in _TEXTS)
LEARNED_IN_TUNING = (*IN_DOMAIN, ("tulu", "boolq"))
LEARNED_IN_PRETRAINING = tuple(
    ("tulu", task) for task in ("sciq", "hellaswag", "arc_challenge", "arc_easy", "openbookqa", "sciq")
)  # SciQ counts twice, as in the authors' notebook

# What `tidemark dynamics --paper amuro` calls the pairs.
GROUPS = {
    "in-domain": IN_DOMAIN, "out-of-domain": OUT_OF_DOMAIN, "cross-task": CROSS_TASK,
    "classes-to-texts": CLASSES_TO_TEXTS, "texts-to-classes": TEXTS_TO_CLASSES,
    "learned-in-tuning": LEARNED_IN_TUNING, "learned-in-pretraining": LEARNED_IN_PRETRAINING,
}  # fmt: skip
ABOUT = {  # figure -> what it shows
    "base-improves": "Base checkpoints on the tasks that pre-training teaches, few-shot or by likelihood.",
    "base-does-not-improve": "Base checkpoints on the tasks that stay near chance until they are tuned.",
    "base-by-shots": "Base checkpoints by the number of demonstrations.",
    "gain-of-groups": "What tuning adds (FT - BASE) to tasks learned in pre-training and in tuning: Table 6.",
    "tuned-in-domain": "Each fine-tuned checkpoint on its own task, beside the checkpoint that it comes from.",
    "instruction-tuned": "Instruction-tuned checkpoints on six tasks, beside their base.",
    "instruction-gain": "What instruction tuning adds at each checkpoint, a line for each task.",
    "formats": "Base and tuned scores by the format of the prompt: default, instruct, input-output.",
    "format-sensitivity": "The range of a score over formats, before and after tuning.",
    "out-of-domain": "Each fine-tuned checkpoint on other data of its task, beside its base.",
    "out-of-domain-change": "Mean change on other data of the task, over checkpoints.",
    "out-of-domain-ratio": "Mean relative change on other data of the task, over checkpoints.",
    "cross-task": "Each fine-tuned checkpoint on the tasks of the others, beside its base.",
    "cross-task-change": "Mean relative change on other tasks, over checkpoints and tasks.",
    "cross-task-by-checkpoint": "Mean relative change on other tasks, at each checkpoint.",
    "forgetting": "What tuning takes from other tasks (BASE - FT), at each checkpoint.",
    "instruction-following": "LLMBar before and after instruction tuning.",
    "gain-by-task": "What tuning adds, checkpoint by task.",
}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """source: "amuro"."""

    source: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """tables: a folder with the two released files, or one of them."""

    tables: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with rows.parquet; metrics: how many rows, and how many of them were not run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = read(inputs.tables.path)
    pq.write_table(pa.Table.from_pylist(rows), out / "rows.parquet", compression="zstd")
    return {"rows": len(rows), "not_run": sum(row["value"] is None for row in rows)}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of the released tables under `path`: task, metric, value, stderr, n and `coords` (JSON text).

    A model and task that was evaluated at several checkpoints and not at others has rows without a value there: the
    release leaves them out, and a gap should be seen. The stderr is the release's `std`, of a bootstrap over items. The
    authors' own value is the middle of that bootstrap's 95 % interval (`eval/eval_pred.py` of their repository), which
    is near the score and is no whole number of items.

    Raises:
        ValueError: neither file is there, a column is missing, or a model's name is not of the release's grammar.
    """
    files = [path] if path.is_file() else [path / name for name in HARNESS if (path / name).is_file()]
    if not files or any(file.name not in HARNESS for file in files):
        raise ValueError(f"{path} is not what was released: give a folder with {' and '.join(HARNESS)}, or one of them")
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for file in files:
        for line, record in enumerate(_records(file), 2):
            row = _row(record, file.name, f"{file}:{line}")
            at = row["coords"]
            if _key(row) in rows:  # a second name for the same model and task: both stay
                at["repeat"] = 1 + max(r["coords"].get("repeat", 0) for r in rows.values() if _same(r, row))
            rows[_key(row)] = row
    found = [*rows.values(), *_not_run(rows.values())]
    return [{**row, "coords": json.dumps(row["coords"])} for row in sorted(found, key=_order)]


def coordinates(model: str) -> dict[str, Any]:
    """`olmo1b_hf_ckpt18000_mnli_3epoch_2e-6_4shots` as step, tokens, train, epochs, lr, shots.

    A name without `_Kshots` is zero-shot; one without a learning rate is a checkpoint as it was pre-trained.

    Raises:
        ValueError: it is not of the release's grammar.
    """
    tuned, untuned = TUNED.fullmatch(model), UNTUNED.fullmatch(model)
    if tuned:
        step, train, epochs, lr, shots = tuned.groups()
        recipe = {"train": train, "epochs": int(epochs), "lr": float(lr)}
    elif untuned:
        (step, shots), recipe = untuned.groups(), {"train": BASE}
    else:
        raise ValueError(
            f"model {model!r} is not named as in the release: olmo1b_hf_ckpt1000_mnli_3epoch_2e-6_4shots, "
            "olmo1b_checkpoint-1000_original_hf_4shots or checkpoint-1000"
        )
    number = int(step) if step else MAIN
    return {"step": number, "tokens": number * TOKENS_A_STEP, **recipe, "shots": int(shots or 0)}


def _records(file: Path) -> list[dict[str, str]]:
    import csv

    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        missing = [n for n in ("model_id", "eval dataset", "Performance") if n not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{file} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}")
        return list(reader)


def _row(record: Mapping[str, str], file: str, place: str) -> dict[str, Any]:
    task, _, style = record["eval dataset"].rpartition("_")
    if style not in FORMATS:
        task, style = record["eval dataset"], "default"
    try:
        at = coordinates(record["model_id"])
        value = float(record["Performance"])
        error = float(record["std"]) if record.get("std") else None
    except ValueError as fault:
        raise ValueError(f"{place}: {fault}") from None
    items = ITEMS.get(task, 0) if file == OFFICIAL else 0
    whole = items > 0 and abs(value * items - round(value * items)) < 1e-6
    return {
        "task": task,
        "metric": "rouge_l" if file == OWN and task in TEXT_TASKS else "acc",
        "value": value,
        "stderr": error,
        "n": items if whole else None,
        "coords": {**at, "format": style, "harness": HARNESS[file]},
    }


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["task"], row["metric"], json.dumps(row["coords"], sort_keys=True)


def _same(one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    plain = [{k: v for k, v in row["coords"].items() if k != "repeat"} for row in (one, two)]
    return (one["task"], one["metric"], plain[0]) == (two["task"], two["metric"], plain[1])


def _not_run(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For what stands at two checkpoints or more, the checkpoints where it does not."""
    groups: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for row in rows:
        fixed = {k: v for k, v in row["coords"].items() if k not in ("step", "tokens")}
        key = (row["task"], row["metric"], json.dumps(fixed, sort_keys=True))
        groups.setdefault(key, {})[row["coords"]["step"]] = row
    found = []
    for group in groups.values():
        like = next(iter(group.values()))
        for step in STEPS if len(group) > 1 else ():
            if step not in group:
                at = {**like["coords"], "step": step, "tokens": step * TOKENS_A_STEP}
                found.append({**like, "value": None, "stderr": None, "n": None, "coords": at})
    return found


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    at = row["coords"]
    return at["harness"], at["train"] != BASE, at["train"], row["task"], at["format"], at["shots"], at["step"]


def beside(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of a study (`toolkit.analysis.load`) in the coordinates of the release, with a column `source`: `paper`
    for released rows, `own` for one's own, of which those stay that answer to a released one.

    An own row's `harness` becomes that of the released table that it is held against: likelihoods without shots of
    `INSTRUCTION` against OLMo-Eval's, accuracies and ROUGE-L against the authors' own. Rows of no tuned model have
    `train` = base, the step `main` its number; steps of the paper have its tokens. An axis that only says which models
    are tuned (a union's labels), which `train` says, is left out. A format in a task's name becomes a coordinate.

    Raises:
        ValueError: a step that is neither a number nor `main`.
    """
    if "source" in frame:
        return frame
    given = [name for name in ("harness", "train", "format", "shots", "step", "tokens") if name not in frame]
    rows = frame[frame["task"].notna()].reindex(columns=[*frame.columns, *given])
    own = rows["job"] != "published"
    rows["source"] = own.map({True: "own", False: "paper"})
    rows["step"] = _numbers(rows["step"].astype("string").replace("main", str(MAIN)))
    rows["tokens"] = rows["tokens"].astype("Int64").mask(own & rows["step"].isin(STEPS), rows["step"] * TOKENS_A_STEP)
    rows["train"] = rows["train"].astype(object).where(~own | rows["train"].notna(), BASE)
    rows["format"] = rows["format"].astype(object).where(~own | rows["format"].notna(), "default")
    for form in FORMATS:  # which may stand in the name of a task
        named = own & rows["task"].str.endswith(f"_{form}")
        rows["format"] = rows["format"].mask(named, form)
        rows["task"] = rows["task"].mask(named, rows["task"].str.removesuffix(f"_{form}"))
    official = rows["task"].isin(INSTRUCTION) & (rows["metric"] == "acc")
    held = official.map({True: HARNESS[OFFICIAL], False: HARNESS[OWN]})
    rows["harness"] = rows["harness"].astype(object).where(~own, held)
    rows["task"] = rows["task"].astype(object).mask(own & (rows["task"] == "sciq_questions"), "sciq")
    kept = rows["metric"].isin(["acc", "rouge_l"]) & (~official | rows["shots"].isin([0]))
    empty = [name for name in given if rows[name].isna().all()]
    return rows[~own | kept].drop(columns=[*empty, *_labels_of_unions(rows[own])])


def _numbers(steps: "pd.Series") -> "pd.Series":
    import pandas as pd

    found = pd.to_numeric(steps, errors="coerce")
    if len(named := steps[found.isna() & steps.notna()]):
        raise ValueError(f"step {named.iloc[0]!r} of this study is no number: it cannot stand beside the paper's steps")
    return found.astype("Int64")


def _labels_of_unions(own: "pd.DataFrame") -> list[str]:
    from toolkit.analysis.gaps import NOT_KEYS

    untuned = own["train"] == BASE
    axes = sorted({str(c) for c in own} - {*NOT_KEYS, "train", "source", "stage", "task", "metric", "harness"})
    sides = {name: [set(own[name][side].dropna()) for side in (untuned, ~untuned)] for name in axes}
    return [name for name, (base, tuned) in sides.items() if base and tuned and not base & tuned]


def paper_rows(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The rows that the paper averages, of a frame that holds the release (`toolkit.analysis.load_published`), one's
    own results (`toolkit.analysis.load`), or both.

    Supervised tuning: the authors' own prompts in the default format with 4 shots. Instruction tuning: OLMo-Eval.
    """
    frame = beside(frame)
    own = (frame["harness"] == "amuro") & (frame["shots"] == 4) & (frame["format"] == "default")
    first = frame["repeat"].isna() if "repeat" in frame else True
    return frame[(own & first & (frame["train"] != "tulu")) | (frame["harness"] == "olmo-eval")]


def table6(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Table 6 of the paper: the mean of FT - BASE at each step over what is learned in pre-training and in tuning."""
    from toolkit.analysis.dynamics import average, gain

    gains = gain(paper_rows(frame))
    parts = {"learned_in_pretrain": LEARNED_IN_PRETRAINING, "learned_in_finetune": LEARNED_IN_TUNING}
    means = [average(gains, pairs).set_index("step")["mean"].rename(name) for name, pairs in parts.items()]
    return means[0].to_frame().join(means[1]).reset_index()


def figures(frame: "pd.DataFrame") -> "dict[str, Callable[[], Chart]]":
    """Name (of `ABOUT`) -> what makes the chart, of a frame that holds the release or one's own rows of the same
    coordinates. Each raises ValueError where a row that it needs is missing, or stands there twice."""
    from toolkit.analysis.published import _amuro_figures

    return _amuro_figures.figures(frame)
