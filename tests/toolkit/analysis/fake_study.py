"""A study in the shape of the quickstart, as it may look half way: files and records on disk, some cells missing."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.fingerprint import fingerprint
from toolkit.plan import CellState
from toolkit.stage import Request
from toolkit.study import Cell

STEPS = (0, 30, 100, 300, 1000)
MODELS = ("checkpoint", "tuned", "merged")
TASKS = ("bios_qa", "piqa")
N = 200
TEXT = """name: quickstart  # <b>not bold</b>
stages:
  people:     {job: prepare, spec: {dataset: bios, people: 400, seed: 0}}
  pretrained: {job: train, inputs: {data: people}, spec: {method: pretrain, steps: 1000, seed: 0}}
  checkpoint: {job: convert, inputs: {source: pretrained}, axes: {step: [0, 30, 100, 300, 1000]}}
  tuned:      {job: train, inputs: {model: checkpoint, data: people}, spec: {method: sft, epochs: 2, seed: 0}}
  merged:     {job: merge, inputs: {trained: checkpoint, instruct: {stage: tuned, step: 1000}}, spec: {method: delta}}
  answers:    {job: generate, inputs: {model: [checkpoint, tuned, merged], data: people}, spec: {recipe: predict}}
  quality:    {job: evaluate, inputs: {predictions: answers}, spec: {metrics: [exact_match, f1]}}
  scores:     {job: evaluate, inputs: {model: [checkpoint, tuned, merged]}, axes: {shots: [0, 4]}}
"""
LOG = """step 11 loss 4.1
Traceback (most recent call last):
OSError: [Errno 28] No space left on device <script>alert(1)</script>"""
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@dataclass(kw_only=True)
class FakeStudy:
    """What the command line hands to the analysis."""

    root: Path
    cells: list[Cell] = field(default_factory=list)
    states: dict[str, CellState] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    axes: tuple[str, ...] = ("step", "model", "shots")
    name: str = "quickstart"
    text: str = TEXT

    def add(
        self, stage: str, job: str, state: CellState, *, coords: Any = (), spec: Any = (), inputs: Any = ()
    ) -> Cell:
        coords, spec, inputs = dict(coords), dict(spec), dict(inputs)
        print_ = fingerprint(job, 1, {**spec, "stage": stage, **coords}, {k: c.fingerprint for k, c in inputs.items()})
        cell = Cell(
            stage=stage, job=job, version=1, coords=coords, spec=spec, inputs=inputs, fingerprint=print_, label=stage,
            resources=Request(),
        )  # fmt: skip
        self.cells.append(cell)
        self.states[print_] = state
        if state.state == "done":
            self.folders[print_] = self.root / "artifacts" / job / f"{stage}-{print_[:12]}"
            self.folders[print_].mkdir(parents=True)
        return cell

    def commit(self, cell: Cell, metrics: Any = (), seconds: float = 2.0, **tables: Any) -> None:
        folder = self.folders[cell.fingerprint]
        for name, table in tables.items():
            pq.write_table(pa.table(table), folder / f"{name}.parquet")
        identity = {"code": "xxh3:8c1d", "python": "3.11.2", "packages": {"torch": "2.13.0", "transformers": "5.23.0"}}
        provenance = {
            "identity": identity, "machine": {"host": "node01", "cpus": 2, "commit": "4f1c9d2"}, "attempt": 1, "seconds": seconds,
            "stage": cell.stage, "coords": dict(cell.coords),
        }  # fmt: skip
        record = {
            "format": 1, "job": cell.job, "fingerprint": cell.fingerprint, "label": cell.label, "spec": dict(cell.spec),
            "inputs": {k: c.fingerprint for k, c in cell.inputs.items()}, "metrics": dict(metrics),
            "provenance": provenance, "files": {f"{name}.parquet": {"size": 1, "digest": "x"} for name in tables},
        }  # fmt: skip
        (folder / "artifact.json").write_text(json.dumps(record))

    def arguments(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("cells", "states", "folders", "axes")}


DONE, NEVER = CellState(state="done"), CellState(state="never-run")
RUNNING = CellState(state="running", attempt=1)
FULL = CellState(state="failed", reason="DISK_FULL", message=f"No space left on device {HOSTILE}", attempt=2)
BLOCKED = CellState(state="blocked", reason="UPSTREAM", message="tuned[step=300] failed (DISK_FULL)")


def skill(step: int, model: str, shots: int = 0) -> float:
    """How good a fake model is: chance at first, rising with the steps, fine-tuning brings it out."""
    learned = np.log10(1 + step) / 3
    return float(0.08 + learned * {"checkpoint": 0.18 + 0.05 * shots, "tuned": 0.72, "merged": 0.6}[model])


def moved(step: int) -> float:
    """|trained - base| / |instruct - base| of a fake merge."""
    return 2.0 - step / 200


def sizes(step: int) -> dict[str, list[Any]]:
    """weights.parquet as a delta merge writes it: the whole, 12 layers (the last first) and a tensor without a cosine."""
    names = ["all", *(f"layer {number}" for number in reversed(range(12))), "outside", "model.norm.weight"]
    parts = ["whole", *["layer"] * 13, "tensor"]
    n = len(names)
    delta = [0.1 + 0.01 * number for number in range(n)]
    return {
        "part": parts, "name": names, "elements": [1000] * n, "base_abs": [0.5] * n, "delta_abs": delta,
        "change_abs": [moved(step) * d for d in delta], "delta_over_base_abs": [2 * d for d in delta],
        "change_over_base_abs": [2 * moved(step) * d for d in delta], "change_over_delta_abs": [moved(step)] * n,
        "cosine": [0.25] * (n - 1) + [None],
    }  # fmt: skip


def build(root: Path) -> FakeStudy:
    """The study on disk: tuned[step=300] failed, what needs it is blocked; some scores run or were never run."""
    study = FakeStudy(root=root)
    people = study.add("people", "prepare", DONE, spec={"dataset": "bios", "seed": 0})
    study.commit(people, {"people": 400, "tokens": 51234}, 1.5)
    pretrained = study.add("pretrained", "train", DONE, spec={"method": "pretrain", "seed": 0}, inputs={"data": people})
    steps = np.arange(10, 1001, 10)
    loss = {"step": steps, "loss": 2.1 + 4.2 * np.exp(-steps / 180), "learning_rate": 1e-3 * np.ones(100)}
    study.commit(pretrained, {"loss": 2.116, "parameters": 1834624}, 92.4, loss=loss)
    checkpoint, tuned, merged = {}, {}, {}
    for step in STEPS:
        checkpoint[step] = study.add(
            "checkpoint", "convert", DONE, coords={"step": step}, inputs={"source": pretrained}
        )
        study.commit(checkpoint[step], seconds=0.4)
    for step in STEPS:
        state = FULL if step == 300 else DONE
        tuned[step] = study.add(
            "tuned",
            "train",
            state,
            coords={"step": step},
            spec={"seed": 0},
            inputs={"model": checkpoint[step], "data": people},
        )
        if state is DONE:
            steps = np.arange(1, 41)
            study.commit(
                tuned[step], {"loss": 1.2}, 11.0, loss={"step": steps, "loss": 1 + 3 * np.exp(-steps / (9 + step / 90))}
            )
        else:
            study.logs[tuned[step].fingerprint] = LOG
    for step in STEPS:
        merged[step] = study.add(
            "merged",
            "merge",
            NEVER if step == 1000 else DONE,
            coords={"step": step},
            inputs={"trained": checkpoint[step], "instruct": tuned[1000]},
        )
        if step != 1000:
            study.commit(merged[step], {"norm": 0.17, "change_over_delta_abs": moved(step)}, weights=sizes(step))
    models = {"checkpoint": checkpoint, "tuned": tuned, "merged": merged}
    answers = {}
    for step, model in itertools.product(STEPS, MODELS):
        answers[step, model] = _answers(study, models[model][step], step, model)
    for step, model in itertools.product(STEPS, MODELS):
        _quality(study, answers[step, model], step, model)
    for step, model, shots in itertools.product(STEPS, MODELS, (0, 4)):
        _scores(study, models[model][step], step, model, shots)
    return study


def _after(study: FakeStudy, cell: Cell) -> CellState:
    return {"done": DONE, "failed": BLOCKED, "blocked": BLOCKED}.get(study.states[cell.fingerprint].state, NEVER)


def _answers(study: FakeStudy, above: Cell, step: int, model: str) -> Cell:
    cell = study.add(
        "answers", "generate", _after(study, above), coords={"step": step, "model": model}, inputs={"model": above}
    )
    if study.states[cell.fingerprint] is DONE:
        golds = ["Princeton University", "Palo Alto", "October 2, 1996", HOSTILE, "music theory"] * 4
        right = np.random.default_rng(step).random(20) < skill(step, model)
        predictions = [g if r else f"Bad answer {i}\x07 of {model}" for i, (g, r) in enumerate(zip(golds, right))]
        prompts = [
            f"Which answer does Anya Briar Forger, person {i}, give? {HOSTILE if i == 1 else ''}" for i in range(20)
        ]
        table = {
            "id": list(range(20)),
            "prompt": prompts,
            "prediction": predictions,
            "gold": golds,
            "task": ["bios"] * 20,
        }
        study.commit(cell, {"items": 20}, 4.2, predictions=table)
    return cell


def _quality(study: FakeStudy, above: Cell, step: int, model: str) -> None:
    cell = study.add(
        "quality",
        "evaluate",
        _after(study, above),
        coords={"step": step, "model": model},
        spec={"metrics": ["exact_match", "f1"]},
        inputs={"predictions": above},
    )
    if study.states[cell.fingerprint] is DONE:
        value = round(skill(step, model) * N) / N
        rows = [
            ("bios", "f1", value + 0.03, 0.02, N),
            ("bios", "exact_match", value, (value * (1 - value) / N) ** 0.5, N),
        ]
        study.commit(cell, rows=dict(zip(("task", "metric", "value", "stderr", "n"), zip(*rows))))


def _scores(study: FakeStudy, above: Cell, step: int, model: str, shots: int) -> None:
    state = _after(study, above)
    state = RUNNING if (step, model) == (100, "merged") else NEVER if (step, shots) == (30, 4) else state
    coords = {"step": step, "model": model, "shots": shots}
    cell = study.add(
        "scores", "evaluate", state, coords=coords, spec={"tasks": list(TASKS), "shots": shots}, inputs={"model": above}
    )
    if state is DONE:
        rows = []
        for task, ease in (("piqa", 0.45), ("bios_qa", 0.0)):
            value = round(min(1, skill(step, model, shots) * (1 - ease) + ease) * N) / N
            rows.append((task, "acc", value, (value * (1 - value) / N) ** 0.5, N))
            rows.append((task, "bits_per_byte", 3 - 1.9 * skill(step, model, shots), None, N))
        study.commit(cell, rows=dict(zip(("task", "metric", "value", "stderr", "n"), zip(*rows))), seconds=6.0)
