"""What all methods share: the pass that writes the weights, and the files beside them.

Structure and file layout are those of the first model; vocabulary, tokenizer, generation settings and the ids of
special tokens are those of the model `like`, which is the one that people talk to.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.merging.models import Paired
from toolkit.stage import Context

if TYPE_CHECKING:
    from toolkit.merging.stream import Combine

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def merge(
    paired: Paired, folders: Mapping[str, Path], like: str, combine: "Combine", spec: Any, out: Path, ctx: Context,
    halves: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Fill `out` with the model that `combine` makes of the paired ones. halves: it takes bf16 as it is, too.

    spec: a method's, of which dtype (None: that of the first model, tensor by tensor), rounding and seed are read.

    Returns:
        `parameters`, and `notes`: whose config, tokenizer and generation settings these are, how it was rounded, and
        what had to be done so that the models fit.

    Raises:
        ValueError: a result that is not finite; an output that is not the model that its config says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.tensors import PRECISIONS, TORCH
    from toolkit.merging.stream import write

    word = PRECISIONS[spec.dtype] if spec.dtype else None
    write(
        paired.tensors, combine, out, word, halves=halves, rounding=spec.rounding, seed=spec.seed,
        threads=ctx.resources.threads, report=lambda done, total: ctx.progress(done, total, unit="parameter"),
    )  # fmt: skip
    main = next(iter(folders))
    dtype = TORCH[word or main_dtype(paired.tensors[main])]
    generation = _settings(folders[main], folders[like], paired, out, dtype)
    notes = {"config": main, "tokenizer": like, "generation": generation and like, "dtype": dtype}
    notes |= {"rounding": spec.rounding, **paired.notes}
    return {
        "parameters": check_model(out, values=False).parameters,
        "notes": notes,
    }  # values: seen as they were written


def _settings(main: Path, like: Path, paired: Paired, out: Path, dtype: str) -> bool:
    """config.json, the tokenizer, and generation_config.json where `like` has one; whether it has."""
    from toolkit.checkpoints.folders import CONFIG, GENERATION, copy_config, copy_file, copy_tokenizer

    copy_config(main, out, dtype)
    (out / GENERATION).unlink(missing_ok=True)
    if (like / GENERATION).is_file():
        copy_file(like / GENERATION, out / GENERATION, link=False)
    copy_tokenizer(like, out)
    config, other = (json.loads((folder / CONFIG).read_text()) for folder in (out, like))
    text, theirs = config.get("text_config", config), other.get("text_config", other)
    before = json.dumps(config)
    text |= {key: theirs[key] for key in SPECIAL if key in theirs}
    text["vocab_size"] = paired.vocabulary
    if bool(text.get("tie_word_embeddings", not paired.tied)) != paired.tied:
        text["tie_word_embeddings"] = paired.tied
    if json.dumps(config) != before:
        (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return (like / GENERATION).is_file()


def main_dtype(tensors: Mapping[str, Any]) -> str:
    """safetensors' word for the type that most of the elements have."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.elements
    return max(sizes, key=lambda word: sizes[word])
