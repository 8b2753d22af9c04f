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
from markupsafe import Markup

from toolkit.analysis.figures import Panel, curves, losses
from toolkit.analysis.gaps import keys, show
from toolkit.analysis.graph import dag_svg
from toolkit.analysis.origin import duration, origin
from toolkit.analysis.payload import head, script_json, table_payload, visible
from toolkit.analysis.suspects import checkpoint_axis, suspects
from toolkit.analysis.table import counts, measure
from toolkit.failures import POLICY, Failure
from toolkit.plan import CellState, StagePlan
from toolkit.study import Cell

PAGE = Path(__file__).parent / "page"
PROMPTS, ANSWERS = 6, 24
LOG_LINES = 20
FAILURES = 50


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
    table = measure(cells, states, folders, axes, index)
    over = checkpoint_axis(keys(table))
    panels, left_out = curves(table, over) if over else ([], 0)
    shown = {
        "curves": [p for p in panels if p.task is not None],
        "others": [p for p in panels if p.task is None],
        "losses": losses(cells, folders),
    }
    context = {
        "name": name,
        "text": text,
        "made": made or datetime.now(UTC),
        "cells": len(cells),
        "counts": counts(cells, states),
        "suspects": suspects(table),
        "dag": Markup(dag_svg(stages(cells, states))),
        "panels": shown,
        "panels_left_out": left_out,
        "samples": samples(cells, folders),
        "failures": failures(cells, states, logs or {}),
        "failure_limit": FAILURES,
        "blocked": [(c.name, states[c.fingerprint].message) for c in cells if states[c.fingerprint].state == "blocked"],
        "origin": origin(cells, states, folders),
        "table": (payload := table_payload(table)),
        "figures_json": Markup(script_json(_figures(shown))),
        "table_json": Markup(script_json(payload)),
    }
    return _write(path, _render(context))


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


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt of a generating stage, and what each of its cells answered: (cell, answer, is it the gold answer)."""

    stage: str
    prompt: str
    gold: str
    answers: Sequence[tuple[str, str, bool | None]]
    left_out: int


def samples(cells: Sequence[Cell], folders: Mapping[str, Path]) -> list[Sample]:
    """The first prompts of every stage that leaves `predictions.parquet`, with the answers of up to `ANSWERS` cells."""
    found: dict[str, dict[tuple[str, str], list[tuple[str, dict[str, str]]]]] = {}
    for cell in cells:
        path = folders.get(cell.fingerprint, Path()) / "predictions.parquet"
        if cell.fingerprint in folders and path.exists():
            prompts = found.setdefault(cell.stage, {})
            for row in head(path, ("id", "prompt", "prediction", "gold"), PROMPTS):
                prompts.setdefault((row.get("id", ""), row.get("prompt", "")), []).append((_coordinates(cell), row))
    return [
        _sample(stage, prompt, rows)
        for stage, prompts in found.items()
        for (_, prompt), rows in list(prompts.items())[:PROMPTS]
    ]


def _coordinates(cell: Cell) -> str:
    return ", ".join(f"{axis} {show(value)}" for axis, value in cell.coords.items()) or cell.stage


def _sample(stage: str, prompt: str, rows: Sequence[tuple[str, Mapping[str, str]]]) -> Sample:
    answers = []
    for cell, row in rows[:ANSWERS]:
        prediction, gold = row.get("prediction", ""), row.get("gold")
        answers.append((cell, prediction, None if gold is None else prediction.strip() == gold.strip()))
    gold = rows[0][1].get("gold", "")
    return Sample(stage=stage, prompt=prompt, gold=gold, answers=answers, left_out=max(len(rows) - ANSWERS, 0))


def _figures(panels: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    return {
        f"{group}-{i}": panel.figure.to_plotly_json() | {"metric": panel.metric, "task": panel.task}
        for group, some in panels.items()
        for i, panel in enumerate(some)
    }


def _render(context: Mapping[str, Any]) -> str:
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (PAGE / "report.js").read_text()]
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
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    return environment.get_template("report.html.j2")


def _write(path: Path, page: str) -> Path:
    """By rename, so that a browser never loads half a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(page.encode("utf-8", "replace"))
    part.replace(path)
    return path
