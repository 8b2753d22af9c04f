"""A Hugging Face folder whose weights are `pytorch_model.bin`, as Pythia's and Amber's steps are: read as data, never
unpickled, and written as safetensors, byte for byte where the dtype stays.
"""

import json
import re
from pathlib import Path

from toolkit.checkpoints.tensors import INDEX, SINGLE, Tensor
from toolkit.conversion.pickles import read_torch
from toolkit.conversion.weights import Weight, whole

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# What models saved beside their weights once and compute today: causal masks, rotary frequencies.
BUFFERS = (r"\.attn(ention)?\.(masked_)?bias$", r"\.rotary_emb\.inv_freq$")


def files(folder: Path) -> list[Path]:
    """The files of weights of such a folder; none if it has safetensors, which are taken first.

    Raises:
        ValueError: a shard that the index names is missing.
    """
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        return []
    if not (folder / BIN_INDEX).is_file():
        return [folder / BIN] if (folder / BIN).is_file() else []
    shards = sorted(set(json.loads((folder / BIN_INDEX).read_text())["weight_map"].values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}, one of the {len(shards)} shards that its {BIN_INDEX} names")
    return [folder / name for name in shards]


def read(folder: Path, paths: list[Path]) -> dict[str, Weight]:
    """Every weight by name, without buffers, and without the output head where it is the embedding.

    Raises:
        ValueError: a file is damaged, asks for code, or holds something else; two files hold a weight.
    """
    from toolkit.checkpoints.check import expected, read_config

    config = read_config(folder)
    shapes, _, ignored, renamed = expected(config)
    tied = bool(config.get_text_config().tie_word_embeddings)
    found: dict[str, Weight] = {}
    for path in paths:
        for name, tensor in read_torch(path).items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{path}: {name!r} is no tensor: this is not a file of weights alone")
            known = name in shapes or renamed(name) in shapes
            if name in found:
                raise ValueError(f"tensor {name!r} is in {found[name].pieces[0].tensor.file} and in {path}")
            if known or not any(re.search(pattern, name) for pattern in (*ignored, *BUFFERS)):
                found[name] = whole(tensor)
    if tied and len(found) > 1:
        found.pop("lm_head.weight", None)
    return found
