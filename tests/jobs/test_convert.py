"""The job `convert`: a kept step or a folder of the user's own becomes one checked model folder."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

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


def as_torch_saved_it(small: Small, folder: Path, shards: int = 1) -> Path:
    """A Pythia as its steps lie on the Hub: fp16 in torch's format, with the buffers that were saved in its time."""
    torch.manual_seed(0)
    rows = len(load_tokenizer(small.tokenizer.path))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, vocab_size=rows, max_position_embeddings=64)).half()
    model.save_pretrained(folder)
    saved = dict(weights(folder))
    (folder / "model.safetensors").unlink()
    for layer in range(2):
        saved[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        saved[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        saved[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    if shards == 1:
        torch.save(saved, folder / "pytorch_model.bin")
    else:
        names = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(saved)}
        for file in set(names.values()):
            torch.save({name: saved[name] for name in saved if names[name] == file}, folder / file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    for path in small.tokenizer.path.iterdir():
        if path.name != "config.json":
            shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_weights_in_torchs_format_come_out_as_safetensors(small: Small, tmp_path: Path, shards: int) -> None:
    source = as_torch_saved_it(small, tmp_path / "pythia", shards)
    wanted = {}
    for path in source.glob("*.bin"):
        wanted |= torch.load(path, weights_only=True)
    out, metrics = go(source, tmp_path)
    model, found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float16, output_loading_info=True)
    assert not any(found.values()) and metrics["parameters"] == sum(p.numel() for p in model.parameters())
    made = weights(out)
    assert made and all(torch.equal(made[name], wanted[name]) for name in made)
    assert not [name for name in made if "masked_bias" in name or "inv_freq" in name or ".attention.bias" in name]
    cast, _ = go(source, tmp_path / "fp32", dtype="fp32")
    assert all(torch.equal(t, wanted[name].float()) for name, t in weights(cast).items())


def test_a_program_in_a_file_of_weights_does_not_run(small: Small, tmp_path: Path) -> None:
    source = as_torch_saved_it(small, tmp_path / "pythia")

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"gpt_neox.embed_in.weight": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="its pickle asks for"):
        go(source, tmp_path)
    assert not (tmp_path / "ran").exists()
