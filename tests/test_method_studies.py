"""configs/studies/inheritune-tiny.yaml and rlhf-tiny.yaml in a smaller form still, by the real command and real workers."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

ROOT = Path(__file__).parents[1]
TIDEMARK = Path(sys.executable).with_name("tidemark")
PEOPLE = {"people.people": 24, "people.biographies": 4, "tokenizer.vocab_size": 400}
MODEL = (
    "{model_type: olmo2, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 4, num_attention_heads: 2, "
    "max_position_embeddings: 512}"
)
INHERITUNE = {
    "parent.architecture": MODEL,
    "parent.steps": 20,
    "parent.warmup": 5,
    "child.layers": 2,
    "child.select": "[spaced]",
    "trained.budget": "{tokens: {steps: 4}, time: {steps: 6}}",
    "trained.warmup": 1,
    "distilled.steps": 4,
    "distilled.warmup": 1,
    "stored.steps": 4,
    "stored.warmup": 1,
    "choices.limit": 4,
    "likelihood.limit": 8,
}
RLHF = {
    "pretrained.architecture": MODEL,
    "pretrained.steps": 20,
    "pretrained.warmup": 5,
    "pairs.pairs": 1,
    "tuned.epochs": 0.5,
    "reward.epochs": 0.5,
    "policy.steps": 2,
    "policy.global_batch": 8,
    "policy.answers": 4,
    "policy.max_new_tokens": 4,
    "checked.steps": 2,
    "checked.global_batch": 8,
    "checked.answers": 4,
    "checked.max_new_tokens": 4,
    "checked.method": "[grpo]",
    "preferred.epochs": 0.5,
    "answers.split": "[heldout]",
    "answers.limit": 4,
    "answers.max_new_tokens": 4,
}


def tidemark(command: str, study: str, root: Path, sets: dict[str, Any], *options: str) -> str:
    path = ROOT / "configs/studies" / f"{study}.yaml"
    words = [TIDEMARK, command, path, "--root", root, *(w for k, v in sets.items() for w in ("--set", f"{k}={v}"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words), *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def table(study: str, root: Path, sets: dict[str, Any]) -> list[dict[str, str]]:
    tidemark("launch", study, root, sets, "--workers", "1")
    rows = list(csv.DictReader(io.StringIO(tidemark("table", study, root, sets, "--format", "csv"))))
    assert {row["state"] for row in rows} == {"done"}
    return rows


def trained(root: Path) -> Iterator[tuple[str, Path]]:
    """Stage and folder of every training run."""
    for folder in sorted((root / "artifacts" / "train").iterdir()):
        yield json.loads((folder / "artifact.json").read_text())["provenance"]["stage"], folder


def test_small_models_from_a_large_one(tmp_path: Path) -> None:
    rows = table("inheritune-tiny", tmp_path, PEOPLE | INHERITUNE)
    found = {
        (r["model"], r["select"], r["budget"]) for r in rows if r["stage"] == "likelihood" and r["metric"] == "acc"
    }
    grown = {("trained", "spaced", budget) for budget in ("tokens", "time")}
    assert found == {("parent", "", "")} | grown | {(model, "spaced", "") for model in ("child", "distilled", "stored")}
    one, two = (
        pyarrow.parquet.read_table(folder / "loss.parquet").to_pydict()
        for stage, folder in sorted(trained(tmp_path))
        if stage in ("distilled", "stored")
    )
    assert two["label"][0] == pytest.approx(one["label"][0], abs=1e-5)  # one student, one batch
    assert 0 < two["divergence"][0] < one["divergence"][0]  # in buckets, distributions differ less than they do


def test_a_policy_from_preferences(tmp_path: Path) -> None:
    rows = table("rlhf-tiny", tmp_path, PEOPLE | RLHF)
    judged = {row["metric"] for row in rows if row["stage"] == "judged"}
    assert {"accuracy", "margin", "accuracy_4", "promised_4"} <= judged
    for stage, metric in (("quality", "exact_match"), ("rewarded", "reward")):
        found = {(r["model"], r["method"]) for r in rows if r["stage"] == stage and r["metric"] == metric}
        assert found == {
            ("tuned", ""), ("policy", "rloo"), ("policy", "grpo"), ("checked", "grpo"), ("preferred", ""),
        }  # fmt: skip
    for stage, folder in trained(tmp_path):
        if stage == "policy":
            traced = pyarrow.parquet.read_table(folder / "loss.parquet").to_pydict()
            assert len(traced["kl"]) == len(traced["reward"]) == 2 and traced["kl"][0] == pytest.approx(0, abs=1e-6)
