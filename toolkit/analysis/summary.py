"""What tuning does, in tables for the report: the operations of `dynamics`, for every model, task and metric."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from toolkit.analysis.dynamics import format_sensitivity, gain, learned_in, revealed_by_tuning
from toolkit.analysis.formats import number, with_interval
from toolkit.analysis.gaps import NOT_KEYS, show
from toolkit.analysis.trends import rank_correlation

MOST = 300  # rows of one table
ADDED = ("base", "base_stderr", "gain", "gain_stderr", "relative", "tokens", "step")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A table of texts. `left`: how many columns name a row; the others are numbers. `more`: rows that are left out."""

    title: str
    about: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int
    more: int = 0


def summaries(frame: pd.DataFrame, by: str, base: str, over: str) -> list[Listed]:
    """Those of the tables that have a row. Of a base with several rows at one point nothing can be said."""
    scores = frame[frame["task"].notna() & frame["metric"].notna()]
    made = [_formats(scores)] if "format" in scores else []
    try:
        gains = gain(scores, by, base)
    except ValueError as error:
        about = f"No change can be told: {error}"
        return [Listed(title="Change by tuning", about=about, headers=(), rows=(), left=0)]
    tables = [_changes(gains, over), _revealed(gains, over), _learned(scores, by, base, over), *made]
    return [table for table in tables if table.rows]


def _changes(gains: pd.DataFrame, over: str) -> Listed:
    names = _names(gains)
    rows = []
    for key, part in gains.sort_values(over, kind="stable").groupby(names, sort=False, dropna=False):
        done = part.dropna(subset=["gain"])
        if len(done):
            lost = done.iloc[int(done["gain"].to_numpy().argmin())]
            forgot = f"{number(-lost['gain'])} at {over} {show(lost[over])}" if lost["gain"] < 0 else "nothing"
            numbers = [done["gain"].iloc[0], done["gain"].iloc[-1], done["gain"].mean(), done["relative"].mean()]
            rows.append([*_texts(key), *map(_number, numbers), forgot, f"{len(done)} of {len(part)}"])
    return Listed(
        title="Change by tuning",
        about="Gain is tuned - base, relative change is gain / base, forgotten is what is lost where it is most (Amuro"
        " & Char, arXiv 2408.06663). Means are over checkpoints; those that were not run are counted and in no mean.",
        headers=[*names, "gain, first", "gain, last", "mean gain", "relative", "most forgotten", "checkpoints"],
        rows=rows[:MOST],
        left=len(names),
        more=max(0, len(rows) - MOST),
    )


def _revealed(gains: pd.DataFrame, over: str) -> Listed:
    found = revealed_by_tuning(gains, over)
    names = [
        c
        for c in found.columns
        if not c.startswith(("base_", "tuned_", "gain_")) and c not in ("checkpoints", "revealed")
    ]
    rows = []
    for _, row in found.iterrows():
        lines = [with_interval(row[f"{n}_slope"], row[f"{n}_low"], row[f"{n}_high"]) for n in ("base", "tuned", "gain")]
        rows.append(
            [
                *_texts(row[names]),
                *lines,
                "yes" if row["revealed"] else "no",
                _rank(gains, row[names]),
                str(row["checkpoints"]),
            ]
        )
    return Listed(
        title="What only tuning reveals",
        about=f"Slopes per tenfold of {over} with 95 % intervals. Revealed: the gain grows with pre-training (its whole"
        " interval is above 0) and the base's score does not. rho: Spearman's, of the base's and the tuned score.",
        headers=[*names, "base", "tuned", "gain", "revealed", "rho", "checkpoints"],
        rows=rows[:MOST],
        left=len(names),
        more=max(0, len(rows) - MOST),
    )


def _rank(gains: pd.DataFrame, key: "pd.Series[Any]") -> str:
    """Whether the base's score ranks checkpoints as the tuned model's does; a dash for fewer than four."""
    named = gains[list(key.index)]
    part = gains[((named == key) | (named.isna() & key.isna())).all(axis=1)]
    done = part.dropna(subset=["gain"])
    if len(done) < 4 or min(done["base"].nunique(), done["value"].nunique()) < 2:
        return "–"
    found = rank_correlation(done["base"], done["value"], resamples=500)
    return with_interval(found.value, found.low, found.high)


def _learned(scores: pd.DataFrame, by: str, base: str, over: str) -> Listed:
    found = learned_in(scores, by, base, over)
    names = [c for c in found.columns if c not in ("slope", "low", "high", "rise", "group")]
    rows = [
        [*_texts(row[names]), with_interval(row["slope"], row["low"], row["high"]), number(row["rise"]), row["group"]]
        for _, row in found.iterrows()
    ]
    return Listed(
        title="What the base learns by itself",
        about=f"Learned in pre-training: the slope per tenfold of {over} is above 0 and the score rises by 0.1.",
        headers=[*names, "slope", "rise", "learned in"],
        rows=rows[:MOST],
        left=len(names),
        more=max(0, len(rows) - MOST),
    )


def _formats(scores: pd.DataFrame) -> Listed:
    found = format_sensitivity(scores)
    found = found[found["formats"] > 1]
    numbers = ("formats", "mean", "low", "high", "sd", "range", "relative")
    names = [c for c in found.columns if c not in numbers]
    shown = ("mean", "low", "high", "range", "relative")
    rows = [[*_texts(row[names]), *(_number(row[n]) for n in shown)] for _, row in found.iterrows()]
    return Listed(
        title="Sensitivity to the format of the prompt",
        about="Over the formats of one model and task: mean, least and greatest score, and their range (M. Sclar et"
        " al., ICLR 2024).",
        headers=[*names, "mean", "least", "greatest", "range", "relative"],
        rows=rows[:MOST],
        left=len(names),
        more=max(0, len(rows) - MOST),
    )


def _names(gains: pd.DataFrame) -> list[str]:
    """The columns that tell one model and task from another, without those that another decides (a recipe its rate)."""
    known = [c for c in gains.columns if c not in (*NOT_KEYS, *ADDED, "stage")]
    kept: list[str] = []
    for name in known:
        decided = any(gains.groupby(other, dropna=False)[name].nunique(dropna=False).max() == 1 for other in kept)
        if name in ("task", "metric") or (gains[name].nunique(dropna=False) > 1 and not decided):
            kept.append(name)
    return kept


def _texts(key: Iterable[Any]) -> list[str]:
    return [show(None if pd.isna(k) else k) for k in key]


def _number(value: Any) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"
