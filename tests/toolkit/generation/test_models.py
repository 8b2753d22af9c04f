"""A model folder that cannot be used is refused, with the reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toolkit.generation.tiny import Tiny
from toolkit.generation.models import context_length, end_tokens, load


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.model.path, tmp_path / "model"))


def test_precision_and_limits(tiny: Tiny) -> None:
    model, tokenizer = load(tiny.model.path, "bf16", 1)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and not model.training
    assert context_length(model) == 128
    assert end_tokens(tiny.model.path, tokenizer) == [tokenizer.eos_token_id]
    assert {p.dtype for p in load(tiny.model.path, "auto", 1)[0].parameters()} == {torch.float32}


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizers(copy: Path) -> None:
    tokenizer = load(copy, "fp32", 1)[1]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert end_tokens(copy, tokenizer) == sorted({7, 9, tokenizer.eos_token_id})
    (copy / "generation_config.json").unlink()
    assert end_tokens(copy, tokenizer) == [tokenizer.eos_token_id]


def test_a_missing_tensor_is_not_filled_with_random_numbers(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 missing keys .*model.layers.1.mlp.up_proj.weight"):
        load(copy, "fp32", 1)


def test_a_surplus_tensor_is_not_dropped(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors") | {"model.layers.7.extra": torch.zeros(2)}
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 unexpected keys .*model.layers.7.extra"):
        load(copy, "fp32", 1)


def test_a_truncated_file(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="weights of .* cannot be read"):
        load(copy, "fp32", 1)


def test_a_tokenizer_with_more_tokens_than_embeddings(tiny: Tiny, copy: Path) -> None:
    tokenizer = load(tiny.model.path, "fp32", 1)[1]
    tokenizer.add_tokens([f"<extra{i}>" for i in range(7)])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ValueError, match=r"has \d+ tokens and the model's embedding only \d+ rows"):
        load(copy, "fp32", 1)


@pytest.mark.parametrize("name, said", [("config.json", "no model"), ("tokenizer_config.json", "no tokenizer")])
def test_a_folder_without_its_files(copy: Path, name: str, said: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ValueError, match=said):
        load(copy, "fp32", 1)
