"""Surgery on the blocks of a decoder, on its files: which block of a parent each block of a child is.

No model is built: tensors are copied from file to file by their ranges, so memory is a buffer whatever the size. Blocks
are told by their names (a prefix, a number, the rest), whatever the architecture calls them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.check import read_config
from toolkit.checkpoints.folders import CONFIG, GENERATION, copy_file, copy_tokenizer
from toolkit.checkpoints.tensors import Tensor, read_folder, write_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

NUMBERED = re.compile(r"(.+?\.)(\d+)(\..+)")  # the first number of a name is the block's; experts are counted within


def chosen(select: str, have: int, want: int) -> list[int]:
    """For each of `want` blocks of a child, the number of the parent's block (of `have`) that it is a copy of.

    Raises:
        ValueError: the parent cannot give so many in that way.
    """
    if select in ("first", "spaced"):
        if want >= have:
            raise ValueError(
                f"layers is {want} and the parent has {have}: select {select} needs fewer than that; stack and"
                " interleave make a model deeper"
            )
        if select == "first":
            return list(range(want))
        return [(2 * i * (have - 1) + want - 1) // (2 * (want - 1)) for i in range(want)]  # halves are rounded up
    if want % have or want == have:
        raise ValueError(
            f"layers is {want} and the parent has {have}: select {select} copies all blocks equally often, so layers"
            f" must be a multiple: {2 * have}, {3 * have}, ..."
        )
    return [i % have if select == "stack" else i * have // want for i in range(want)]


def inherit(parent: Path, source: Sequence[int], out: Path) -> None:
    """Write to `out` the model whose block i is the parent's block source[i]; all that is no block is the parent's.

    Raises:
        ValueError: the tensors' names do not tell the parent's blocks.
    """
    tensors = read_folder(parent)
    config = read_config(parent)
    prefix = _prefix(tensors, int(config.get_text_config().num_hidden_layers), parent)
    child = {}
    for name, tensor in tensors.items():
        match = NUMBERED.fullmatch(name)
        if match is None or match[1] != prefix:
            child[name] = (tensor, tensor)
            continue
        for number, origin in enumerate(source):
            if origin == int(match[2]):
                copy = f"{prefix}{number}{match[3]}"
                child[copy] = (replace(tensor, name=copy), tensor)

    def parts(name: str) -> "Iterator[Tensor]":
        yield child[name][1]

    write_folder(out, {name: like for name, (like, _) in child.items()}, None, parts)
    _write_config(parent, config, source, out)
    copy_tokenizer(parent, out)
    if (parent / GENERATION).is_file():
        copy_file(parent / GENERATION, out / GENERATION, link=False)


def _prefix(tensors: Mapping[str, Tensor], blocks: int, folder: Path) -> str:
    """What stands before the number of a block, such as `model.layers.`."""
    numbers: dict[str, set[int]] = {}
    for name in tensors:
        match = NUMBERED.fullmatch(name)
        if match is not None:
            numbers.setdefault(match[1], set()).add(int(match[2]))
    found = [prefix for prefix, have in numbers.items() if have == set(range(blocks))]
    if len(found) != 1:
        shown = ", ".join(sorted(numbers)) or "none"
        raise ValueError(
            f"{folder} has {blocks} blocks by its {CONFIG}, and the names of its tensors do not tell which these are:"
            f" numbered names begin with {shown}"
        )
    return found[0]


def _write_config(parent: Path, config: Any, source: Sequence[int], out: Path) -> None:
    """The parent's config.json with the child's number of blocks, and what it says of each block taken along.

    Hazard: a class that is left to derive `layer_types` derives them from the number of blocks and the place of each
    (every fourth of an OLMo 3 sees everything), so that an inherited block would get another window: they are written
    out, as transformers understands the parent's.
    """
    words = json.loads((parent / CONFIG).read_text())
    text = config.get_text_config()
    place = words if text is config else words[next(k for k, v in vars(config).items() if v is text)]
    blocks = int(text.num_hidden_layers)
    for name, value in text.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == blocks:
            place[name] = [value[origin] for origin in source]
    place[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(source)
    (out / CONFIG).write_text(json.dumps(words, indent=2, sort_keys=True) + "\n")
