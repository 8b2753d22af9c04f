"""The figures that Amuro & Char's results are told by, from rows: the authors' or one's own of the same coordinates.

They go by what they show (`amuro.ABOUT`), not by number: numbers change from one version of a paper to the next. Where
a frame has both, each line and bar is there twice, and `source` tells them apart.
"""

from collections.abc import Callable, Iterable

import pandas as pd

from toolkit.analysis.charts import Chart, bars, curves, heat
from toolkit.analysis.dynamics import average, forgetting, format_sensitivity, gain, mean_relative_change
from toolkit.analysis.published import amuro

TWICE = ("qqp", "rte")  # both harnesses scored these; the figures show the authors' own prompts
FAMILIES = {"question generation": "socialiqa", "summary": "xsum", "NLI": "mnli", "paraphrase": "paws"}
FLAT = ("mnli_matched", "xsum", "socialiqa", "paws", "boolq")
MEANS = {"gain": "mean change (FT - BASE)", "relative": "mean relative change", "lost": "mean loss (BASE - FT)"}
GROUPS = {"learned in tuning": amuro.LEARNED_IN_TUNING, "learned in pre-training": amuro.LEARNED_IN_PRETRAINING}


def figures(frame: pd.DataFrame) -> dict[str, Callable[[], Chart]]:
    """Name -> what makes the chart, each by itself; it raises ValueError where a row that it needs is missing, or
    stands there twice."""
    frame = amuro.beside(frame)
    rows = amuro.paper_rows(frame)
    rows = rows[~(rows["task"].isin(TWICE) & (rows["harness"] == "olmo-eval"))]
    base = rows[rows["train"] == amuro.BASE]
    instruct = rows[rows["harness"] == "olmo-eval"]
    gains = _gains(rows)
    own = gains[gains["harness"] == "amuro"]
    learned = instruct[(instruct["train"] == amuro.BASE) & (instruct["task"] != "boolq")]

    def beside(pairs: Iterable[tuple[str, str]]) -> Chart:
        return _checkpoints(_beside_base(rows, pairs), ("model",), ("pair",))

    def by_family(value: str) -> Chart:
        def families(part: pd.DataFrame) -> pd.DataFrame:
            found = [
                average(part, [p for p in amuro.OUT_OF_DOMAIN if p[0] == train], (), value).assign(task=name)
                for name, train in FAMILIES.items()
            ]
            return pd.concat(found)

        return _bars(own, families, "task", None, MEANS[value])

    def elsewhere(over: list[str], x: str, group: str | None) -> Chart:
        return _bars(own, lambda p: mean_relative_change(p, amuro.CROSS_TASK, over), x, group, MEANS["relative"])

    def groups(part: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([average(part, pairs).assign(group=name) for name, pairs in GROUPS.items()])

    return {
        "base-improves": lambda: _checkpoints(learned, ("task",), ("train",)),
        "base-does-not-improve": lambda: _checkpoints(base[base["task"].isin(FLAT)], ("task",), ("train",)),
        "base-by-shots": lambda: _checkpoints(_by_shots(frame), ("shots",), ("task",)),
        "gain-of-groups": lambda: _bars(gains, groups, "step", "group", MEANS["gain"]),
        "tuned-in-domain": lambda: beside(amuro.IN_DOMAIN),
        "instruction-tuned": lambda: beside([("tulu", task) for task in amuro.INSTRUCTION]),
        "instruction-gain": lambda: _checkpoints(gains[gains["train"] == "tulu"], ("task",), ("train",), "gain"),
        "formats": lambda: _checkpoints(_formats(frame), ("format", "model"), ("pair",)),
        "format-sensitivity": lambda: _sensitivity(_formats(frame)),
        "out-of-domain": lambda: beside(amuro.OUT_OF_DOMAIN),
        "out-of-domain-change": lambda: by_family("gain"),
        "out-of-domain-ratio": lambda: by_family("relative"),
        "cross-task": lambda: beside(amuro.CROSS_TASK),
        "cross-task-change": lambda: elsewhere(["train"], "train", None),
        "cross-task-by-checkpoint": lambda: elsewhere(["train", "step"], "step", "train"),
        "forgetting": lambda: _bars(
            own, lambda part: forgetting(part, amuro.CROSS_TASK), "step", "train", MEANS["lost"]
        ),
        "instruction-following": lambda: _checkpoints(_llmbar(frame), ("model",), ("pair",)),
        "gain-by-task": lambda: heat(
            _told(
                _some(_labelled(gains, (*amuro.LEARNED_IN_TUNING, *amuro.LEARNED_IN_PRETRAINING[:-1])), "gain"), "pair"
            ),
            "step",
            "pair",
            "gain",
        ),
    }


def _gains(rows: pd.DataFrame) -> pd.DataFrame:
    """Of rows without a base no figure of changes can be drawn, and those that need none still can."""
    if (rows["train"] == amuro.BASE).any():
        return gain(rows)
    return rows.iloc[:0].assign(base=0.0, base_stderr=0.0, gain=0.0, gain_stderr=0.0, relative=0.0)


def _checkpoints(chosen: pd.DataFrame, lines: tuple[str, ...], panels: tuple[str, ...], value: str = "value") -> Chart:
    several = ("source",) if chosen["source"].nunique() > 1 else ()
    return curves(_some(chosen), _over(chosen), (*lines, *several), panels, value, amuro.CHANCE)


def _over(rows: pd.DataFrame) -> str:
    """Tokens, unless one's own checkpoints are of a model whose tokens a step nobody said."""
    return "tokens" if "tokens" in rows and rows["tokens"].notna().all() else "step"


def _bars(
    gains: pd.DataFrame, means: Callable[[pd.DataFrame], pd.DataFrame], x: str, group: str | None, measure: str
) -> Chart:
    """Bars of the means of each source that has every pair of the figure; of none, the error of the last."""
    found, failed = [], ValueError("no row of the table is one of this figure's")
    for source, part in gains.groupby("source", sort=False):
        try:
            found.append(means(part).assign(source=source))
        except ValueError as error:
            failed = error
    if not found:
        raise failed
    both = pd.concat(found)
    if len(found) == 1:
        return bars(both, x, group, measure=measure)
    return bars(_told(both, group) if group else both, x, group or "source", measure=measure)


def _told(rows: pd.DataFrame, label: str) -> pd.DataFrame:
    """With the source in the label, where there are several."""
    several = rows["source"].nunique() > 1
    return rows.assign(**{label: rows[label] + " · " + rows["source"]}) if several else rows


def _some(chosen: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """What was chosen, if it has a number: a figure of none would be an empty frame."""
    if chosen[value].dropna().empty:
        raise ValueError("no row of the table is one of this figure's")
    return chosen


def _by_shots(frame: pd.DataFrame) -> pd.DataFrame:
    """Base checkpoints on the authors' own prompts at every number of demonstrations that they tried."""
    chosen = frame[(frame["harness"] == "amuro") & (frame["train"] == amuro.BASE) & (frame["format"] == "default")]
    chosen = chosen[chosen["repeat"].isna()] if "repeat" in chosen else chosen
    tried = chosen.dropna(subset=["value"]).groupby("task")["shots"].nunique()
    return chosen[chosen["task"].isin(tried[tried > 1].index)].sort_values("shots", kind="stable")


def _sensitivity(rows: pd.DataFrame) -> Chart:
    """The range of a score over formats, at each checkpoint."""
    found = format_sensitivity(_some(rows).drop(columns="pair").drop_duplicates())
    ranges = found.assign(value=found["range"], stderr=float("nan"), n=float("nan"))
    return _checkpoints(ranges, ("model",), ("task",))


def _labelled(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """The rows of these (tuned on, evaluated on) pairs, with a column that names the pair."""
    wanted = pd.DataFrame(list(pairs), columns=["train", "task"])
    found = wanted.merge(rows, on=["train", "task"])
    return found.assign(pair=found["train"] + " → " + found["task"])


def _beside_base(rows: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """For each pair the tuned rows and, under the same name, the rows of the checkpoints that they come from."""
    tuned = _labelled(rows, pairs).assign(model="fine-tuned")
    on = ["step", "task", "metric", "shots", "format", "harness", "source"]
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
