"""The report of a study: one HTML file that opens offline, made from what is committed and what is missing.

Nothing in it is loaded from elsewhere, and a content security policy with the digests of its own scripts forbids any
other script to run: texts that models wrote are escaped by the template, and would be inert even if they were not.
"""

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
from markupsafe import Markup

from toolkit.analysis.browse import item_sets
from toolkit.analysis.contents import contents
from toolkit.analysis.gaps import spread_gaps
from toolkit.analysis.graph import dag_svg
from toolkit.analysis.lineage import lineage
from toolkit.analysis.origin import duration, origin
from toolkit.analysis.payload import label, packed_json, script_json, spelled, table_payload, visible
from toolkit.analysis.signals import MOST as SIGNALS
from toolkit.analysis.suspects import suspects
from toolkit.analysis.table import counts, measure
from toolkit.failures import POLICY, Failure
from toolkit.plan import CellState, StagePlan
from toolkit.study import Cell

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("core.js", "draw.js", "explore.js", "items.js", "table.js", "start.js")
TITLES = {
    "overview": "Overview", "curves": "Curves", "heat": "Heat map", "comparisons": "Comparisons", "merges": "Merges",
    "dynamics": "Dynamics", "signals": "Signals", "weights": "Weights", "figures": "Figures", "items": "Items",
    "table": "Table", "losses": "Losses", "failures": "Failures", "provenance": "Provenance",
}  # fmt: skip
LOG_LINES, FAILURES, FINDINGS = 20, 50, 12


def write_report(
    path: Path,
    *,
    name: str,
    text: str,
    cells: Sequence[Cell],
    states: Mapping[str, CellState],
    folders: Mapping[str, Path],
    axes: Sequence[str],
    logs: Mapping[str, str] | None = None,
    index: Path | None = None,
    made: datetime | None = None,
) -> Path:
    """Write the report of a study to `path` and return it; an older one is replaced at once.

    Args:
        name, text: of the study; `text` is its YAML file.
        cells, states, folders, axes, index: as for `toolkit.analysis.table.measure`.
        logs: fingerprint -> end of the log, for cells that failed.
        made: the moment that the report shows; now by default.

    Raises:
        ValueError: an artifact's rows are malformed, or an axis has the name of a column.
    """
    table = _labelled(measure(cells, states, folders, axes, index))
    shown = contents(table, cells, folders)
    head, block = table_payload(spread_gaps(table))
    items = item_sets(cells, folders)
    blocked = [(c.name, states[c.fingerprint].message) for c in cells if states[c.fingerprint].state == "blocked"]
    failed = failures(cells, states, logs or {})
    present = _present(table, shown, items, failed or blocked)
    context = {
        "name": name,
        "text": text,
        "made": made or datetime.now(UTC),
        "cells": len(cells),
        "counts": counts(cells, states),
        "sections": [(id_, title) for id_, title in TITLES.items() if present.get(id_, True)],
        "suspects": suspects(table),
        "dag": Markup(spelled(dag_svg(stages(cells, states)))),
        "failures": failed,
        "failure_limit": FAILURES,
        "finding_limit": FINDINGS,
        "signal_limit": SIGNALS,
        "blocked": blocked,
        "origin": origin(cells, states, folders),
        "table": head,
        "page_json": Markup(script_json({**shown.pop("page"), "table": head})),
        "blocks": {
            "table-data": block,
            "lineage-data": packed_json(lineage(cells, states, folders)),
            "items-data": packed_json(items),
            "charts-data": packed_json(shown.pop("charts")),
        }.items(),
        **shown,
    }
    return _write(path, _render(context))


def _labelled(table: pa.Table) -> pa.Table:
    """With names of columns that can be shown: an axis is called as its study likes."""
    about = table.schema.metadata  # renaming drops it, and with it which harness scored what
    return table.rename_columns([label(name) for name in table.column_names]).replace_schema_metadata(about)


def _present(table: pa.Table, shown: Mapping[str, Any], items: Any, failed: Any) -> dict[str, bool]:
    """Section -> whether the study has what it needs; the others are always there."""
    return {
        "curves": bool(shown["page"]["over"]), "heat": table.num_rows > 0, "items": bool(items),
        "comparisons": bool(shown["compared"].rows or shown["compared"].notes or shown["seeds"]),
        "merges": bool(shown["merges"] or shown["merge_notes"]), "dynamics": bool(shown["summaries"]),
        "signals": bool(shown["signals"].rows), "weights": bool(shown["weights"]),
        "failures": bool(failed),
        "figures": bool(shown["charts"]["figures"] or shown["figure_notes"]), "losses": bool(shown["charts"]["losses"]),
    }  # fmt: skip


def stages(cells: Sequence[Cell], states: Mapping[str, CellState]) -> list[StagePlan]:
    """The stages of the cells with their axes, inputs and counts of states, in the order of the cells."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.stage, []).append(cell)
    boxes = []
    for stage, members in groups.items():
        axes = list(dict.fromkeys(axis for cell in members for axis in cell.coords))
        inputs = list(dict.fromkeys(above.stage for cell in members for above in cell.inputs.values()))
        boxes.append(
            StagePlan(
                stage=stage, job=members[0].job, axes=axes, inputs=inputs, states=Counter(counts(members, states))
            )
        )
    return boxes


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A failed cell: what happened, what to do, and the end of its log."""

    name: str
    reason: str
    message: str
    remedy: str
    attempt: int
    log: str


def failures(cells: Sequence[Cell], states: Mapping[str, CellState], logs: Mapping[str, str]) -> list[Failed]:
    """Every failed cell in the order of the study."""
    found = []
    for cell in cells:
        state = states[cell.fingerprint]
        if state.state == "failed":
            tail = "\n".join(logs.get(cell.fingerprint, "").splitlines()[-LOG_LINES:])
            known = state.reason in Failure.__members__
            found.append(
                Failed(
                    name=cell.name,
                    reason=state.reason,
                    message=state.message,
                    remedy=POLICY[Failure(state.reason)].remedy if known else "",
                    attempt=state.attempt,
                    log=visible(tail.encode("utf-8", "replace"), 8000),
                )
            )
    return found


def _render(context: Mapping[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), "\n".join((PAGE / script).read_text() for script in SCRIPTS)]
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"
    )
    styles = Markup((PAGE / "report.css").read_text())
    return _template().render(**context, policy=policy, scripts=[Markup(s) for s in scripts], styles=styles)


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(PAGE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=lambda value: spelled(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.filters["duration"] = duration
    return environment.get_template("report.html.j2")


def _write(path: Path, page: str) -> Path:
    """By rename, so that a browser never loads half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(page.encode("utf-8", "replace"))
    part.replace(path)
    return path
