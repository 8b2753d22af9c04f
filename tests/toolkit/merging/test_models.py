"""Models that store the same thing in different ways: vocabularies, padding, ties, layouts; and writing that ends early."""

import errno
import json
import os
import shutil
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import merge
from tests.toolkit.training.small import Small, context, weights
from toolkit.checkpoints.tensors import read_folder
from toolkit.merging import output, stream
from toolkit.merging.methods.delta import Inputs, Spec, scale_of
from toolkit.merging.models import pair, read_models
from toolkit.stage import Artifact

ADDED = ("<|user|>", "<|assistant|>")


def variant(source: Path, folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    """A copy of a model folder with other weights and other words in its config."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("steps"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    words = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(words))
    return folder


@pytest.fixture(scope="module")
def models(small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """trained and base with some padding rows; instruct with two added tokens, no padding, its rows in another order."""
    folder, start = tmp_path_factory.mktemp("m"), weights(small.model.path)
    random = torch.Generator().manual_seed(0)
    found = {}
    rows = start["model.embed_tokens.weight"].shape[0]
    for role in ("trained", "base"):
        tensors = {n: x + 0.01 * torch.randn(x.shape, generator=random) for n, x in start.items()}
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.randn(5, tensors[name].shape[1], generator=random)])
        found[role] = variant(small.model.path, folder / role, tensors, vocab_size=rows + 5)
    tokenizer = AutoTokenizer.from_pretrained(small.model.path)
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED)})
    size = len(tokenizer)
    tensors = {n: x + 0.01 * torch.randn(x.shape, generator=random) for n, x in start.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(size, tensors[name].shape[1], generator=random)
    found["instruct"] = variant(small.model.path, folder / "instruct", tensors, vocab_size=size)
    tokenizer.save_pretrained(found["instruct"])
    (found["instruct"] / "generation_config.json").write_text('{"eos_token_id": [0, 1]}')
    return found


def go(models: dict[str, Path], folder: Path, **words: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    out.mkdir(parents=True)
    inputs = Inputs(**{role: Artifact(path=path) for role, path in models.items()})
    return out, merge.run(Spec(method="delta", **words), inputs, out, context(folder, threads=2))


def test_added_tokens_and_padding(models: dict[str, Path], tmp_path: Path) -> None:
    """Against a dictionary of tokens: what only instruct knows keeps its row, everything else is the arithmetic."""
    out, metrics = go(models, tmp_path, scale=0.5)
    vocabularies = {role: AutoTokenizer.from_pretrained(path).get_vocab() for role, path in models.items()}
    stored = {role: weights(path) for role, path in models.items()}
    merged = weights(out)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert merged[name].shape == stored["instruct"][name].shape
        for token, row in vocabularies["instruct"].items():
            instruct = stored["instruct"][name][row]
            if token in ADDED:
                expected = instruct
            else:
                trained, base = (stored[r][name][vocabularies[r][token]] for r in ("trained", "base"))
                expected = trained + 0.5 * (instruct - base)
            assert torch.equal(merged[name][row], expected), token
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == len(vocabularies["instruct"])
    assert "2 tokens that it lacks (such as '<|user|>') have the rows of instruct" in metrics["notes"]["vocabulary"]
    assert metrics["notes"]["generation"] == "instruct"
    assert AutoTokenizer.from_pretrained(out).get_vocab() == vocabularies["instruct"]
    AutoModelForCausalLM.from_pretrained(out)(torch.tensor([[0, 5, config["vocab_size"] - 1]]))


def test_the_other_tokenizer(models: dict[str, Path], tmp_path: Path) -> None:
    """With trained's, its padding stays, and the tokens that instruct alone has would be lost: refused."""
    with pytest.raises(ValueError, match="instruct has 2 tokens that trained, whose vocabulary .* would be lost"):
        go(models, tmp_path, tokenizer="trained")
    out, metrics = go(models | {"instruct": models["base"]}, tmp_path / "b", tokenizer="trained")
    for name, tensor in weights(models["trained"]).items():
        assert torch.equal(weights(out)[name], tensor)
    assert metrics["notes"]["tokenizer"] == "trained" and "vocabulary" not in metrics["notes"]


def test_ties_on_one_side(models: dict[str, Path], small: Small, tmp_path: Path) -> None:
    """base and trained tie their embeddings, instruct does not: each tied one lends its embeddings as the head."""
    tied = {}
    for role in ("trained", "base"):
        tensors = {n: x for n, x in weights(small.model.path).items() if n != "lm_head.weight"}
        tensors = {n: x + (0.5 if role == "trained" else 0) for n, x in tensors.items()}
        tied[role] = variant(small.model.path, tmp_path / role, tensors, tie_word_embeddings=True)
    out, metrics = go({**tied, "instruct": small.model.path}, tmp_path)
    stored = {role: weights(path) for role, path in {**tied, "instruct": small.model.path}.items()}
    embedding = "model.embed_tokens.weight"
    head = stored["trained"][embedding] + (stored["instruct"]["lm_head.weight"] - stored["base"][embedding])
    assert torch.equal(weights(out)["lm_head.weight"], head)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not loaded.config.tie_word_embeddings and torch.equal(loaded.lm_head.weight, head)
    assert "trained, base tie it" in metrics["notes"]["untied"]


def test_layers_have_scales_of_their_own(models: dict[str, Path], tmp_path: Path) -> None:
    plain = models | {"instruct": models["base"], "base": models["trained"]}
    patterns = {"model.layers.0.*": 0.0, "*embed_tokens*": 2.0}
    out, _ = go({**plain, "trained": models["base"]}, tmp_path, scale=0.5, scales=patterns)
    base, instruct = weights(models["trained"]), weights(models["base"])
    for name, tensor in weights(out).items():
        scale = 0.0 if name.startswith("model.layers.0.") else 2.0 if "embed_tokens" in name else 0.5
        assert torch.equal(tensor, instruct[name] + scale * (instruct[name] - base[name])), name
    with pytest.raises(ValueError, match="no tensor has a name like 'modle"):
        scale_of(base, 1.0, {"modle.*": 0.5})
    with pytest.raises(ValueError, match=r"fits '\*' \(0.1\) and '\*norm\*' \(0.2\) of scales"):
        scale_of(["a", "norm"], 1.0, {"*": 0.1, "*norm*": 0.2})


def test_other_widths_are_refused_by_name_and_shapes(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = {n: torch.zeros(x.shape[0], 16) if "embed" in n else x for n, x in weights(models["base"]).items()}
    odd = variant(models["base"], tmp_path / "odd", tensors)
    with pytest.raises(
        ValueError, match=r"tensor 'model.embed_tokens.weight' has shape .* in instruct and .*16\) in base"
    ):
        read_models(models | {"base": odd}, like="instruct", base="base")


def test_what_is_not_finite_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = weights(models["trained"])
    tensors["model.norm.weight"][3] = float("nan")
    with pytest.raises(ValueError, match="element 3 of the merged tensor 'model.norm.weight' is not finite"):
        go(models | {"trained": variant(models["trained"], tmp_path / "nan", tensors)}, tmp_path)
    assert not list((tmp_path / "out").glob("*.safetensors*"))
    tensors["model.norm.weight"][3] = 70000.0
    big = models | {"trained": variant(models["trained"], tmp_path / "big", tensors)}
    with pytest.raises(ValueError, match="is not finite as float16"):
        go(big, tmp_path / "f", dtype="fp16")
    go(big, tmp_path / "b", dtype="bf16")


def test_a_full_disk_leaves_no_half_model(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First where space is taken, then in the middle of writing."""

    def full(*words: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        go(models, tmp_path / "a")
    assert list((tmp_path / "a" / "out").iterdir()) == []
    monkeypatch.undo()
    written = output.Output.put

    def later(self: output.Output, tensor: str, first: int, data: memoryview) -> None:
        full() if tensor == "model.norm.weight" else written(self, tensor, first, data)

    monkeypatch.setattr(output.Output, "put", later)
    with pytest.raises(OSError, match="No space left"):
        go(models, tmp_path / "b")
    assert list((tmp_path / "b" / "out").iterdir()) == []


def _slowly(models: dict[str, Path], out: Path) -> None:
    def combine(chunks: list[torch.Tensor]) -> torch.Tensor:
        time.sleep(0.02)
        return chunks[0]

    stream.stream(pair(models, like="instruct", base="base").tensors, combine, out, None, piece=4096)


def test_killed_in_the_middle_leaves_no_half_model(models: dict[str, Path], tmp_path: Path) -> None:
    process = get_context("fork").Process(target=_slowly, args=(models, tmp_path))
    process.start()
    while not list(tmp_path.glob("*.part")):
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors.part"]
    with pytest.raises(ValueError, match="holds no weights"):
        read_folder(tmp_path)
    _slowly(models, tmp_path)  # the next attempt, over what is left
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"] and load_file(
        tmp_path / "model.safetensors"
    )
