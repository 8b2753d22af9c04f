"""Does a merged model do what the models that it was made of can do? Item by item, with intervals.

A merge is made to have what its parents have: one answers, say, and the other has read the text. Where one parent is
better than the other, the share of that lead which the merge keeps says how far it got, from 0 (no better than the
weaker parent) to 1 (as good as the better one). Held against the better parent, it is worse, or better than either.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from toolkit.analysis import items
from toolkit.analysis.formats import number, with_interval
from toolkit.analysis.gaps import show
from toolkit.analysis.paired import Comparison, compare
from toolkit.analysis.stats import Numbers, holm, resampled
from toolkit.analysis.summary import MOST, Listed
from toolkit.study import Cell

if TYPE_CHECKING:
    import pandas as pd

LEVEL, RESAMPLES = 0.05, 2000
ITEMS = 400_000  # that are read for a page, of all merges and parents together
NOT_PARENTS = ("base", "fisher")  # inputs of a merge that it is not meant to have anything of


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A score of a merged model (of `cell`) beside the better and the weakest of its parents, on the same items.

    lead: the better parent against the weakest. share: of the lead that the merge keeps, with a 95 % interval (the
    percentile bootstrap over items; B. Efron, R. J. Tibshirani, "An introduction to the bootstrap" (1993), chapter 13);
    None where the parents cannot be told apart (p of `lead` at least 0.05). against: the merge against the better
    parent. p_holm: its p-value, adjusted over all that were compared.
    """

    cell: Cell
    score: str
    merged: Cell
    better: Cell
    weakest: Cell
    lead: Comparison
    share: tuple[float, float, float] | None
    against: Comparison
    p_holm: float = 1.0

    @property
    def verdict(self) -> str:
        return self.against.verdict(p=self.p_holm)


@dataclass(frozen=True, kw_only=True)
class Found:
    """`rows` in the order of the study, how many scores are left out, and why some could not be compared."""

    rows: Sequence[Kept]
    left_out: int
    notes: Sequence[str]


def kept(cells: Sequence[Cell], folders: Mapping[str, Path], most: int | None = ITEMS) -> Found:
    """Every score of every merged model that its parents have, too. most: items to read, all if None."""
    read = lru_cache(maxsize=256)(items.read_all)
    scored = {
        _place(cell, model): cell
        for cell in cells
        if (folders.get(cell.fingerprint, Path()) / "items.parquet").is_file() and (model := asked(cell))
    }
    sets = []
    for place, cell in scored.items():
        merged = asked(cell)
        parents = _parents(merged) if merged else []
        others = [scored[key] for parent in parents if (key := (parent.fingerprint, *place[1:])) in scored]
        if merged and len(parents) == len(others) > 1:
            sets.append((" · ".join([cell.stage, *place[2]]), merged, parents, [cell, *others]))
    rows: list[Kept] = []
    notes: dict[str, None] = {}
    spent = 0
    for done, (score, merged, parents, measured) in enumerate(sets):
        if most is not None and spent >= most:
            return _adjusted(rows, len(sets) - done, notes)
        tables = [read(folders[one.fingerprint]) for one in measured]
        spent += sum(len(table) for table in tables)
        tasks = items.parts(tables)
        if "predictions" in measured[0].inputs and len(tasks) > 1:  # as in its rows: over all items, then by task
            tasks = {"all": tables, **tasks}
        for task, parts in tasks.items():
            try:
                rows.append(_kept(f"{score} · {task}", measured[0], merged, parents, parts))
            except ValueError as error:
                notes[f"{score} of {merged.name}, {task}: {error}"] = None
    return _adjusted(rows, 0, notes)


def asked(cell: Cell) -> Cell | None:
    """The model that an evaluated cell measures, by itself or by its predictions; None for another cell."""
    if cell.job != "evaluate":
        return None
    above: Cell | None = cell
    while above is not None and above.job in ("evaluate", "generate"):
        above = above.inputs.get("model") or above.inputs.get("predictions")
    return above


def _parents(cell: Cell) -> list[Cell]:
    """What a merge was made of, the models alone; none of any other cell."""
    given = cell.inputs.items() if cell.job == "merge" else ()
    return [above for role, above in given if role.partition(".")[0] not in NOT_PARENTS]


def _place(cell: Cell, model: Cell) -> tuple[Any, ...]:
    """A model, and a score of it: the stage, and the coordinates that are not the model's."""
    own = [
        f"{axis} {show(at)}" for axis, at in cell.coords.items()
        if axis not in model.coords and at != model.stage
    ]  # fmt: skip
    return model.fingerprint, cell.stage, tuple(own)


def _kept(score: str, cell: Cell, merged: Cell, parents: Sequence[Cell], tables: Sequence[pa.Table]) -> Kept:
    metric = items.pair(tables[0], tables[1]).metric
    own, *others = items.stack(tables, metric)
    less = compare(own, own, metric=metric).less_is_better
    order = sorted(range(len(parents)), key=lambda at: float(others[at].mean()), reverse=not less)
    better, weakest = order[0], order[-1]
    lead = compare(others[weakest], others[better], metric=metric)
    return Kept(
        cell=cell,
        score=f"{score} · {metric}",
        merged=merged,
        better=parents[better],
        weakest=parents[weakest],
        lead=lead,
        share=_share(own, others[better], others[weakest]) if lead.p < LEVEL else None,
        against=compare(others[better], own, metric=metric),
    )


def _share(merged: Numbers, better: Numbers, weakest: Numbers, seed: int = 0) -> tuple[float, float, float]:
    """mean(merged - weakest) / mean(better - weakest), and its interval."""
    both = np.stack([merged - weakest, better - weakest], axis=1)

    def ratio(drawn: Numbers) -> Numbers:
        means = drawn.mean(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):  # resamples without a lead are at the ends, or nowhere
            return np.asarray(means[:, 0] / means[:, 1])

    low, high = np.nanquantile(resampled(both, RESAMPLES, seed, ratio), (0.025, 0.975))
    return float(ratio(both[None])[0]), float(low), float(high)


def _adjusted(rows: Sequence[Kept], left_out: int, notes: Mapping[str, None]) -> Found:
    adjusted = holm([one.against.p for one in rows])
    return Found(
        rows=[replace(one, p_holm=float(p)) for one, p in zip(rows, adjusted)],
        left_out=left_out,
        notes=list(notes)[:20],
    )


def frame(found: Sequence[Kept]) -> "pd.DataFrame":
    """A row for each, for the command line."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "score": one.score, "merged": one.merged.name, "better": one.better.name, "weakest": one.weakest.name,
                "value": one.against.second, "value_better": one.lead.second, "value_weakest": one.lead.first,
                **dict(zip(("share", "share_low", "share_high"), one.share or (None,) * 3)),
                "difference": one.against.difference, "low": one.against.low, "high": one.against.high,
                "n": one.against.n, "p_holm": one.p_holm, "verdict": one.verdict,
            }
            for one in found
        ]
    )  # fmt: skip


def listed(found: Sequence[Kept]) -> list[Listed]:
    """A table for each score, with what it comes to above it."""
    headers = ["merged", "better parent", "weakest parent", "merged", "better", "weakest", "share of the lead",
               "merged - better", "p (Holm)", "verdict"]  # fmt: skip
    scores: dict[str, list[Kept]] = {}
    for one in found:
        scores.setdefault(one.score, []).append(one)
    made = []
    for score, members in scores.items():
        rows = [
            [
                one.merged.name, one.better.name, one.weakest.name,
                number(one.against.second), number(one.lead.second), number(one.lead.first),
                with_interval(*one.share) if one.share else "–",
                with_interval(one.against.difference, one.against.low, one.against.high),
                f"{one.p_holm:.2g}", one.verdict,
            ]
            for one in members[:MOST]
        ]  # fmt: skip
        more = max(0, len(members) - MOST)
        made.append(Listed(title=score, about=said(members), headers=headers, rows=rows, left=3, more=more))
    return made


def said(rows: Sequence[Kept]) -> str:
    """What the rows of one score come to, stage by stage of merges, in words."""
    sentences = []
    stages: dict[str, list[Kept]] = {}
    for one in rows:
        stages.setdefault(one.merged.stage, []).append(one)
    for stage, members in stages.items():
        ahead = [one for one in members if one.share]
        leaders = Counter(one.better.stage for one in ahead)
        text = f"{stage}: " + (
            ", ".join(f"{leader} leads in {n} of {len(members)}" for leader, n in leaders.items())
            or f"the parents cannot be told apart in any of {len(members)}"
        )
        if ahead:
            shares = [(one.share, one.merged.name) for one in ahead if one.share]
            (least, _), (most, name) = min(shares), max(shares)
            text += f"; the merge keeps {number(least[0])} to " if len(shares) > 1 else "; the merge keeps "
            text += f"{with_interval(*most)} of the lead{f', most as {name}' if len(shares) > 1 else ''}"
        verdicts = Counter(one.verdict for one in members)
        told = [f"{verdicts[v]} {v}" for v in ("better", "worse", "not resolved", "same scores") if verdicts[v]]
        sentences.append(f"{text}. Against the better parent: {', '.join(told)}.")
    return " ".join(sentences)
