"""The figures that Amuro & Char's results are told by, from rows: the authors' or one's own of the same coordinates.

They go by what they show, not by number, since numbers change from one version of a paper to the next.
"""

from collections.abc import Iterable
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from toolkit.analysis.dynamics import average, gain, mean_relative_change
from toolkit.analysis.plots import bars, curves, heat
from toolkit.analysis.published import amuro

TWICE = ("qqp", "rte")  # both harnesses scored these; the figures show the authors' own prompts
INSTRUCTION = ("hellaswag", "arc_challenge", "arc_easy", "sciq", "openbookqa", "boolq")
FAMILIES = {"question generation": "socialiqa", "summary": "xsum", "NLI": "mnli", "paraphrase": "paws"}


def figures(frame: pd.DataFrame, scale: Literal["log", "linear", "even"] = "log") -> dict[str, Figure]:
    """Name -> figure. `scale` of the checkpoints: log tokens, or `even` as in the paper.

    Raises:
        ValueError: a row that a figure needs is missing, or stands there twice.
    """
    rows = amuro.paper_rows(frame)
    rows = rows[~(rows["task"].isin(TWICE) & (rows["harness"] == "olmo-eval"))]
    base, gains = rows[rows["train"] == amuro.BASE], gain(rows)
    own = gains[gains["harness"] == "amuro"]
    instruct = rows[rows["harness"] == "olmo-eval"]

    def checkpoints(chosen: pd.DataFrame, lines: tuple[str, ...], panels: tuple[str, ...]) -> Figure:
        return curves(chosen, "tokens", lines, panels, scale, chance=amuro.CHANCE)

    learned = instruct[(instruct["train"] == amuro.BASE) & (instruct["task"] != "boolq")]
    flat = base[base["task"].isin(["mnli_matched", "xsum", "socialiqa", "paws", "boolq"])]
    groups = {"learned in tuning": amuro.LEARNED_IN_TUNING, "learned in pre-training": amuro.LEARNED_IN_PRETRAINING}
    by_task = [
        average(own, [p for p in amuro.OUT_OF_DOMAIN if p[0] == train], ()).assign(task=name)
        for name, train in FAMILIES.items()
    ]
    return {
        "base-improves": checkpoints(learned, ("task",), ("train",)),
        "base-does-not-improve": checkpoints(flat, ("task",), ("train",)),
        "gain-of-groups": bars(
            pd.concat([average(gains, pairs).assign(group=name) for name, pairs in groups.items()]), "step", "group"
        ),
        "tuned-in-domain": checkpoints(_beside_base(rows, amuro.IN_DOMAIN), ("model",), ("pair",)),
        "instruction-tuned": checkpoints(
            _beside_base(rows, [("tulu", task) for task in INSTRUCTION]), ("model",), ("pair",)
        ),
        "formats": checkpoints(_formats(frame), ("format", "model"), ("pair",)),
        "out-of-domain": checkpoints(_beside_base(rows, amuro.OUT_OF_DOMAIN), ("model",), ("pair",)),
        "out-of-domain-change": bars(pd.concat(by_task), "task"),
        "cross-task": checkpoints(_beside_base(rows, amuro.CROSS_TASK), ("model",), ("pair",)),
        "cross-task-change": bars(mean_relative_change(own, amuro.CROSS_TASK, ["train"]), "train"),
        "instruction-following": checkpoints(_llmbar(frame), ("model",), ("pair",)),
        "gain-by-task": heat(
            _labelled(gains, (*amuro.LEARNED_IN_TUNING, *amuro.LEARNED_IN_PRETRAINING[:-1])), "step", "pair", "gain"
        ),
    }


def _labelled(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """The rows of these (tuned on, evaluated on) pairs, with a column that names the pair."""
    wanted = pd.DataFrame(list(pairs), columns=["train", "task"])
    found = wanted.merge(rows, on=["train", "task"])
    return found.assign(pair=found["train"] + " → " + found["task"])


def _beside_base(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """For each pair the tuned rows and, under the same name, the rows of the checkpoints that they come from."""
    tuned = _labelled(rows, pairs).assign(model="fine-tuned")
    on = ["step", "task", "metric", "shots", "format", "harness"]
    base = tuned[[*on, "pair"]].merge(rows[rows["train"] == amuro.BASE], on=on).assign(model="BASE")
    return pd.concat([base, tuned])


def _formats(frame: pd.DataFrame) -> pd.DataFrame:
    """The main task of each recipe in all its formats, at 4 shots."""
    own = frame[(frame["harness"] == "amuro") & (frame["shots"] == 4) & (frame["train"] != "tulu")]
    first = own[own["repeat"].isna()] if "repeat" in own else own
    return _beside_base(first, [p for p in amuro.IN_DOMAIN if p[1] not in ("mnli_mismatched", "xlsum")])


def _llmbar(frame: pd.DataFrame) -> pd.DataFrame:
    tasks = [task for task in amuro.CHANCE if task.startswith("llmbar")]
    return _beside_base(frame[frame["shots"] == 4], [("tulu", task) for task in tasks])
