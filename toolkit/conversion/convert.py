"""An original becomes a model folder: read, streamed, checked key by key, proven, measured."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toolkit.checkpoints.check import check_model
from toolkit.checkpoints.folders import CONFIG, check_tokenizer, copy_tokenizer
from toolkit.checkpoints.tensors import PRECISIONS, TORCH
from toolkit.conversion.original import Original, check_consumed
from toolkit.conversion.proof import prove
from toolkit.conversion.run import bits
from toolkit.conversion.weights import SHARD, save

NOTES = "conversion.json"


def convert(
    original: Original, tokenizer: Path | None, out: Path, dtype: str | None, report: Callable[[int, int], None]
) -> dict[str, Any]:
    """Fill `out` with a model folder, and `conversion.json`, which says how it was proven.

    tokenizer: folder of the tokenizer's files, which are copied byte for byte; None where there is none. dtype: of the
    weights (fp32, bf16, fp16), or None to leave them. report: (elements done, of how many).

    Raises:
        ValueError: the original is damaged, has what no Hugging Face class has, or `out` does not compute the same.
    """
    word = PRECISIONS[dtype] if dtype else None
    write(original, out, word, report=report)
    if tokenizer:
        copy_tokenizer(tokenizer, out)
        check_tokenizer(tokenizer, out)
    summary = check_model(out, bare=tokenizer is None)
    proof = prove(original, out, word)
    notes = {"format": original.format, "proof": asdict(proof)}
    (out / NOTES).write_text(json.dumps(notes, indent=2) + "\n")
    return {"parameters": summary.parameters, "tensors": summary.tensors} | bits(out)


def write(
    original: Original, out: Path, word: str | None, *, report: Callable[[int, int], None], shard: int = SHARD
) -> None:
    """Config and weights alone. word: safetensors' word for the dtype, or None to leave it.

    Raises:
        ValueError: a weight of the original has no place, or more than one.
    """
    check_consumed(original)
    first = next(iter(original.targets.values()))
    config = {**original.config, "dtype": TORCH[word or first.dtype]}
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save(original.targets, out, word, report=report, shard=shard)
