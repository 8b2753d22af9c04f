"""What a cheap signal says of a score: numbers of one stage (its loss, the size of a weight change, a few-shot score)
beside scores of another, at the same coordinates.

A signal is named `STAGE.METRIC`, or `STAGE.METRIC@TASK` where it is a score itself. It belongs to every score whose
cell has the same coordinates on all axes that the signal's rows have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pandas as pd

from toolkit.analysis.gaps import NOT_KEYS, show
from toolkit.analysis.stats import holm
from toolkit.analysis.trends import Rank, rank_correlation
from toolkit.lookup import unknown

LEAST = 4  # pairs of which a rank correlation means anything
MOST = 300


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A rank correlation over the pairs of a signal and a score; `p_holm` is adjusted over all that were asked for."""

    signal: str
    score: str
    rank: Rank
    p_holm: float
    pairs: pd.DataFrame


def names(frame: pd.DataFrame) -> list[str]:
    """The signals that a table has: metrics that vary over the points of a stage, stages' own metrics before scores."""
    rows = frame[frame["value"].notna() & frame["metric"].notna() & ~frame["metric"].isin(list(frame.columns))]
    found = rows.groupby(["stage", "metric", "task"], sort=False, dropna=False)["value"].agg(["size", "nunique"])
    known = found[(found["size"] >= LEAST) & (found["nunique"] >= LEAST - 1)].index.tolist()
    return [_name(*key) for key in sorted(known, key=lambda key: isinstance(key[2], str))]


def _name(stage: Any, metric: Any, task: Any) -> str:
    return f"{stage}.{metric}@{task}" if isinstance(task, str) else f"{stage}.{metric}"


def beside(frame: pd.DataFrame, signal: str, scores: pd.DataFrame) -> pd.DataFrame:
    """`scores` with the column `signal`, for the rows whose coordinates the signal has.

    Raises:
        ValueError: no such signal, one that is the same everywhere, or several numbers of it at one point (which
            columns differ).
    """
    rows = _rows(frame, signal)
    on = axes_of(rows)
    if not on:
        raise ValueError(f"signal {signal!r} does not vary over an axis of the study: it ranks nothing")
    twice = rows[rows.duplicated(on, keep=False)]
    if len(twice):
        raise ValueError(f"signal {signal!r} has several numbers at {twice.iloc[0][on].to_dict()}: choose with --where")
    both = scores.merge(rows[[*on, "value"]].rename(columns={"value": signal}), how="inner", on=on)
    return both.dropna(subset=["value", signal])


def _rows(frame: pd.DataFrame, signal: str) -> pd.DataFrame:
    stage, _, rest = signal.partition(".")
    metric, _, task = rest.partition("@")
    of_task = frame["task"] == task if task else frame["task"].isna()
    rows = frame[(frame["stage"] == stage) & (frame["metric"] == metric) & of_task & frame["value"].notna()]
    if rows.empty:
        raise ValueError(unknown("signal", signal, names(frame)) + " (STAGE.METRIC, or STAGE.METRIC@TASK)")
    return rows


def _ranked(both: pd.DataFrame, signal: str, points: Sequence[str]) -> Iterator[tuple[str, Rank, pd.DataFrame]]:
    """Of each line of scores, along the axes `points`: its name, the correlation, its pairs."""
    lines = [c for c in both.columns if c not in (*NOT_KEYS, *points, signal)]
    for key, part in both.groupby(lines, sort=False, dropna=False):
        if len(part) >= LEAST and min(part["value"].nunique(), part[signal].nunique()) > 1:
            score = " · ".join(show(k) for k in key if k is not pd.NA and k == k)
            yield score, rank_correlation(part[signal], part["value"], resamples=500), part


def listed(frame: pd.DataFrame, over: str | None) -> pd.DataFrame:
    """`signals` as a frame, one line each."""
    found = signals(frame, over)
    return pd.DataFrame(
        [{"signal": one.signal, "score": one.score, **asdict(one.rank), "p_holm": one.p_holm} for one in found]
    )


def axes_of(rows: pd.DataFrame) -> list[str]:
    """The axes that a signal's rows have; what is constant belongs to the signal and joins nothing."""
    known = [c for c in rows.columns if c not in (*NOT_KEYS, "stage", "task", "metric")]
    return [c for c in known if rows[c].notna().any() and rows[c].nunique() > 1]


def signals(
    frame: pd.DataFrame, over: str | None, most: int = MOST, asked: Sequence[str] | None = None
) -> list[Signal]:
    """Each signal (all, or those `asked`) against each score of other stages (a line: task, metric, stage, ...), the
    least p first.

    Correlated are checkpoints alone: a line has one point at each coordinate of `over`; in a study without checkpoints
    (None) at each point of the signal. A score is not held against itself, nor one metric of a cell against another of
    the same cell.
    """
    scores = frame[frame["value"].notna() & frame["task"].notna() & (frame[over].notna() if over else True)]
    found: list[tuple[str, str, Rank, pd.DataFrame]] = []
    known = names(frame)
    chosen = known if asked is None else [name for name in asked if name in known]
    for signal in chosen[:most] if scores["stage"].nunique() and frame["stage"].nunique() > 1 else []:
        axes = axes_of(_rows(frame, signal))
        if not axes or over and over not in axes:
            continue
        points = [over, "step", "tokens"] if over else axes
        others = scores[scores["stage"] != signal.partition(".")[0]]
        try:
            both = beside(frame, signal, others)
        except ValueError:  # several numbers at one point: no signal of checkpoints
            continue
        found += [(signal, score, rank, part) for score, rank, part in islice(_ranked(both, signal, points), most)]
        if len(found) >= most:
            break
    found = found[:most]
    adjusted = holm([rank.p for _, _, rank, _ in found])
    made = [
        Signal(signal=signal, score=score, rank=rank, p_holm=float(p), pairs=part)
        for (signal, score, rank, part), p in zip(found, adjusted)
    ]
    return sorted(made, key=lambda one: (one.rank.p, one.signal, one.score))
