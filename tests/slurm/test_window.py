"""A disk budget: checkpoints come, serve and go, and what there is of them at once stays within it."""

import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from slurm.profiles import DiskBudget
from tests.slurm.lab import Lab, make_house, processes_of, until

FETCH = '''
"""Stands for a download or a conversion: a large file, and something to write it from."""

import time
from dataclasses import dataclass

from toolkit.stage import Artifact

VERSION = 1
TRANSIENT = True


@dataclass(frozen=True, kw_only=True)
class Spec:
    step: int = 0
    size: int = 100_000


@dataclass(frozen=True, kw_only=True)
class Inputs:
    source: Artifact | None = None
    tokenizer: Artifact | None = None


def run(spec, inputs, out, ctx):
    text = f"step {spec.step}"
    for given in (inputs.source, inputs.tokenizer):
        if given is not None:
            text += " of " + (given.path / "deep" / "weights").read_text().strip(".")
    if spec.step == 0 and inputs.source is None:
        time.sleep(1)  # the other worker looks for work while no size is known
    (out / "deep").mkdir()
    (out / "deep" / "weights").write_bytes(text.encode().ljust(spec.size, b"."))
    return {"bits": len(text) + spec.step}
'''
SCORE = '''
"""Reads models; what it says of them is small."""

from dataclasses import dataclass

from toolkit.stage import Artifact

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Spec:
    shots: int = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    model: Artifact
    base: Artifact | None = None


def run(spec, inputs, out, ctx):
    text = (inputs.model.path / "deep" / "weights").read_bytes()
    base = (inputs.base.path / "deep" / "weights").read_bytes() if inputs.base else b""
    (out / "note").write_bytes(text[:20])
    return {"score": len(text) + len(base) + spec.shots + sum(text[:40])}
'''
ONE = 200_000  # bytes of a lineage: an original and what is made from it


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_house(tmp_path_factory.mktemp("house"))
    (made / "jobs" / "fetch.py").write_text(FETCH)
    (made / "jobs" / "score.py").write_text(SCORE)
    return made


def suite(steps: int, **more: object) -> dict[str, object]:
    """Originals of so many steps, converted with one tokenizer, and read."""
    return {
        "words": {"job": "fetch", "spec": {"step": 99, "size": 1000}},
        "original": {"job": "fetch", "axes": {"step": [*range(steps)]}},
        "model": {"job": "fetch", "inputs": {"source": "original", "tokenizer": "words"}},
        "scores": {"job": "score", "inputs": {"model": "model"}},
        **more,
    }


def weights(root: Path) -> dict[int, int]:
    """Inode -> bytes of all large files, committed or in the making."""
    found = {}
    for folder in (root / "artifacts" / "fetch", root / "work"):
        for base, _, names in os.walk(folder):
            for name in names:
                try:
                    told = os.stat(os.path.join(base, name))
                except FileNotFoundError:
                    continue
                if name == "weights":
                    found[told.st_ino] = told.st_size
    return found


def left(root: Path) -> set[str]:
    """What the artifacts that are there say of themselves."""
    return {path.read_text().strip(".") for path in root.glob("artifacts/fetch/*/deep/weights")}


class Watch(threading.Thread):
    """The most bytes that lay there at once."""

    def __init__(self, root: Path) -> None:
        super().__init__(daemon=True)
        self.root, self.most, self.looks, self.ended = root, 0, 0, False

    def run(self) -> None:
        while not self.ended:
            self.most = max(self.most, sum(weights(self.root).values()))
            self.looks += 1
            time.sleep(0.01)

    def end(self) -> int:
        self.ended = True
        self.join()
        assert self.looks > 20
        return self.most


def table(lab: Lab, study: str) -> str:
    return lab.run("table", study, "--format", "csv").stdout


@pytest.fixture
def other(house: Path, tmp_path: Path) -> Iterator[Lab]:
    """Another root."""
    folder = tmp_path / "other"
    folder.mkdir()
    made = Lab(house=house, folder=folder)
    yield made
    made.close()


def test_fifty_checkpoints_within_the_room_of_three(lab: Lab, other: Lab) -> None:
    study = lab.study(suite(50))
    budget = 3 * ONE + 1000
    watch = Watch(lab.root)
    watch.start()
    lab.run("launch", study, "--workers", "2", "--disk-budget", str(budget))
    most = watch.end()
    assert 2 * ONE <= most <= budget, f"{most} bytes at once"
    assert lab.json("status", study)["stages"] == {
        stage: {"done": n, "running": 0, "failed": 0, "blocked": 0, "never-run": 0}
        for stage, n in {"words": 1, "original": 50, "model": 50, "scores": 50}.items()
    }
    assert sum(weights(lab.root).values()) == 0 and lab.json("status", study)["disk"]["bytes"] == 0
    assert "151 artifacts, 0 damaged, 101 dropped" in lab.said("verify")
    assert [stage["states"] for stage in lab.json("plan", study)] == [{"done": n} for n in (1, 50, 50, 50)]
    assert "nothing to do" in lab.said("launch", study)
    plain = other.study(suite(50))
    other.run("launch", plain, "--workers", "2")
    assert table(other, plain) == table(lab, study)
    assert "151 artifacts, 0 damaged" in other.said("verify")
    assert not (other.root / "artifacts" / "fetch" / ".dropped").exists()


def test_a_new_reader_brings_back_only_what_it_needs(lab: Lab) -> None:
    budget = ["--disk-budget", str(3 * ONE)]
    lab.run("launch", lab.study(suite(6)), *budget)
    before = len(lab.told("started"))
    again = {"job": "score", "spec": {"shots": 5}, "inputs": {"model": {"stage": "model", "step": 4}}}
    study = lab.study(suite(6, again=again))
    plan = {stage["stage"]: stage["states"] for stage in lab.json("plan", study)}
    assert plan["original"] == plan["model"] == {"done": 5, "never-run": 1} and plan["words"] == {"never-run": 1}
    assert "again is never-run" in (why := lab.said("why", study, "again")) and "waits for model[step=4]" in why
    lab.run("launch", study)  # without a budget: what it brings back stays
    assert sorted(lab.told("started")[before:]) == ["again", "model[step=4]", "original[step=4]", "words"]
    assert len(weights(lab.root)) == 3 and "20 artifacts, 0 damaged, 10 dropped" in lab.said("verify")
    lab.run("launch", lab.study(suite(6, again={**again, "spec": {"shots": 6}})), *budget)
    assert lab.told("started")[before + 4 :] == ["again"] and not weights(lab.root)


def test_what_is_pinned_or_a_result_or_wanted_by_another_study_stays(lab: Lab) -> None:
    budget = ["--disk-budget", str(8 * ONE)]
    study = lab.study(suite(4))
    assert "original[step=1] is kept not made yet" in lab.said("keep", study, "original[step=1]", "model[step=2]")
    neighbour = {**suite(4), "scores": {"job": "score", "spec": {"shots": 1}, "inputs": {"model": "model"}}}
    waiting = {**neighbour, "original": {"job": "fetch", "axes": {"step": [3]}}}
    ends = {"original": {"job": "fetch", "axes": {"step": [0]}}}
    lab.run("launch", lab.study(ends, "ends"))
    second = lab.study(waiting, "second")
    lab.run("launch", second)
    (made,) = (lab.root / "artifacts" / "score").iterdir()
    shutil.rmtree(made)  # so it is to be done again, from step 3
    lab.run("launch", study, *budget)
    assert left(lab.root) == {"step 0", "step 1", "step 0 of step 2 of step 99", "step 0 of step 3 of step 99"}
    assert lab.json("verify")["dropped"] == 9 - 4
    lab.run("launch", second)
    lab.run("keep", study, "original", "model", "--no")
    more = suite(4, again={"job": "score", "spec": {"shots": 9}, "inputs": {"model": "model"}})
    lab.run("launch", lab.study(more), *budget)
    assert left(lab.root) == {"step 0"} and lab.json("verify")["dropped"] == 8, "the study `ends` ends in it"


def test_a_budget_that_is_too_small_is_refused_with_the_sizes(lab: Lab) -> None:
    done = lab.said("launch", lab.study(suite(3)), "--disk-budget", "150k", code=3)
    assert re.search(
        r"the disk budget is 150,000 bytes, which is too small: original\[step=\d\] 100.0 kB in 5 inodes", done
    )
    assert "must be there at once and need 200.0 kB" in done and "--disk-budget" in done and "Traceback" not in done
    assert "'45 GiC' is no size" in lab.said("launch", lab.study(suite(3)), "--disk-budget", "45 GiC", code=1)


def test_a_reader_of_two_lineages_does_not_wait_for_ever(lab: Lab) -> None:
    both = {"job": "score", "inputs": {"model": "model", "base": {"stage": "model", "step": 5}}}
    lab.run("launch", lab.study(suite(6, both=both)), "--workers", "2", "--disk-budget", str(2 * ONE + 1000))
    assert lab.told("committed").count("both[step=0]") == 1 and not weights(lab.root)


def readers(shots: int) -> dict[str, object]:
    return suite(16, again={"job": "score", "spec": {"shots": shots}, "inputs": {"model": "model"}})


def test_killed_at_random_moments(lab: Lab, other: Lab) -> None:
    """Workers and launchers die while things are dropped and made again; the end is as if nothing had happened."""
    rng, kills, shots = random.Random(1), 0, 1
    watch = Watch(lab.root)
    watch.start()
    while kills < 12:
        shots += 1
        study, process = lab.study(readers(shots)), None
        while process is None or process.poll() != 0 or processes_of(lab.folder):
            if not processes_of(lab.folder):
                assert len(lab.started) < 60, "it comes to no end"
                process = lab.start(
                    "launch", study, "--workers", "2", "--disk-budget", 3 * ONE + 1000, stdout=subprocess.DEVNULL
                )
            seen = len(lab.told("started"))
            until(lambda: not processes_of(lab.folder) or len(lab.told("started")) > seen)
            time.sleep(rng.uniform(0, 0.2))
            running = processes_of(lab.folder)
            if kills < 12 and running:
                with suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(rng.choice(running), signal.SIGKILL)
                    kills += 1
    assert watch.end() <= 3 * ONE + 1000
    plain = other.study(readers(shots))
    other.run("launch", plain, "--workers", "2")
    assert table(lab, study) == table(other, plain)
    assert ", 0 damaged" in lab.said("verify") and not left(lab.root)


def test_sizes() -> None:
    assert [DiskBudget(bytes=text).bytes for text in ("45G", "1.5 kB", "2MiB", "7")] == [45 * 10**9, 1500, 2 << 20, 7]
    with pytest.raises(ValueError, match="bytes, inodes or both"):
        DiskBudget()
