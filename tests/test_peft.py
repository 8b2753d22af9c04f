"""configs/studies/peft.yaml in a small form: every parameter-efficient method from a checkpoint to the table, by the real
command and a real worker."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "configs/studies/peft.yaml"
TIDEMARK = Path(sys.executable).with_name("tidemark")
SMALL = {
    "people.people": 24,
    "people.biographies": 4,
    "tokenizer.vocab_size": 400,
    "pretrained.architecture": "{model_type: olmo2, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 3, "
    "num_attention_heads: 2, max_position_embeddings: 512}",
    "pretrained.steps": 20,
    "pretrained.warmup": 5,
    "pretrained.keep_steps": [20],
    "pretrained.resources.threads": 1,
    "checkpoint.step": [20],
    "tuned.epochs": 1,
    "untuned.limit": 8,
    "scores.limit": 8,
    "answers.limit": 6,
    "answers.max_new_tokens": 4,
}
MERGED = {"lora", "rslora", "dora", "qlora", "ia3", "bitfit"}
BESIDE = {"bottleneck", "prompt", "prefix"}


def tidemark(command: str, root: Path, *options: str) -> str:
    words = [TIDEMARK, command, STUDY, "--root", root, *(w for k, v in SMALL.items() for w in ("--set", f"{k}={v}"))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words), *options], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("peft")
    assert "not paired" not in tidemark("plan", root)
    tidemark("launch", root, "--workers", "1")
    return root


def test_every_method_is_measured(launched: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(tidemark("table", launched, "--format", "csv"))))
    assert {row["state"] for row in rows} == {"done"}
    for stage, metric in (("scores", "acc"), ("quality", "exact_match")):
        found = {row["how"] for row in rows if row["stage"] == stage and row["metric"] == metric and row["value"]}
        assert found == MERGED | BESIDE | {"all_weights"}
    probes = {row["layer"]: float(row["value"]) for row in rows if row["stage"] == "read" and row["metric"] == "acc"}
    assert set(probes) == {"0", "3"} and all(0 <= value <= 1 for value in probes.values())


def test_one_base_and_an_adapter_a_method(launched: Path) -> None:
    """No tuned artifact but that of all weights holds a model, and what an adapter holds is what was trained."""
    sizes = {}
    for folder in (launched / "artifacts" / "train").iterdir():
        made = json.loads((folder / "artifact.json").read_text())
        if made["provenance"]["stage"] == "tuned":
            how = made["provenance"]["coords"]["how"]
            assert (folder / "model.safetensors").is_file() == (how == "all_weights")
            assert (folder / "base.json").is_file() == (how != "all_weights")
            sizes[how] = made["metrics"]["trained"]
    assert sizes.keys() == MERGED | BESIDE | {"all_weights"}
    assert (
        sizes["ia3"]
        < sizes["bitfit"]
        < sizes["lora"]
        == sizes["rslora"]
        == sizes["qlora"]
        < sizes["dora"]
        < sizes["all_weights"]
    )
