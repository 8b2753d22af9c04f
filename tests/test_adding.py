"""The files that docs/adding.md tells its readers to write, written into a copy of the checkout and launched."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.M | re.S)


def examples() -> dict[str, str]:
    """File name -> content of the fenced blocks that name a file in their first line."""
    return dict(BLOCK.findall((ROOT / "docs/adding.md").read_text()))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages with the examples added to it."""
    copy = tmp_path_factory.mktemp("checkout with examples")
    for name in ("toolkit", "jobs", "slurm", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in examples().items():
        assert not (copy / name).exists(), f"{name} exists already: the docs promise a new file and no other edit"
        (copy / name).write_text(text)
    return copy


def tidemark(checkout: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "slurm.cli", *words], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_are_all_there() -> None:
    assert set(examples()) == {
        "toolkit/data/datasets/sums.py",
        "toolkit/training/methods/head.py",
        "toolkit/merging/methods/average.py",
        "jobs/distance.py",
        "sums.yaml",
    }


def changed(checkout: Path, before: str, after: str) -> set[str]:
    """The tensors in which the models of two training methods differ."""
    folders = [next((checkout / "runs/artifacts/train").glob(f"{method}-*")) for method in (before, after)]
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    return {name for name in one if (one[name] != two[name]).any()}


def test_the_examples_run(checkout: Path) -> None:
    tidemark(checkout, "launch", "sums.yaml")
    table = list(csv.DictReader(io.StringIO(tidemark(checkout, "table", "sums.yaml", "--format", "csv"))))
    assert {row["state"] for row in table} == {"done"}
    apart = {float(row["share"]): float(row["value"]) for row in table if row["metric"] == "distance"}
    assert apart[0.0] == 0 < apart[0.5] < apart[1.0]
    assert apart[0.5] == pytest.approx(apart[1.0] / 2, rel=1e-3)
    assert changed(checkout, "pretrain", "head") == {"lm_head.weight"}


def test_a_misspelt_example_is_told_its_name(checkout: Path) -> None:
    with pytest.raises(AssertionError, match="unknown method 'averag'; did you mean 'average'"):
        tidemark(checkout, "plan", "sums.yaml", "--set", "averaged.method=averag")
