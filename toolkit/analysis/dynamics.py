"""What tuning does to checkpoints: operations on the long table, as a pandas frame (`toolkit.analysis.load`).

Every function takes rows and gives rows. `gain` pairs each tuned model with the checkpoint that it was tuned from; the
others average, compare or fit what it returns. A pair that lacks a number stays, as NaN, and is counted as missing.

A tuned model is a row whose column `by` (train, recipe, model) is not `base`. It belongs to the base row that has the
same coordinates on every axis that base rows have: step, format, shots, task, metric and the like.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from toolkit.analysis.gaps import NOT_KEYS
from toolkit.analysis.stats import holm, mean_interval
from toolkit.analysis.trends import change_point, rank_correlation, slope
from toolkit.lookup import unknown

Pairs = Iterable[tuple[str, str]]  # (tuned on, evaluated on)


def gain(frame: pd.DataFrame, by: str = "train", base: str = "base") -> pd.DataFrame:
    """FT - BASE: what tuning adds to each checkpoint (Amuro & Char, arXiv 2408.06663, section 5 and Table 6).

    gain = tuned - base; relative = gain / base, NaN where base is 0; gain_stderr = sqrt(stderr^2 + base_stderr^2) takes
    the two as independent: on the same items it is too wide, and `paired.compare` is right.

    Returns:
        The rows of tuned models with the columns base, base_stderr, gain, gain_stderr and relative beside their own.

    Raises:
        ValueError: no such column or base, or two base rows for one tuned row (the message names them).
    """
    if by not in frame:
        raise ValueError(unknown("column", by, map(str, frame.columns)))
    below, above = frame[frame[by] == base], frame[(frame[by] != base) & frame[by].notna()]
    if below.empty:
        raise ValueError(unknown(f"value of {by!r}", base, map(str, frame[by].dropna().unique())))
    on = [c for c in frame.columns if c not in (*NOT_KEYS, by, "stage") and below[c].notna().any()]
    base_rows = below[[*on, "value", "stderr"]].rename(columns={"value": "base", "stderr": "base_stderr"})
    twice = base_rows[base_rows.duplicated(on)]
    if len(twice):
        where = ", ".join(f"{k} {v}" for k, v in twice.iloc[0][on].items() if pd.notna(v))
        raise ValueError(f"two rows with {by} = {base!r} have {where}: choose among them before")
    found = above.merge(base_rows, how="left", on=on, validate="many_to_one")
    found["gain"] = found["value"] - found["base"]
    found["gain_stderr"] = np.sqrt(found["stderr"] ** 2 + found["base_stderr"] ** 2)
    found["relative"] = found["gain"] / found["base"].where(found["base"] != 0)
    return found


def average(
    gains: pd.DataFrame,
    pairs: Pairs,
    over: Sequence[str] = ("step",),
    value: str = "gain",
    by: str = "train",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The mean of `value` over (tuned on, evaluated on) pairs, at each point of `over` (nothing: over all of them).

    mean = sum of value / n over the pairs that have a number; a pair that is listed twice counts twice. sd is their
    standard deviation (n - 1), low and high are Student's t interval of the mean over pairs: it holds the spread
    between tasks, which is far above sampling error. `missing` pairs have no number (not run, a base of 0, or no row
    at all where others of the same point have one).

    Raises:
        ValueError: an unknown column; a pair that no row has; several rows for one pair (choose shots, format and
            metric before).
    """
    for name in (by, *over):
        if name not in gains:
            raise ValueError(unknown("column", name, map(str, gains.columns)))
    wanted = pd.DataFrame(list(pairs), columns=[by, "task"])
    known = gains[[by, "task"]].drop_duplicates()
    lost = wanted.merge(known, how="left", indicator=True).query("_merge == 'left_only'")
    if len(lost):
        raise ValueError(f"no row of a model with {by} {lost.iloc[0][by]!r} on task {lost.iloc[0]['task']!r}")
    rows = wanted.reset_index(names="pair").merge(gains, on=[by, "task"])
    _one_each(rows, [*_points(rows), "pair"], by)
    groups = rows.groupby(list(over), sort=True, dropna=False) if over else [((), rows)]
    found = []
    for key, part in groups:
        numbers = part[value].dropna().to_numpy(np.float64)
        mean, low, high = mean_interval(numbers, confidence) if len(numbers) else (np.nan,) * 3
        sd = numbers.std(ddof=1) if len(numbers) > 1 else np.nan
        line = {
            "mean": mean,
            "low": low,
            "high": high,
            "sd": sd,
            "n": len(numbers),
            "missing": len(part) - len(numbers) + _absent(wanted, part, dict(zip(over, key))),
        }
        found.append({**dict(zip(over, key)), **line})
    return pd.DataFrame(found)


def _absent(wanted: pd.DataFrame, part: pd.DataFrame, at: Mapping[str, Any]) -> int:
    """Places of the pairs that have no row in `part`, which is what is at `at`."""
    names = [name for name in wanted.columns if name in at]
    asked = wanted[(wanted[names] == [at[name] for name in names]).all(axis=1)]
    points = [name for name in ("step", "tokens", "seed", "source") if name in part]
    return int((~asked.index.isin(part["pair"])).sum()) * (len(part[points].drop_duplicates()) if points else 1)


def mean_relative_change(
    gains: pd.DataFrame, pairs: Pairs, over: Sequence[str] = ("train", "step"), by: str = "train"
) -> pd.DataFrame:
    """How tuning on t changes other tasks: the mean over other tasks d of (Perf_t(d) - Base(d)) / Base(d).

    `pairs` are (t, d) with d another task than t. With over=("train",) the checkpoints are pooled: the mean over all
    (checkpoint, d). Amuro & Char, arXiv 2408.06663 v5, cross-task results.
    """
    return average(gains, pairs, over, "relative", by)


def forgetting(
    gains: pd.DataFrame, pairs: Pairs, over: Sequence[str] = ("train", "step"), by: str = "train"
) -> pd.DataFrame:
    """What tuning on t takes from tasks that it does not train: the mean over d of Base(d) - Perf_t(d).

    Above 0 is lost: the drop that J. Kirkpatrick et al., PNAS 114 (2017), 3521-3526, show, from the checkpoint on.
    """
    return average(gains.assign(forgotten=-gains["gain"]), pairs, over, "forgotten", by)


def transfer(
    gains: pd.DataFrame,
    in_domain: Pairs,
    out_of_domain: Pairs,
    over: Sequence[str] = ("train", "step"),
    by: str = "train",
) -> pd.DataFrame:
    """Out-of-domain transfer: the mean gain on other data of the task, and its share of the gain on its own data.

    transfer = mean gain over out-of-domain pairs; share = transfer / mean gain over in-domain pairs, NaN where tuning
    gained nothing. Amuro & Char, arXiv 2408.06663 v5, cross-domain results (transfer alone).
    """
    keys = list(over)
    own = average(gains, in_domain, over, by=by)[[*keys, "mean"]].rename(columns={"mean": "in_domain"})
    found = average(gains, out_of_domain, over, by=by).rename(columns={"mean": "transfer"})
    both = found.merge(own, how="left", on=keys) if keys else found.assign(in_domain=own["in_domain"].iloc[0])
    both["share"] = both["transfer"] / both["in_domain"].where(both["in_domain"] > 0)
    return both


def format_sensitivity(frame: pd.DataFrame, form: str = "format") -> pd.DataFrame:
    """How far the wording of a prompt moves a score: over the formats f of one model and task.

    range = max_f - min_f, sd with n - 1, relative = range / mean_f; `formats` counts those that have a number, and a
    model with one of them has no range. M. Sclar et al., "Quantifying language models' sensitivity to spurious features
    in prompt design", ICLR 2024 (the range, there called spread).
    """
    keys = [c for c in _points(frame) if c != form]
    groups = frame.dropna(subset=["value", form]).groupby(keys, sort=True, dropna=False)["value"]
    found = groups.agg(formats="count", mean="mean", low="min", high="max", sd="std").reset_index()
    found["range"] = (found["high"] - found["low"]).where(found["formats"] > 1)
    found["relative"] = found["range"] / found["mean"].where(found["mean"] != 0)
    return found


def learned_in(
    frame: pd.DataFrame, by: str = "train", base: str = "base", over: str = "tokens", least: float = 0.1
) -> pd.DataFrame:
    """Which tasks base checkpoints learn by themselves: `pretraining`, or else `finetuning` (if at all, by tuning).

    A task is learned in pre-training if the base's slope over log tokens is above 0 (the whole 95 % interval) and its
    score rises by `least` or more from the first checkpoint to the last. Amuro & Char (arXiv 2408.06663) sort by eye;
    `least` was chosen so that the rule gives their groups.
    """
    found = []
    for key, part in _curves(frame[frame[by] == base], over, [by]):
        line = slope(part[over], part["value"])
        rise = float(part["value"].iloc[-1] - part["value"].iloc[0])
        group = "pretraining" if line.low > 0 and rise >= least else "finetuning"
        found.append({**key, "slope": line.slope, "low": line.low, "high": line.high, "rise": rise, "group": group})
    return pd.DataFrame(found)


def revealed_by_tuning(gains: pd.DataFrame, over: str = "tokens") -> pd.DataFrame:
    """Knowledge that only tuning shows: more pre-training helps the tuned model, and the base does not show it.

    Slopes over log tokens of base, tuned and gain, each with its 95 % interval; `revealed` where the interval of the
    gain's slope is above 0 and that of the base's is not. Amuro & Char, arXiv 2408.06663: "continual pre-training
    improves the model in a latent way that unveils after fine-tuning".
    """
    found = []
    for key, part in _curves(gains.dropna(subset=["gain"]), over, []):
        lines = {name: slope(part[over], part[name]) for name in ("base", "value", "gain")}
        columns = {
            f"{name}_{end}": getattr(line, end) for name, line in lines.items() for end in ("slope", "low", "high")
        }
        revealed = lines["gain"].low > 0 >= lines["base"].low
        found.append({**key, **columns, "checkpoints": len(part), "revealed": revealed})
    return pd.DataFrame(found).rename(columns=lambda c: c.replace("value_", "tuned_"))


def slopes(frame: pd.DataFrame, over: str = "tokens") -> pd.DataFrame:
    """How every score moves over log10(`over`): `trends.slope` of each curve of three checkpoints or more, and its
    p-value adjusted by Holm over all of them."""
    found = []
    for key, part in _curves(frame, over, []):
        found.append({**key, **asdict(slope(part[over], part["value"]))})
    return _adjusted(found)


def breaks(frame: pd.DataFrame, over: str = "tokens") -> pd.DataFrame:
    """Where the slope of every score changes: `trends.change_point` of each curve of six checkpoints or more, and its
    p-value adjusted by Holm over all of them."""
    found = []
    for key, part in _curves(frame, over, []):
        if len(part) >= 6 and part[over].nunique() >= 5:
            found.append({**key, **asdict(change_point(part[over], part["value"]))})
    return _adjusted(found)


def ranks(gains: pd.DataFrame, over: str = "tokens") -> pd.DataFrame:
    """Whether the base's score ranks checkpoints as the tuned model's does: `trends.rank_correlation` of each curve of
    four checkpoints or more, and its p-value adjusted by Holm over all of them."""
    found = []
    for key, part in _curves(gains.dropna(subset=["gain"]), over, []):
        if len(part) >= 4 and min(part["base"].nunique(), part["value"].nunique()) > 1:
            found.append({**key, **asdict(rank_correlation(part["base"], part["value"]))})
    return _adjusted(found)


def _adjusted(found: Sequence[Mapping[Any, Any]]) -> pd.DataFrame:
    """The lines as a frame, with p-values adjusted by Holm over all of them."""
    return pd.DataFrame(found).assign(p_holm=holm([line["p"] for line in found]))


def _points(frame: pd.DataFrame) -> list[str]:
    """The columns that tell one measurement from another, in a frame that functions here may have added columns to."""
    added = {"base", "base_stderr", "gain", "gain_stderr", "relative", "forgotten", "pair"}
    return [c for c in frame.columns if c not in (*NOT_KEYS, *added, "stage") and frame[c].notna().any()]


def _curves(frame: pd.DataFrame, over: str, without: Sequence[str]) -> Iterable[tuple[Mapping[Any, Any], pd.DataFrame]]:
    """Each line of three checkpoints or more in the order of `over`; what varies with the checkpoint is no key."""
    rows = frame.dropna(subset=["value", over]).query(f"`{over}` > 0")
    keys = [c for c in _points(rows) if c not in (over, "step", "tokens", *without)]
    for _, part in rows.groupby(keys, sort=True, dropna=False):
        if part[over].nunique() > 2:
            yield part[keys].iloc[0].dropna().to_dict(), part.sort_values(over)


def _one_each(rows: pd.DataFrame, keys: Sequence[str], by: str) -> None:
    """Raise where a pair has several rows at one checkpoint: the mean would weigh it by them."""
    inside = ["pair", *(c for c in ("step", "tokens", "seed") if c in rows)]
    several = rows[rows.duplicated(inside, keep=False)]
    if len(several):
        first = several[several["pair"] == several["pair"].iloc[0]]
        differ = [c for c in keys if first[c].nunique(dropna=False) > 1 and c not in inside]
        name, task = first.iloc[0][by], first.iloc[0]["task"]
        raise ValueError(
            f"several rows of a model with {by} {name!r} on task {task!r} at one checkpoint: they differ in "
            f"{', '.join(differ) or 'nothing'}; choose one of each before"
        )
