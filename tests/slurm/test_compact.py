"""`tidemark compact` on a study: forty fine-tuned models, a stage that reads one meanwhile, a disk budget, and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.lab import Lab, make_house, until
from toolkit.manifest import dropping, record
from toolkit.manifest.claims import identity

FETCH = '''
"""A small model in bf16 that can be fetched again."""

from dataclasses import dataclass

VERSION = 1
TRANSIENT = True
WARM = ("torch", "safetensors.torch")


@dataclass(frozen=True, kw_only=True)
class Spec:
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    pass


def run(spec, inputs, out, ctx):
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(spec.seed)
    weights = {name: torch.randn(200, 50, generator=generator).bfloat16() for name in "abc"}
    save_file(weights, out / "model.safetensors")
    (out / "config.json").write_text("{}")
'''
TUNE = '''
"""Its weights a little changed."""

from dataclasses import dataclass

from toolkit.stage import Artifact

VERSION = 1
WARM = ("torch", "safetensors.torch", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Spec:
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    model: Artifact


def run(spec, inputs, out, ctx):
    import torch
    from safetensors.torch import load_file, save_file
    from toolkit.checkpoints.whole import whole_inputs

    weights = load_file(whole_inputs(inputs, ctx.state).model.path / "model.safetensors")
    generator = torch.Generator().manual_seed(spec.seed)
    moved = {n: (w.view(torch.int16) + (torch.rand(w.shape, generator=generator) < 0.1)).view(torch.bfloat16) for n, w in weights.items()}
    save_file(moved, out / "model.safetensors")
    (out / "config.json").write_text("{}")
'''
READ = '''
"""Digests the weights of a model; waits first, if it is told to."""

import time
from dataclasses import dataclass

from toolkit.stage import Artifact

VERSION = 1
WARM = ("torch", "safetensors.torch", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Spec:
    wait: bool = False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    model: Artifact


def run(spec, inputs, out, ctx):
    from toolkit.checkpoints.whole import whole_inputs
    from toolkit.manifest.files import digest_file

    path = whole_inputs(inputs, ctx.state).model.path / "model.safetensors"
    (ctx.state / "begun").touch()
    while spec.wait and not (ctx.state / "go").exists():
        time.sleep(0.02)
    (out / "digest").write_text(digest_file(path))
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_house(tmp_path_factory.mktemp("house"))
    for name, text in (("fetch", FETCH), ("tune", TUNE), ("read", READ)):
        (made / "jobs" / f"{name}.py").write_text(text)
    return made


def sweep(count: int, **more: Any) -> dict[str, Any]:
    tuned = {"job": "tune", "inputs": {"model": "base"}, "axes": {"seed": [*range(1, count + 1)]}}
    return {"base": {"job": "fetch"}, "tuned": tuned, **more}


def weights(root: Path) -> dict[str, str]:
    """Folder -> digest of the model that every tuned artifact's record promises."""
    found = {}
    for folder in (root / "artifacts" / "tune").iterdir():
        if folder.name[0] != ".":
            told = record.read(folder)
            found[folder.name] = (told.get("whole") or told["files"])["model.safetensors"]["digest"]
    return found


def test_a_sweep_of_forty_takes_a_fraction_and_every_stage_reads_it(house: Path, tmp_path: Path) -> None:
    lab = Lab(house=house, folder=tmp_path)
    study = lab.study(sweep(40))
    lab.run("launch", study, "--workers", 1)
    before = {p.name: (p / record.RECORD).read_bytes() for p in (lab.root / "artifacts/tune").iterdir()}
    wanted = weights(lab.root)
    estimated = json.loads(lab.run("compact", study, "--dry-run", "--json").stdout)
    assert all((lab.root / "artifacts/tune" / name / "model.safetensors").exists() for name in before)
    found = json.loads(lab.run("compact", study, "--json").stdout)
    assert len(found["artifacts"]) == 40 and {line["base"] for line in found["artifacts"]} == {"base"}
    assert found["after"] < 0.2 * found["before"] and estimated["after"] == pytest.approx(found["after"], rel=0.2)
    assert not list((lab.root / "artifacts/tune").glob("*/model.safetensors"))
    assert "artifacts, 0 damaged" in lab.run("verify", study).stdout
    again = json.loads(lab.run("compact", study, "--json").stdout)
    assert again["before"] == again["after"] == found["after"]
    reading = lab.study(sweep(40, read={"job": "read", "inputs": {"model": "tuned"}}))
    lab.run("launch", reading, "--workers", 1)
    read = {p.read_text() for p in (lab.root / "artifacts/read").glob("*/digest")}
    assert read == set(wanted.values()) and len(read) == 40
    text = lab.run("compact", study, "--undo").stdout
    assert "80 artifacts became" in text and weights(lab.root) == wanted
    assert {p.name: (p / record.RECORD).read_bytes() for p in (lab.root / "artifacts/tune").iterdir()} == before
    assert "artifacts, 0 damaged" in lab.run("verify").stdout


def test_beside_a_stage_that_reads_it(house: Path, tmp_path: Path) -> None:
    lab = Lab(house=house, folder=tmp_path)
    lab.run("launch", lab.study(sweep(2)), "--workers", 1)
    one = {"job": "read", "inputs": {"model": {"stage": "tuned", "seed": 1}}, "spec": {"wait": True}}
    study = lab.study(sweep(2, read=one))
    process = lab.start("launch", study, "--workers", 1)
    until(lambda: list(lab.root.glob("work/*/state/begun")))
    begun = next(lab.root.glob("work/*/state/begun"))
    text = lab.run("compact", study, "tuned").stdout
    assert "a stage that runs reads its plain files" in text
    plain = [p for p in (lab.root / "artifacts/tune").glob("*/model.safetensors")]
    assert len(plain) == 1 and plain[0].with_name("model.safetensors.difference").exists()
    (begun.parent / "go").touch()
    assert process.wait(timeout=60) == 0
    assert next(lab.root.glob("artifacts/read/*/digest")).read_text() in weights(lab.root).values()
    lab.run("compact", study, "tuned")
    assert not plain[0].exists() and "0 damaged" in lab.run("verify").stdout


def test_a_base_stays_within_a_disk_budget_and_clean_keeps_it(house: Path, tmp_path: Path) -> None:
    lab = Lab(house=house, folder=tmp_path)
    study = lab.study(sweep(2))
    lab.run("launch", study, "--workers", 1)
    lab.run("compact", study)
    more = lab.study(sweep(3))
    lab.run("launch", more, "--workers", 1, "--disk-budget", "1M")
    base = next(path for path in (lab.root / "artifacts/fetch").iterdir() if path.is_dir())
    assert not record.is_dropped(base)
    lab.study({"base": {"job": "fetch"}, "tuned": sweep(1)["tuned"]})
    lab.run("launch", study, "--workers", 1)
    lab.run("clean", "--unused", "--yes")
    assert base.is_dir() and not record.is_dropped(base) and len(weights(lab.root)) == 1
    lab.run("compact", study, "--undo")
    assert dropping.drop(lab.root, base, record.read(base)["fingerprint"], identity())


def test_a_base_that_is_gone_or_another_is_told(house: Path, tmp_path: Path) -> None:
    lab = Lab(house=house, folder=tmp_path)
    study = lab.study(sweep(1))
    lab.run("launch", study, "--workers", 1)
    lab.run("compact", study)
    base = next(path for path in (lab.root / "artifacts/fetch").iterdir() if path.is_dir())
    shutil.move(base, tmp_path / "away")
    assert "no model is there: bring it back" in lab.run("compact", study, "--undo", code=3).stderr
    assert "no model is there" in lab.run("verify", study, code=3).stderr
    shutil.move(tmp_path / "away", base)
    data = bytearray((base / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (base / "model.safetensors").write_bytes(data)
    assert "the base is not bit for bit what it was" in lab.run("compact", study, "--undo", code=3).stderr
    assert "digest" in lab.run("verify", code=3).stderr
