"""References of stored changes to their base: relative within a root, and refused where the base is another or gone."""

import json
import shutil
from pathlib import Path

import pytest

from toolkit.checkpoints.whole import REFERENCE, base_of, whole, whole_inputs
from toolkit.stage import Artifact


def _reference(root: Path, named: str, fingerprint: str = "") -> Path:
    folder = root / "artifacts" / "train" / "tuned-0123"
    folder.mkdir(parents=True)
    (folder / REFERENCE).write_text(json.dumps({"form": "difference", "base": named, "fingerprint": fingerprint}))
    return folder


def _base(root: Path) -> Path:
    base = root / "artifacts" / "download" / "base-4567"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    return base


def test_a_plain_folder_is_itself(tmp_path: Path) -> None:
    assert base_of(tmp_path) is None
    assert whole(tmp_path, tmp_path / "scratch") == tmp_path


def test_a_base_within_the_root_moves_with_it(tmp_path: Path) -> None:
    _base(tmp_path / "root")
    folder = _reference(tmp_path / "root", "../../download/base-4567")
    shutil.move(tmp_path / "root", tmp_path / "moved")
    moved = tmp_path / "moved" / folder.relative_to(tmp_path / "root")
    assert base_of(moved) == ("difference", tmp_path / "moved" / "artifacts" / "download" / "base-4567")
    (moved / "steps" / "10").mkdir(parents=True)
    assert base_of(moved / "steps" / "10") == base_of(moved)


def test_a_base_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = _reference(tmp_path, "../../download/base-4567")
    with pytest.raises(ValueError, match="base-4567, and no model is there"):
        base_of(folder)


def test_a_damaged_reference_is_named(tmp_path: Path) -> None:
    folder = _reference(tmp_path, "x")
    (folder / REFERENCE).write_text('{"form": "difference"}')
    with pytest.raises(ValueError, match=r"base.json cannot be read \(KeyError\('base'\)\)"):
        base_of(folder)


def test_inputs_that_are_plain_stay_as_they_are(tmp_path: Path) -> None:
    from toolkit.merging.methods.delta import Inputs

    artifact = Artifact(path=_base(tmp_path))
    inputs = Inputs(trained=artifact, base=artifact, instruct=artifact)
    assert whole_inputs(inputs, tmp_path) == inputs
