"""Real downloads and conversions under a disk budget: dropped once they have served, and fetched again for a new reader."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.commands import Desk, tiny_model
from tests.hub.standin import Standin

STEPS = range(0, 500, 100)
REPO = "allenai/OLMo-2-0425-1B"
PEOPLE = {"job": "prepare", "spec": {"dataset": "bios", "people": 8, "biographies": 1}}
TUNING = {"method": "sft", "steps": 1, "global_batch": 2, "lr": 1e-4, "max_length": 64}


@pytest.fixture
def desk(hub: Standin, tmp_path: Path) -> Iterator[Desk]:
    for step in STEPS:
        hub.push(REPO, f"stage1-step{step}-tokens1B", tiny_model(tmp_path / "models" / str(step), step))
    made = Desk(tmp_path, hub)
    made.write(
        {
            "checkpoint": {
                "job": "download",
                "spec": {"repo": "olmo2-1b"},
                "axes": {"step": {"select": {"every": 100}}},
            },
            "model": {"job": "convert", "inputs": {"source": "checkpoint"}},
            "people": PEOPLE,
            "tuned": {"job": "train", "inputs": {"model": "model", "data": "people"}, "spec": TUNING},
        }
    )
    yield made


def held(root: Path) -> int:
    """Bytes of weights that downloads and conversions hold; a conversion shares the download's while both are there."""
    total = 0
    for path in [*root.glob("artifacts/download/*/*.safetensors"), *root.glob("artifacts/convert/*/*.safetensors")]:
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # it is being dropped
            continue
    return total


@pytest.mark.timeout(300)
def test_a_suite_runs_within_the_room_of_two_checkpoints(desk: Desk, tmp_path: Path) -> None:
    files = tmp_path / "models" / "0"
    lineage = 2 * (sum(path.stat().st_size for path in files.iterdir()) + 3_000)
    budget = int(2.2 * lineage)
    desk.said("lock", desk.study)
    words = desk.words("launch", desk.study, "--workers", 2, "--disk-budget", budget)
    launch = subprocess.Popen(words, env=desk.env, cwd=desk.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    peak = 0
    while launch.poll() is None:
        peak = max(peak, held(desk.root))
        time.sleep(0.01)
    said = launch.communicate()[0].decode()
    assert launch.returncode == 0, said
    assert 0 < peak <= budget < 5 * lineage
    status = desk.json("status", desk.study)
    assert all(stage["done"] == sum(stage.values()) for stage in status["stages"].values())
    assert status["disk"]["bytes"] == 0, "all have served"
    assert "16 artifacts, 0 damaged, 10 dropped" in desk.said("verify")
    fetched = len([path for path in desk.hub.log if "safetensors" in str(path)])
    text = desk.study.read_text().replace('"lr": 0.0001', '"lr": 0.0002')
    desk.study.write_text(text)
    desk.said("launch", desk.study, "--workers", 2, "--disk-budget", budget)
    assert len([path for path in desk.hub.log if "safetensors" in str(path)]) > fetched, "a new reader: fetched again"
    assert "21 artifacts, 0 damaged, 10 dropped" in desk.said("verify")
