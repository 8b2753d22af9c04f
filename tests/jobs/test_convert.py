"""The job `convert`: a kept step or a folder of the user's own becomes one checked model folder."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs import convert
from tests.toolkit.training.small import Small, context
from tests.toolkit.training.small import small as build
from tests.toolkit.training.small import tokenizer, weights
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.checkpoints.tensors import read_folder
from toolkit.conversion.run import TEXT
from toolkit.stage import Artifact


@pytest.fixture(scope="module")
def small() -> Small:
    return build()


def go(source: Path, folder: Path, **fields: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    out.mkdir(parents=True)
    inputs = convert.Inputs(source=Artifact(path=source))
    return out, convert.run(convert.Spec(**fields), inputs, out, context(folder))


def test_a_kept_step(small: Small, tmp_path: Path) -> None:
    out, metrics = go(small.model.path, tmp_path, step=2)
    step = small.model.path / "steps" / "2"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in step.iterdir())
    for path in step.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert metrics["step"] == 2 and metrics["parameters"] == sum(t.numel() for t in weights(step).values())
    assert not any(AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)[1].values())


def test_the_root_of_a_run_is_its_last_step(small: Small, tmp_path: Path) -> None:
    out, metrics = go(small.model.path, tmp_path)
    assert metrics["step"] == 4
    assert (out / "model.safetensors").read_bytes() == (small.model.path / "model.safetensors").read_bytes()


def test_bytes_are_shared_with_artifacts_and_never_with_a_users_folder(small: Small, tmp_path: Path) -> None:
    mine = shutil.copytree(small.model.path, tmp_path / "mine")
    inode = (mine / "model.safetensors").stat().st_ino
    out, _ = go(mine, tmp_path / "a")
    assert (out / "model.safetensors").stat().st_ino != inode
    (mine / "artifact.json").write_text("{}")
    out, _ = go(mine, tmp_path / "b")
    assert (out / "model.safetensors").stat().st_ino == inode


def test_another_dtype(small: Small, tmp_path: Path) -> None:
    out, _ = go(small.model.path, tmp_path, dtype="bf16")
    source = weights(small.model.path)
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, source[name].to(torch.bfloat16))
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def test_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no step 3: it keeps 0, 2, 4; name one of these"):
        go(small.model.path, tmp_path / "a", step=3)
    with pytest.raises(ValueError, match="holds no model: there is no config.json"):
        go(small.tokenizer.path, tmp_path / "b")
    broken = shutil.copytree(small.model.path, tmp_path / "broken")
    path = broken / "steps" / "2" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="2/model.safetensors is truncated"):
        go(broken, tmp_path / "c", step=2)
    assert read_folder(small.model.path)  # untouched: a copy was spoilt


def test_bits_of_the_fixed_text(small: Small, tmp_path: Path) -> None:
    """Held against transformers' own loss on the same pieces."""
    _, metrics = go(small.model.path, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(small.model.path)
    words = load_tokenizer(small.model.path)
    ids = words(TEXT)["input_ids"]
    bits = 0.0
    for at in range(0, len(ids), 63):  # the model was trained with 64 positions, of which one is the start
        row = torch.tensor([[words.eos_token_id, *ids[at : at + 63]]])
        with torch.no_grad():
            bits += float(model(row, labels=row).loss) * (row.shape[1] - 1) / math.log(2)
    assert metrics["bits_per_byte"] == pytest.approx(bits / len(TEXT.encode()), abs=2e-6)


def test_a_tokenizer_from_elsewhere(small: Small, tmp_path: Path) -> None:
    bare = shutil.copytree(small.model.path, tmp_path / "bare", ignore=shutil.ignore_patterns("token*", "chat*"))
    given = tokenizer(tmp_path / "given")
    out = tmp_path / "out"
    out.mkdir()
    inputs = convert.Inputs(source=Artifact(path=bare), tokenizer=Artifact(path=given))
    metrics = convert.run(convert.Spec(), inputs, out, context(tmp_path))
    assert (out / "tokenizer.json").read_bytes() == (given / "tokenizer.json").read_bytes()
    assert metrics["bits_per_byte"] > 1
    with pytest.raises(ValueError, match="holds no tokenizer"):
        convert.run(
            convert.Spec(), convert.Inputs(source=Artifact(path=bare), tokenizer=Artifact(path=bare)), out, context(out)
        )
