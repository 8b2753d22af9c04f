"""Compaction in place: killed at every step, beside readers, on a full disk; and back, to the same record."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toolkit.checkpoints.compact import compact, free, is_compacted, survey, undo
from toolkit.checkpoints.whole import base_of, whole
from toolkit.manifest import bases, dropping, record
from toolkit.manifest.claims import identity
from toolkit.stage import Artifact

from .conftest import forked, wait

BASE, TUNED = "ba5e" * 16, "70ed" * 16


def never() -> bool:
    return False


def always() -> bool:
    return True


def model(out: Path, weights: dict[str, torch.Tensor]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text('{"model_type": "none"}')


def make(root: Path, size: int = 3000) -> tuple[Artifact, Path]:
    """A base, and a training run from it that keeps two steps, the last of which is its model."""
    generator = torch.Generator().manual_seed(0)
    first = {name: torch.randn(size, generator=generator).bfloat16() for name in ("a", "b")}
    places = []
    for job, print_ in (("fetch", BASE), ("train", TUNED)):
        out = root / "work" / job
        model(out, first)
        if job == "train":
            for step in (1, 2):
                moved = {n: (t.view(torch.int16) + step % 2).view(torch.bfloat16) for n, t in first.items()}
                model(out / "steps" / str(step), {**moved, "new": torch.ones(2)})
            (out / "model.safetensors").unlink()
            os.link(out / "steps/2/model.safetensors", out / "model.safetensors")
            (out / "loss.parquet").write_bytes(b"losses")
        words: dict[str, Any] = {"spec": {}, "inputs": {}, "metrics": {}, "provenance": {}}
        places.append(record.commit(root, job=job, label="m", fingerprint=print_, out=out, record=words, timeout=5))
    return Artifact(path=places[0], fingerprint=BASE), places[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def models(folder: Path, scratch: Path) -> list[bytes]:
    """The weights of an artifact as its readers get them."""
    shutil.rmtree(scratch, ignore_errors=True)
    places = (folder, folder / "steps/1", folder / "steps/2")
    return [(whole(place, scratch) / "model.safetensors").read_bytes() for place in places]


def test_there_and_back(root: Path, tmp_path: Path) -> None:
    base, folder = make(root)
    before, wanted = contents(folder), models(folder, tmp_path / "s")
    form = survey(folder, {"model": base, "data": Artifact(path=tmp_path)}, tmp_path / "s")
    assert form.base == base and form.after < form.before / 4
    assert compact(root, folder, base, never)
    assert is_compacted(folder) and base_of(folder) == ("difference", base.path)
    assert record.verify(folder) == [] and models(folder, tmp_path / "s") == wanted
    there = contents(folder)
    assert [name for name in there if name.endswith(".safetensors")] == [] and there["loss.parquet"] == b"losses"
    inodes = [os.stat(folder / f"{place}model.safetensors.difference").st_ino for place in ("", "steps/1/", "steps/2/")]
    assert inodes[0] == inodes[2] != inodes[1]
    told = record.read(folder)
    assert told["whole"].keys() == {n for n in before if n.endswith(".safetensors")} and told["fingerprint"] == TUNED
    assert undo(root, folder, never)
    assert contents(folder) == before and not list((root / "work").glob("*"))
    assert os.stat(folder / "model.safetensors").st_ino == os.stat(folder / "steps/2/model.safetensors").st_ino


def test_plain_files_stay_while_a_stage_reads_them(root: Path, tmp_path: Path) -> None:
    base, folder = make(root)
    wanted = models(folder, tmp_path / "s")
    assert not compact(root, folder, base, always)
    assert (folder / "model.safetensors").exists() and is_compacted(folder)
    assert record.verify(folder) == [] and models(folder, tmp_path / "s") == wanted
    assert not free(folder, always) and free(folder, never) and not (folder / "model.safetensors").exists()
    assert not undo(root, folder, always)
    assert record.verify(folder) == [] and models(folder, tmp_path / "s") == wanted
    assert (folder / "model.safetensors.difference").exists() and undo(root, folder, never)
    assert not (folder / "model.safetensors.difference").exists()


def killed_at(number: int, work: Any) -> bool:
    """Run `work` in a child that dies at its `number`-th step on files; False if it had fewer."""

    def doomed() -> None:
        left = number

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.listdir"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    return wait(forked(doomed)) == -signal.SIGKILL


@pytest.mark.parametrize("direction", ["there", "back"])
def test_killed_at_every_step_it_is_whole_and_goes_on(root: Path, tmp_path: Path, direction: str) -> None:
    base, folder = make(root, 100)
    wanted = models(folder, tmp_path / "s")
    ways = {"there": lambda: compact(root, folder, base, never), "back": lambda: undo(root, folder, never)}
    if direction == "back":
        compact(root, folder, base, never)
    deaths, number = 0, 0
    while killed_at(number := number + 1, ways[direction]):
        assert models(folder, tmp_path / "s") == wanted and record.verify(folder) == [], f"killed at {number}"
        record.wait_visible(folder, record.read(folder), 0)
        deaths += 1
        assert ways[direction]()
        assert models(folder, tmp_path / "s") == wanted and record.verify(folder) == []
        assert is_compacted(folder) == (direction == "there")
        assert len(list(folder.glob("model.safetensors*"))) == 1
        assert [p.name for p in (root / "work").iterdir() if not p.name.startswith(".trash-")] == []  # for `clean`
        ways["back" if direction == "there" else "there"]()
    assert deaths > 30


def test_a_full_disk_leaves_the_artifact_as_it_was(tiny_disk: Path, tmp_path: Path) -> None:
    base, folder = make(tiny_disk, 50_000)  # two tensors of 100 kB in each of three files
    wanted = contents(folder)
    filler = tiny_disk / "filler"
    filler.write_bytes(b"x" * (shutil.disk_usage(tiny_disk).free - 20_000))
    with pytest.raises(OSError, match="No space left"):
        compact(tiny_disk, folder, base, never)
    assert contents(folder) == wanted and not list((tiny_disk / "work").glob("*"))
    filler.unlink()
    assert compact(tiny_disk, folder, base, never)
    filler.write_bytes(b"x" * (shutil.disk_usage(tiny_disk).free - 20_000))
    wanted = contents(folder)
    with pytest.raises(OSError, match="No space left"):
        undo(tiny_disk, folder, never)
    assert contents(folder) == wanted


def test_what_is_not_there_or_damaged_is_refused_with_a_reason(root: Path, tmp_path: Path) -> None:
    base, folder = make(root)
    before = contents(folder)
    assert survey(folder, {"data": Artifact(path=tmp_path)}, tmp_path / "s").reason == "no input has its tensors"
    assert survey(base.path, {"model": base}, tmp_path / "s").after < 1000  # a copy takes no room
    (folder / "model.safetensors").write_bytes(before["model.safetensors"][:-1] + b"!")
    with pytest.raises(ValueError, match="is damaged: it is not the file of its record"):
        compact(root, folder, base, never)
    (folder / "model.safetensors").write_bytes(before["model.safetensors"])
    assert contents(folder) == before
    compact(root, folder, base, never)
    shutil.move(base.path, tmp_path / "away")
    with pytest.raises(ValueError, match="no model is there: bring it back"):
        undo(root, folder, never)
    shutil.move(tmp_path / "away", base.path)
    (base.path / "artifact.json").write_text(json.dumps({**record.read(base.path), "fingerprint": TUNED}))
    with pytest.raises(ValueError, match="belongs to fingerprint"):
        undo(root, folder, never)


def test_of_several_inputs_the_nearest_is_the_base(root: Path, tmp_path: Path) -> None:
    base, folder = make(root)
    far = tmp_path / "far"
    model(far, {name: torch.randn(3000).bfloat16() for name in ("a", "b")})
    assert survey(folder, {"far": Artifact(path=far), "near": base}, tmp_path / "s").base == base
    form = survey(folder, {"far": Artifact(path=far)}, tmp_path / "s")
    assert form.base is None and form.reason == "it is too far from what it was made from"


def test_two_at_once_do_not_meet(root: Path, tmp_path: Path) -> None:
    base, folder = make(root)
    work = root / "work" / f"compact-{TUNED[:12]}"
    work.mkdir()
    (work / "who.json").write_text(json.dumps(identity()))
    with pytest.raises(ValueError, match="another process is at it"):
        compact(root, folder, base, never)
    assert [p.name for p in (root / "work").iterdir()] == [work.name]


def test_a_base_is_not_dropped(root: Path) -> None:
    base, folder = make(root)

    def drop() -> bool:
        return dropping.drop(root, base.path, BASE, identity())

    compact(root, folder, base, never)
    assert bases.needed(root) == {BASE[:12]}
    assert not drop() and not record.is_dropped(base.path)
    undo(root, folder, never)
    assert bases.needed(root) == set() and drop()
    with pytest.raises(ValueError, match="no model|holds no|cannot"):
        compact(root, folder, base, never)
    assert record.verify(folder) == [] and not is_compacted(folder)


def test_a_change_to_a_change_is_read_through_both(root: Path, tmp_path: Path) -> None:
    base, folder = make(root)
    out = root / "work" / "again"
    model(out, {n: torch.ones(3000).bfloat16() for n in ("a", "b")})
    shutil.copyfile(folder / "model.safetensors", out / "model.safetensors")
    words: dict[str, Any] = {"spec": {}, "inputs": {}, "metrics": {}, "provenance": {}}
    again = record.commit(root, job="train", label="n", fingerprint="f00d" * 16, out=out, record=words, timeout=5)
    wanted = (again / "model.safetensors").read_bytes()
    compact(root, again, Artifact(path=folder, fingerprint=TUNED), never)
    compact(root, folder, base, never)
    assert (whole(again, tmp_path / "s") / "model.safetensors").read_bytes() == wanted
    assert undo(root, again, never) and (again / "model.safetensors").read_bytes() == wanted
