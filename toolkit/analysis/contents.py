"""What the report's page shows beside the table: scales and levels of guessing, findings, comparisons, merges,
dynamics, signals, weights, figures. Each of these is there where the study has what it needs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.analysis import guards, merges, weights
from toolkit.analysis.axis import scales
from toolkit.analysis.bases import base_of
from toolkit.analysis.charts import COLOURS, Chart, scatter, to_json
from toolkit.analysis.comparisons import comparisons, pairs, seed_spreads
from toolkit.analysis.formats import with_interval
from toolkit.analysis.gaps import encode, keys, spread_gaps
from toolkit.analysis.losses import losses
from toolkit.analysis.payload import chance_labels, label
from toolkit.analysis.stats import PROPORTIONS
from toolkit.analysis.summary import MOST, Listed, summaries
from toolkit.analysis.suspects import checkpoint_axis
from toolkit.lookup import find
from toolkit.manifest import record
from toolkit.study import Cell

if TYPE_CHECKING:
    import pandas as pd

    from toolkit.analysis.signals import Signal

ROWS = 10_000  # of a table that dynamics, signals and figures are worked out for, which takes some ten seconds
STUDENT = 200  # degrees of freedom that the page has a quantile for
SCATTERS = 12
SAID = {  # of what the record of an evaluation counts: how many, the task, in how many cells, of which stage
    "truncated_requests": "up to {} prompts of {} were longer than the context in {} cells of {}: their first tokens, "
    "hence demonstrations, were dropped; ask with fewer shots",
    "left_out": "up to {} items of {} were not scored in {} cells of {}: a limit is in the spec",
}
LIKELY = 0.05  # ties that are no less likely than this are no finding


def contents(table: pa.Table, cells: Sequence[Cell], folders: Mapping[str, Path]) -> dict[str, Any]:
    """What `report.html.j2` needs by name; `page` and `charts` are for the scripts."""
    from toolkit.analysis import to_frame
    from toolkit.analysis.signals import signals

    over, base = checkpoint_axis(keys(table)), base_of(cells, table)
    compared = comparisons(pairs(cells, folders, base, over), folders)
    merged = merges.kept(cells, folders)
    sizes = weights.measured(cells, folders)
    seeds, unpaired = seed_spreads(cells, folders)
    frame = to_frame(spread_gaps(table)) if (over or sizes) and table.num_rows <= ROWS else None
    tables = summaries(frame, *base, over) if frame is not None and base and over else []
    if frame is None and base and over:
        about = f"Left out of the page of a table of {table.num_rows:,} rows: `tidemark dynamics` works it out."
        tables = [Listed(title="Change by tuning", about=about, headers=(), rows=(), left=0)]
    listed, scatters = _signals(signals(frame, over) if frame is not None and over else [], "Rank correlations")
    found = weights.criterion(frame) if frame is not None and sizes else []
    predicted, pairs_drawn = _signals(found, "Does |change| / |delta| rank what is reached?")
    figures, notes = _figures(cells, frame, over)
    drawn: dict[str, list[tuple[str, Chart, str]]] = {
        "figures": figures,
        "signals": scatters,
        "weights": [*_layers(sizes), *pairs_drawn],
        "losses": [(stage, chart, "") for stage, chart in losses(cells, folders)],
    }
    return {
        "page": _page(table, chances(cells, folders), over, base),
        "findings": findings(table, cells, folders),
        "compared": replace(compared, notes=[*compared.notes, *unpaired]),
        "seeds": seeds,
        "merges": merges.listed(merged.rows),
        "merge_notes": merged.notes,
        "merges_left_out": merged.left_out,
        "base": base,
        "summaries": tables,
        "signals": listed,
        "weights": _sizes(sizes),
        "criterion": predicted,
        "figure_notes": notes,
        "charts": {section: [_drawn(*one) for one in some] for section, some in drawn.items()},
    }


def _drawn(name: str, chart: Chart, about: str) -> dict[str, Any]:
    return {"name": name, "chart": to_json(chart), "about": about}


def _page(
    table: pa.Table, chance: Mapping[str, float], over: str | None, base: tuple[str, str] | None
) -> dict[str, Any]:
    from scipy.special import stdtrit

    axes = [name for name in keys(table) if name not in ("stage", "task", "metric")]
    labels = {axis: [at for at in encode(table[axis])[1] if at is not None] for axis in axes}
    placed = {axis: {n: to_json_scale(s) for n, s in scales(at, axis).items()} for axis, at in labels.items() if at}
    return {
        "over": over,
        "base": base and {"axis": base[0], "label": label(base[1])},
        "axes": placed,
        "follows": {axis: [other for other in axes if other != axis and _follows(table, axis, other)] for axis in axes},
        "chance": chance_labels(chance),
        "proportions": PROPORTIONS,
        "student": stdtrit(np.arange(1, STUDENT + 1), 0.975).tolist(),
        "colours": COLOURS,
    }


def to_json_scale(scale: Any) -> dict[str, Any]:
    return {
        "x": scale.x,
        "ticks": scale.ticks,
        "labels": [label(text) for text in scale.labels],
        "title": label(scale.title),
    }


def _follows(table: pa.Table, axis: str, other: str) -> bool:
    """Whether a coordinate of `axis` decides that of `other` where there is one, as a step decides its tokens; only
    numbers follow."""
    one, two = table[axis], table[other]
    if any(pa.types.is_dictionary(column.type) for column in (one, two)):
        return False
    both = table.select([axis, other]).group_by([axis, other]).aggregate([])
    known = both[other].drop_null()
    return both.num_rows == len(one.unique()) and 0 < len(known) == len(known.unique())


def chances(cells: Sequence[Cell], folders: Mapping[str, Path]) -> dict[str, float]:
    """The level of guessing of each task: from the items of the first cell that has it, or as published tables say."""
    found: dict[str, float] = {}
    seen: set[tuple[str, str]] = set()
    for cell in cells:
        if cell.job == "published" and cell.fingerprint in folders:
            source = find("toolkit.analysis.published", cell.spec["source"], "source")
            found = {**getattr(source, "CHANCE", {}), **found}
        path, kind = folders.get(cell.fingerprint, Path()) / "items.parquet", (cell.stage, str(cell.spec.get("tasks")))
        if cell.fingerprint in folders and kind not in seen and path.is_file():
            seen.add(kind)
            found = {**guards.chance(pq.read_table(path, columns=["task", "loglikelihoods"])), **found}
    return found


def findings(table: pa.Table, cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[str]:
    """What a careful reader would object to, each sentence once: of the table, and of the items of done cells. Of
    scores that models share, those that chance explains are counted."""
    told = guards.findings(table)
    tied = [said for said in told if "by chance: " in said and float(said.split("by chance: ")[1].rstrip(")")) > LIKELY]
    found = dict.fromkeys(said for said in told if said not in tied)
    if tied:
        found[f"{len(tied)} scores are shared by models as chance would have it (`tidemark check` lists them)"] = None
    found |= dict.fromkeys(item_findings(cells, folders))
    try:
        guards.one_harness(table)
    except ValueError as error:
        found[str(error)] = None
    return list(found)


def item_findings(cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[str]:
    """What is wrong with the items of done cells, each sentence once."""
    found: dict[str, None] = {}
    counts: dict[tuple[str, str, str], list[int]] = {}
    for cell in cells:
        path = folders.get(cell.fingerprint, Path()) / "items.parquet"
        if cell.fingerprint in folders and path.is_file():
            found |= dict.fromkeys(guards.single_class(pq.read_table(path, columns=["task", "gold"])))
            made = record.read(path.parent)
            for what in SAID:
                for task, count in guards.counted(made, what).items():
                    counts.setdefault((what, cell.stage, task), []).append(count)
    told = (SAID[what].format(max(n), task, len(n), stage) for (what, stage, task), n in counts.items())
    return [*found, *told]


def _sizes(sizes: Mapping[str, Mapping[str, weights.Rows]]) -> list[Listed]:
    """A table for each stage that measured, cut where it would fill the page."""
    made = []
    for stage, sets in sizes.items():
        headers, rows = weights.listed(sets)
        cut = f"The first {MOST} of {len(rows)} rows; `tidemark weights` prints the others." if len(rows) > MOST else ""
        made.append(Listed(title=stage, about=cut, headers=headers, rows=rows[:MOST], left=2))
    return made


def _layers(sizes: Mapping[str, Mapping[str, weights.Rows]]) -> list[tuple[str, Chart, str]]:
    drawn = [(stage, weights.by_layer(sets), len(sets)) for stage, sets in sizes.items()]
    cut = "The first {} of {} are drawn."
    return [
        (f"{stage}, by layer", chart, cut.format(weights.MOST, count) if count > weights.MOST else "")
        for stage, chart, count in drawn
        if chart is not None
    ]


def _signals(found: "Sequence[Signal]", title: str) -> tuple[Listed, list[tuple[str, Chart, str]]]:
    """Rank correlations as a table and, of the first, as scatters."""
    rows = [
        [
            one.signal,
            one.score,
            with_interval(one.rank.value, one.rank.low, one.rank.high),
            f"{one.p_holm:.2g}",
            str(one.rank.n),
        ]
        for one in found[:MOST]
    ]
    drawn = [
        (
            f"{one.signal} and {one.score}",
            scatter(one.pairs.rename(columns={"value": "score"}), one.signal, "score"),
            "",
        )
        for one in found[:SCATTERS]
    ]
    headers = ["signal", "of the score", "rho", "p (Holm)", "pairs"]
    return Listed(title=title, about="", headers=headers, rows=rows, left=2, more=max(0, len(found) - MOST)), drawn


def _figures(
    cells: Sequence[Cell], frame: "pd.DataFrame | None", over: str | None
) -> tuple[list[tuple[str, Chart, str]], list[str]]:
    """The figures of every publication whose tables the study reads, and what cannot be drawn."""
    sources = list(dict.fromkeys(str(cell.spec["source"]) for cell in cells if cell.job == "published"))
    made: list[tuple[str, Chart, str]] = []
    notes: list[str] = []
    for source in sources if frame is not None else []:
        module = find("toolkit.analysis.published", source, "source")
        for name, draw in module.figures(frame).items() if hasattr(module, "figures") else ():
            try:
                made.append((name.replace("-", " "), draw(), module.ABOUT[name]))
            except ValueError as error:
                notes.append(f"{source}, {name}: {error}")
    return made, notes
