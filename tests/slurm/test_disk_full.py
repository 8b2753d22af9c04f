"""A root on a disk of a few MiB that fills up: typed, told, without a record, and resumed once there is room."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.lab import Lab

STAGES = {
    "before": {"job": "probe"},
    "big": {"job": "probe", "spec": {"do": "need 3 MiB"}, "inputs": {"one": "before"}},
    "after": {"job": "probe", "inputs": {"one": "big"}},
}
REMEDY = "No space or quota is left under the root: free some (`tidemark clean` shows what), then launch again."


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four MiB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, leave: int) -> None:
    """Write a file that leaves so many bytes free."""
    free = os.statvfs(path.parent)
    path.write_bytes(bytes(free.f_bavail * free.f_bsize - leave))


def test_a_stage_that_fills_the_disk_fails_with_its_type_and_goes_on_after(lab: Lab, disk: Path) -> None:
    lab.place = disk / "root"
    study = lab.study(STAGES)
    ballast = disk / "ballast"
    fill(ballast, leave=2 << 20)
    said = lab.said("launch", study, code=3)
    assert "DISK_FULL" in said and "No space left on device" in said
    (failed,) = lab.json("status", study)["failed"]
    assert (failed["cell"], failed["reason"], failed["attempt"]) == ("big", "DISK_FULL", 1), "and it is not tried again"
    assert REMEDY in lab.said("why", study, "big")
    made = [path.parent.name for path in disk.rglob("artifact.json")]
    assert len(made) == 1, "no record but that of `before`"
    assert not list(lab.root.glob("work/*/out*")), "what was half written is gone"
    assert "0 damaged" in lab.said("verify")

    ballast.unlink()
    lab.run("launch", study)
    assert lab.told("committed") == ["before", "big", "after"]
    assert "3 artifacts, 0 damaged" in lab.said("verify", study)


def test_a_disk_without_any_room(lab: Lab, disk: Path) -> None:
    """Not even the launch can be written down."""
    lab.place = disk / "root"
    lab.run("launch", lab.study({"before": STAGES["before"]}))
    study = lab.study(STAGES)
    ballast = disk / "ballast"
    fill(ballast, leave=0)
    said = lab.said("launch", study, code=1)
    assert "No space left on device" in said and REMEDY in said and "Traceback" not in said
    assert lab.json("status", study)["stages"]["before"]["done"] == 1, "reading needs no room"
    assert "0 damaged" in lab.said("verify")
    ballast.unlink()
    lab.run("launch", study)


def test_the_log_of_a_stage_fills_the_disk(lab: Lab, disk: Path) -> None:
    """There is room for nothing at all when the stage fails, its traceback included; the reason arrives all the same."""
    lab.place = disk / "root"
    lab.house.joinpath("jobs", "chatty.py").write_text(
        lab.house.joinpath("jobs", "probe.py").read_text().replace(
            '    imported = ', '    while spec.do == "talk":\n        print("and so on " * 10_000, flush=True)\n    imported = '
        )
    )  # fmt: skip
    try:
        study = lab.study({"chatty": {"job": "chatty", "spec": {"do": "talk"}}, "other": {"job": "probe"}})
        done = lab.run("launch", study, code=3)
    finally:
        lab.house.joinpath("jobs", "chatty.py").unlink()
    assert "No space left on device" in done.stdout + done.stderr
    assert not list(disk.rglob("artifact.json"))
