"""A model folder is whole or refused: keys, shapes, bytes, values, vocabulary. Files are read without loading them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.toolkit.training.small import SIZES, Small, tokenizer
from toolkit.checkpoints.check import check_model
from toolkit.checkpoints.folders import copy_file, load_tokenizer
from toolkit.checkpoints.kept import kept_steps, model_folder
from toolkit.checkpoints.tensors import BYTES, chunks, read_folder, read_header, write_file, write_folder

FILE = "model.safetensors"


@pytest.fixture
def folder(small: Small, tmp_path: Path) -> Path:
    """A copy of the small model that a test may spoil."""
    shutil.copytree(small.model.path, tmp_path / "m", ignore=shutil.ignore_patterns("steps"))
    return tmp_path / "m"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    return folder


def test_a_whole_model(folder: Path) -> None:
    summary = check_model(folder)
    tensors = load_file(folder / FILE)
    assert summary.parameters == sum(t.numel() for t in tensors.values())
    assert summary.tensors == len(tensors) and summary.dtypes == ("F32",) and summary.architecture == "olmo2"


def test_truncated(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[:-1000])
    with pytest.raises(
        ValueError, match=f"{FILE} is truncated: it has {len(data) - 1000:,} bytes and .* {len(data):,};"
    ):
        check_model(folder)
    (folder / FILE).write_bytes(data[:100])
    with pytest.raises(ValueError, match="is truncated or no safetensors file: it has 100 bytes"):
        check_model(folder)
    (folder / FILE).write_bytes(data + b"x")
    with pytest.raises(ValueError, match="is too long"):
        check_model(folder)


def test_missing_unexpected_and_misshapen_keys(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit(folder, lambda t: t.update({"model.layers.1.mlp.up.weight": t.pop(name)}))
    with pytest.raises(ValueError, match=rf"missing 1 \({name}\); unexpected 1 \(model.layers.1.mlp.up.weight\)"):
        check_model(folder)
    edit(folder, lambda t: t.update({name: t.pop("model.layers.1.mlp.up.weight").T.contiguous()}))
    with pytest.raises(ValueError, match=rf"{name}' in .* has shape \(32, 64\); a olmo2 .* has \(64, 32\)"):
        check_model(folder)


def test_values_that_are_not_finite(folder: Path) -> None:
    edit(folder, lambda t: t["model.norm.weight"].view(-1)[3:4].fill_(float("nan")))
    with pytest.raises(ValueError, match="tensor 'model.norm.weight' in .* has values that are not finite"):
        check_model(folder)


def test_vocabulary_larger_than_the_embedding(folder: Path, tmp_path: Path) -> None:
    more = tokenizer(tmp_path / "t", extra=tuple(f"<{n}>" for n in range(40)))
    with pytest.raises(
        ValueError, match=r"has (\d+) tokens and the embedding only 2\d\d rows: set vocab_size to at least \1"
    ):
        check_model(folder, tokenizer=more)


def test_what_is_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no model: there is no config.json"):
        check_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "olmo9"}))
    with pytest.raises(ValueError, match="config.json cannot be read"):
        check_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / FILE).rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no weights"):
        check_model(folder)


def test_tied_embeddings_may_be_stored_or_not(small: Small, tmp_path: Path) -> None:
    words = {"model_type": "llama", **SIZES, "tie_word_embeddings": True}
    out = small.pretrain(tmp_path / "t", architecture=words, steps=1)
    assert "lm_head.weight" not in read_folder(out)
    check_model(out)
    copy = shutil.copytree(out, tmp_path / "c")
    check_model(edit(copy, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})))


def test_chunks_and_shards_round_trip(small: Small, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small.model.path, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    tensors = read_folder(tmp_path)
    state = model.state_dict()
    assert tensors.keys() == state.keys()
    for name, tensor in tensors.items():
        pieces = list(chunks(tensor, 100))
        assert max(len(piece) for piece in pieces) <= 100
        assert torch.equal(torch.cat(pieces), state[name].flatten())
    (tmp_path / "out").mkdir()
    write_folder(tmp_path / "out", tensors, None, lambda name: chunks(tensors[name], 77))
    for name, tensor in read_folder(tmp_path / "out").items():
        assert torch.equal(load_file(tensor.file)[name], state[name])
        assert tensor.file.name == tensors[name].file.name
    for name in ("config.json", "generation_config.json"):
        copy_file(tmp_path / name, tmp_path / "out" / name, link=False)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), state.values(), strict=True))
    next(tmp_path.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-.*, one of the"):
        read_folder(tmp_path)


def test_header_of_every_dtype(tmp_path: Path) -> None:
    kinds = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
    ]
    tensors = {str(kind): torch.arange(5).to(kind) for kind in [*kinds, torch.uint8, torch.bool]}
    save_file(tensors, tmp_path / FILE)
    header = read_header(tmp_path / FILE)
    assert {t.dtype for t in header.values()} == set(BYTES)
    for name, tensor in header.items():
        assert torch.equal(next(chunks(tensor)), tensors[name])


def test_steps_of_an_artifact(small: Small, tmp_path: Path) -> None:
    assert kept_steps(small.model.path) == [0, 2, 4]
    with pytest.raises(ValueError, match="has no step 3: it keeps 0, 2, 4"):
        model_folder(small.model.path, 3)
    with pytest.raises(ValueError, match="it keeps no steps"):
        model_folder(tmp_path, 3)


def test_copies_do_not_share_bytes_unless_asked(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    copy_file(tmp_path / "a", tmp_path / "copy", link=False)
    copy_file(tmp_path / "a", tmp_path / "link", link=True)
    inode = (tmp_path / "a").stat().st_ino
    assert (tmp_path / "copy").stat().st_ino != inode == (tmp_path / "link").stat().st_ino


def test_tokenizer_of_a_folder_without_config_keeps_its_ids(small: Small) -> None:
    text = "Anna's 2nd house, isn't it?\n\n1234 Berlin"
    alone, beside = load_tokenizer(small.tokenizer.path), load_tokenizer(small.model.path)
    assert alone(text)["input_ids"] == beside(text)["input_ids"]
    assert alone.decode(alone(text)["input_ids"]) == text


def test_keys_that_are_saved_under_an_older_name(small: Small, tmp_path: Path) -> None:
    """Pythia's head is embed_out in its files, and lm_head in this transformers."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, vocab_size=288)).save_pretrained(tmp_path / "m")
    assert "embed_out.weight" in read_folder(tmp_path / "m")
    assert check_model(tmp_path / "m", tokenizer=small.tokenizer.path).architecture == "gpt_neox"
    edit(tmp_path / "m", lambda t: t.pop("embed_out.weight"))
    with pytest.raises(ValueError, match=r"missing 1 \(lm_head.weight\)"):
        check_model(tmp_path / "m", tokenizer=small.tokenizer.path)


def test_ranges_of_files_are_copied(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(1500, 1000), "b": torch.randn(7)}
    save_file(tensors, tmp_path / "in.safetensors")
    found = read_header(tmp_path / "in.safetensors")
    layout = {name: (found[name].dtype, found[name].shape) for name in ("b", "a")}
    write_file(tmp_path / FILE, layout, lambda name: iter([found[name]] if name == "a" else [tensors[name]]))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(tmp_path / FILE).items())
    (tmp_path / "in.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="in.safetensors ends inside tensor 'b'"):
        write_file(tmp_path / FILE, layout, lambda name: iter([found[name]]))
