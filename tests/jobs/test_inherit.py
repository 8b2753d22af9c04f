"""The job `inherit`, for the architectures of toolkit/families: against the same surgery on the modules of a torch model."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs import inherit
from tests.toolkit.training.small import context, tokenizer
from toolkit.checkpoints.blocks import chosen
from toolkit.checkpoints.tensors import INDEX, read_folder
from toolkit.stage import Artifact
from toolkit.training.architecture import make_config

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "olmo": {"model_type": "olmo"},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", "sliding_window": 4},  # every fourth block sees everything, the others 4 tokens
    "pythia": {"model_type": "gpt_neox"},
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "smollm3": {"model_type": "smollm3", "no_rope_layer_interval": 3},
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


def parent(folder: Path, tokens: Path, shard: str = "1GB", **architecture: Any) -> Path:
    """A model at random, with gains away from 1, or a norm in another block's place would not show."""
    config = make_config({**SIZES, **architecture}, tokens)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    for path in tokens.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def run(folder: Path, source: Path, **spec: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    out.mkdir(parents=True)
    metrics = inherit.run(inherit.Spec(**spec), inherit.Inputs(model=Artifact(path=source)), out, context(folder))
    return out, metrics


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(0, 250, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("select", ["first", "spaced", "stack", "interleave"])
def test_a_child_computes_what_its_blocks_do(tmp_path: Path, tokens: Path, family: str, select: str) -> None:
    source = parent(tmp_path / "parent", tokens, **FAMILIES[family])
    layers = {"first": 3, "spaced": 3, "stack": 8, "interleave": 8}[select]
    out, metrics = run(tmp_path / "child", source, select=select, layers=layers)
    child, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()) and child.config.num_hidden_layers == layers
    model = AutoModelForCausalLM.from_pretrained(source)
    blocks = model.base_model.layers
    order = {"first": [0, 1, 2], "spaced": [0, 2, 3], "stack": [0, 1, 2, 3] * 2}.get(select, [0, 0, 1, 1, 2, 2, 3, 3])
    model.base_model.layers = torch.nn.ModuleList(copy.deepcopy(blocks[i]) for i in order)
    types = getattr(model.config, "layer_types", None)
    if types:
        model.config.layer_types = [types[i] for i in order]
    model.config.num_hidden_layers = layers
    assert torch.equal(logits(child), logits(model))
    assert metrics["parameters"] == sum(p.numel() for p in child.parameters())
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_what_is_said_of_each_block_goes_with_it(tmp_path: Path, tokens: Path) -> None:
    source = parent(tmp_path / "parent", tokens, **FAMILIES["olmo3"])
    out, _ = run(tmp_path / "child", source, select="spaced", layers=2)
    assert json.loads((out / "config.json").read_text())["layer_types"] == ["sliding_attention", "full_attention"]


def test_shards_stay_shards_and_types_stay(tmp_path: Path, tokens: Path) -> None:
    source = parent(tmp_path / "parent", tokens, shard="60KB", model_type="olmo2")
    out, metrics = run(tmp_path / "child", source, layers=1)
    assert (out / INDEX).is_file() and {t.dtype for t in read_folder(out).values()} == {"F32"}
    whole = sum(t.elements for t in read_folder(source).values())
    assert metrics["share"] == sum(t.elements for t in read_folder(out).values()) / whole < 0.7


def test_which_blocks() -> None:
    assert chosen("first", 36, 18) == list(range(18))
    assert chosen("spaced", 12, 4) == [0, 4, 7, 11]
    assert [chosen("spaced", 16, k)[-1] for k in range(2, 16)] == [15] * 14
    for have in range(3, 40):
        for want in range(2, have):
            found = chosen("spaced", have, want)
            assert found[0] == 0 and len(set(found)) == want and sorted(found) == found
            gaps = [b - a for a, b in zip(found, found[1:])]
            assert max(gaps) - min(gaps) <= 1
    assert chosen("stack", 2, 6) == [0, 1] * 3 and chosen("interleave", 2, 6) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"layers": 0}, "layers is 0: select first needs at least 1"),
        ({"layers": 1, "select": "spaced"}, "layers is 1: select spaced needs at least 2"),
        ({"layers": 4}, "layers is 4 and the parent has 4: select first needs fewer"),
        ({"layers": 9, "select": "spaced"}, "layers is 9 and the parent has 4: select spaced needs fewer"),
        ({"layers": 6, "select": "stack"}, "layers is 6 and the parent has 4: .* must be a multiple: 8, 12"),
        ({"layers": 4, "select": "interleave"}, "must be a multiple: 8, 12"),
    ],
)
def test_refused(tmp_path: Path, tokens: Path, spec: dict[str, Any], message: str) -> None:
    source = parent(tmp_path / "parent", tokens, model_type="olmo2")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "child", source, **spec)
