"""configs/studies/local-text.yaml on real text, instructions and PIQA, in a small form: the real command, real workers.

Where the shared data is not there, stand-ins of the same shape are made up.
"""

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "configs/studies/local-text.yaml"
SHARED = ROOT.parent / "shared" / "data"
TIDEMARK = Path(sys.executable).with_name("tidemark")
STEPS = (0, 20)
SMALL = {
    "tokenizer.vocab_size": 512,
    "tokens.tokens": "20k",
    "pretrained.architecture": "{model_type: olmo2, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, "
    "num_attention_heads: 2, max_position_embeddings: 512}",
    "pretrained.steps": 20,
    "pretrained.warmup": 5,
    "pretrained.keep_steps": list(STEPS),
    "pretrained.resources.threads": 1,
    "checkpoint.step": list(STEPS),
    "tuned.epochs": 0.05,
    "merged.inputs.base.step": 20,
    "merged.inputs.instruct.step": 20,
    "answers.limit": 8,
    "answers.max_new_tokens": 8,
    "likelihood.limit": 8,
    "likelihood.shots": "[0]",
    "commonsense.limit": 8,
    "commonsense.shots": "[2]",
}


def local_data(folder: Path) -> dict[str, Path]:
    """Stage -> path of the three things that the study asks for."""
    if SHARED.is_dir():
        return {
            "corpus": SHARED / "wikitext2_valid.txt",
            "instructions": SHARED / "instructions_rasbt.json",
            "piqa": SHARED,
        }
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioubcdfgklmnprst", k=rng.randint(2, 9))) for _ in range(800)]

    def sentence(most: int = 12) -> str:
        return " ".join(rng.choices(words, k=rng.randint(4, most))).capitalize() + "."

    (folder / "corpus.txt").write_text("\n\n".join(" ".join(sentence() for _ in range(6)) for _ in range(600)))
    rows = [{"instruction": sentence(), "input": "", "output": sentence(6)} for _ in range(300)]
    (folder / "instructions.json").write_text(json.dumps(rows))
    goals = [json.dumps({"goal": sentence(), "sol1": sentence(), "sol2": sentence()}) for _ in range(60)]
    (folder / "piqa_valid.jsonl").write_text("\n".join(goals) + "\n")
    (folder / "piqa_valid_labels.lst").write_text("".join(f"{rng.randint(0, 1)}\n" for _ in goals))
    return {"corpus": folder / "corpus.txt", "instructions": folder / "instructions.json", "piqa": folder}


def tidemark(command: str, root: Path, data: dict[str, Path], *options: str) -> str:
    sets = {f"{stage}.path": path for stage, path in data.items()} | SMALL
    words = [TIDEMARK, command, STUDY, "--root", root, *(w for k, v in sets.items() for w in ("--set", f"{k}={v}"))]
    done = subprocess.run(
        [*map(str, words), *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    """A root that the small study was run in, and its data."""
    folder = tmp_path_factory.mktemp("local text")
    data = local_data(folder)
    tidemark("launch", folder / "runs", data, "--workers", "2")
    return folder / "runs", data


@pytest.fixture(scope="module")
def rows(launched: tuple[Path, dict[str, Path]]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tidemark("table", *launched, "--format", "csv"))))


def test_every_cell_is_done(rows: list[dict[str, str]]) -> None:
    assert {row["state"] for row in rows} == {"done"}


@pytest.mark.parametrize(
    ("stage", "metric", "shots"),
    [
        ("quality", "exact_match", ""),
        ("quality", "rouge_l", ""),
        ("likelihood", "bits_per_byte", "0"),
        ("commonsense", "acc", "2"),
    ],
)
def test_a_measurement_for_every_model_and_step(
    rows: list[dict[str, str]], stage: str, metric: str, shots: str
) -> None:
    found = [row for row in rows if row["stage"] == stage and row["metric"] == metric]
    points = {(row["model"], row["step"]) for row in found}
    assert points == {(model, str(step)) for model in ("checkpoint", "tuned", "merged") for step in STEPS}
    assert {row["shots"] for row in found} == {shots} and {row["n"] for row in found} == {"8"}


def test_pretraining_made_the_references_likelier(rows: list[dict[str, str]]) -> None:
    bits = {
        row["step"]: float(row["value"])
        for row in rows
        if row["stage"] == "likelihood" and row["metric"] == "bits_per_byte" and row["model"] == "checkpoint"
    }
    assert bits["20"] < bits["0"] - 0.1


def test_the_merge_at_its_own_end_point_is_the_tuned_model(rows: list[dict[str, str]]) -> None:
    values = {
        (row["model"], row["task"], row["metric"]): row["value"]
        for row in rows
        if row["step"] == "20" and row["stage"] in ("quality", "likelihood", "commonsense")
    }
    tuned = {key[1:]: value for key, value in values.items() if key[0] == "tuned"}
    merged = {key[1:]: value for key, value in values.items() if key[0] == "merged"}
    assert tuned and merged.keys() == tuned.keys()
    assert {k: round(float(v), 6) for k, v in merged.items()} == {k: round(float(v), 6) for k, v in tuned.items()}


def test_a_second_launch_has_nothing_to_do(launched: tuple[Path, dict[str, Path]]) -> None:
    assert "nothing to do" in tidemark("launch", *launched)
