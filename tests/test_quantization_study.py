"""configs/studies/quantization-small.yaml in a form that takes seconds: every scheme, evaluated; and the large form plans."""

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

from slurm.submissions import cells_of
from tests.slurm.lab import HOME, Lab
from toolkit import study_file
from toolkit.lookup import names
from toolkit.study import Cell

STUDY = HOME / "configs/studies/quantization-small.yaml"
SIZES = (
    "people.people=16",
    "people.biographies=2",
    "tokenizer.vocab_size=300",
    "tokens.sequence_length=32",
    "pretrained.architecture={model_type: olmo2, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1,"
    " num_attention_heads: 2, max_position_embeddings: 512}",
    "pretrained.steps=4",
    "pretrained.warmup=0",
    "pretrained.global_batch=2",
    "pretrained.keep_steps=[4]",
    "pretrained.resources.threads=1",
    "checkpoint.step=[4]",
    "quantized.scheme.w4 group 96={scheme: int4, group: 16}",
    "likelihood.limit=4",
)


def test_every_scheme_is_evaluated(tmp_path: Path) -> None:
    lab = Lab(house=HOME, folder=tmp_path)
    words = [str(STUDY), *(word for size in SIZES for word in ("--set", size))]
    lab.run("launch", *words, "--workers", 1)
    rows = list(csv.DictReader(io.StringIO(lab.run("table", *words, "--format", "csv").stdout)))
    scores = {row["scheme"]: float(row["value"]) for row in rows if row["metric"] == "bits_per_byte"}
    whole = scores.pop("")
    assert len(scores) == 13 and all(abs(value - whole) < 0.3 * whole for value in scores.values())
    errors = {r["scheme"]: float(r["value"]) for r in rows if r["metric"] == "weight_error" and r["task"] == "all"}
    assert errors.keys() == scores.keys()
    assert errors["w8 row"] < errors["w8 tensor"] < errors["w4 group 32"] < 0.2
    assert "0 damaged" in lab.run("verify").stdout


def large(tmp_path: Path, name: str) -> list[Cell]:
    """The cells of a study whose downloads cannot be pinned without a network: folders stand in for them."""
    text = (HOME / f"configs/studies/{name}.yaml").read_text()
    stand_in = tmp_path / "stand-in.txt"
    stand_in.write_text("anything")
    published = f"published: {{path: {stand_in}}}\n\n  checkpoint:\n    job: convert\n    axes: {{step: [1, 2]}}\n"
    text = re.sub(r"published:\n.*?  checkpoint:\n    job: convert\n", published, text, flags=re.S)
    text = re.sub(r"(alpaca|sciq):\n    job: download\n    spec: .*\n", rf"\1: {{path: {stand_in}}}\n", text)
    (tmp_path / "study.yaml").write_text(text.replace("step: main", "step: 2"))
    return cells_of(tmp_path, study_file.load(tmp_path / "study.yaml"))


def test_the_large_form_tries_every_scheme(tmp_path: Path) -> None:
    cells = large(tmp_path, "quantization")
    made = [cell for cell in cells if cell.job == "quantize"]
    assert len(made) == 30 and {cell.spec["scheme"] for cell in made} == set(names("toolkit.quantization.schemes"))
    assert sum(cell.job == "evaluate" for cell in cells) == 2 * (2 + 30)


def test_rounding_in_training_against_rounding_afterwards(tmp_path: Path) -> None:
    lab, study = Lab(house=HOME, folder=tmp_path), HOME / "configs/studies/qat-tiny.yaml"
    sizes = [size.replace("pretrained.", "checkpoint.") for size in SIZES if "keep_steps" not in size]
    sizes = [size for size in sizes if "step=[4]" not in size and "w4 group" not in size]
    sizes += ["tuned.epochs=1", "tuned.resources.threads=1", "choices.limit=4"]
    words = [str(study), *(word for size in sizes for word in ("--set", size))]
    lab.run("launch", *words, "--workers", 1)
    rows = list(csv.DictReader(io.StringIO(lab.run("table", *words, "--format", "csv").stdout)))
    for stage, metric in (("likelihood", "bits_per_byte"), ("choices", "acc")):
        found = {(r["trained"], r["scheme"]): r["value"] for r in rows if r["stage"] == stage and r["metric"] == metric}
        assert found.keys() == {(t, s) for t in ("full", "qat 8", "qat 4", "qat 2") for s in ("", "w8", "w4", "w2")}
    cells = large(tmp_path, "qat")
    assert sum(cell.job == "quantize" for cell in cells) == 2 * 4 * 3
    assert {cell.spec["method"] for cell in cells if cell.job == "train"} == {"sft", "qat"}


def test_planning_does_not_import_the_libraries() -> None:
    code = f"import sys; from slurm.cli import app; app(['plan', {str(STUDY)!r}], standalone_mode=False); assert not {{'torch', 'torchao', 'bitsandbytes'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
