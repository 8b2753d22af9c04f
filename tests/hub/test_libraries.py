"""The real huggingface_hub and datasets take the stand-in for the Hub: what holds against it holds against what they speak.

In processes of their own: both read their settings when they are imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.standin import TOKEN, Fault, Standin
from tests.hub.test_fetch import model_files

SNAPSHOT = """
import sys
from huggingface_hub import HfApi, snapshot_download
refs = HfApi().list_repo_refs("org/model")
print(sorted(branch.name for branch in refs.branches))
print(snapshot_download("org/model", revision="step10", local_dir=sys.argv[1]))
"""
LOAD = """
import sys
from datasets import load_dataset
rows = load_dataset(sys.argv[1], split="train", **({"revision": sys.argv[2]} if len(sys.argv) > 2 else {}))
print(list(rows["text"]))
"""


def python(code: str, *words: object, folder: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    env = {
        **os.environ,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], env=env, capture_output=True, text=True, timeout=120
    )


def test_huggingface_hub_downloads_from_the_standin(hub: Standin, tmp_path: Path) -> None:
    content = model_files()
    hub.push("org/model", "main", {"config.json": b"{}"})
    hub.push("org/model", "step10", content)
    done = python(SNAPSHOT, tmp_path / "copy", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['main', 'step10']")
    found = {
        str(p.relative_to(tmp_path / "copy")): p.read_bytes() for p in (tmp_path / "copy").rglob("*") if p.is_file()
    }
    assert {path: data for path, data in found.items() if not path.startswith(".cache")} == content


def test_huggingface_hub_is_refused_as_by_the_hub(hub: Standin, tmp_path: Path) -> None:
    hub.push("org/model", "step10", model_files(), gated=True)
    assert "GatedRepoError" in python(SNAPSHOT, tmp_path / "copy", folder=tmp_path).stderr
    assert python(SNAPSHOT, tmp_path / "copy", folder=tmp_path, HF_TOKEN=TOKEN).returncode == 0
    hub.repositories.clear()
    assert "RepositoryNotFoundError" in python(SNAPSHOT, tmp_path / "copy", folder=tmp_path).stderr


def test_why_the_client_is_our_own(hub: Standin, tmp_path: Path) -> None:
    """A spoilt byte passes for a good one with huggingface_hub; if this fails, it has learnt to check."""
    content = model_files()
    hub.push("org/model", "step10", content)
    hub.faults = lambda request: Fault(flip=5) if request.storage else None
    done = python(SNAPSHOT, tmp_path / "copy", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    name = "model-00001-of-00002.safetensors"
    assert (tmp_path / "copy" / name).read_bytes() != content[name]


@pytest.fixture
def rows(hub: Standin, tmp_path: Path) -> tuple[str, str]:
    """A data set whose main branch moved: its first and its second commit."""
    commits = [
        hub.push("org/data", "main", {"train.jsonl": json.dumps({"text": text}).encode()}, kind="dataset")
        for text in ("first", "second")
    ]
    return commits[0], commits[1]


def test_datasets_loads_from_the_standin(hub: Standin, rows: tuple[str, str], tmp_path: Path) -> None:
    done = python(LOAD, "org/data", rows[0], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['first']\n"


def test_why_data_sets_are_artifacts_here(hub: Standin, rows: tuple[str, str], tmp_path: Path) -> None:
    """Without a network datasets serves what it has, whatever commit it is asked for; if this fails, it has learnt."""
    assert python(LOAD, "org/data", rows[0], folder=tmp_path).stdout == "['first']\n"
    assert python(LOAD, "org/data", rows[1], folder=tmp_path).stdout == "['second']\n"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = python(LOAD, "org/data", rows[0], folder=tmp_path, **offline)
    assert done.stdout == "['second']\n", done.stderr
