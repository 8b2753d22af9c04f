"""Ranges of activations, from rows of a data set: static quantization fixes them before the model is asked anything."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toolkit.quantization.errors import Errors
from toolkit.quantization.integers import dequantize
from toolkit.quantization.layers import in_range
from toolkit.quantization.store import linears
from toolkit.stage import Context

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LONGEST = 512  # tokens of a row of text
Ranges = dict[str, dict[str, torch.Tensor]]


def ranges(source: Path, data: Path, split: str, rows: int, affine: bool, ctx: Context) -> tuple[Ranges, Errors]:
    """Layer -> `input_low` and `input_high` of what it is given, over rows of a data set; and how far the activations
    of the same rows are from themselves once they are quantized with these.

    Raises:
        ValueError: no such split, or rows with neither `input_ids` nor `text`.
    """
    from toolkit.generation.models import load

    model, tokenizer = load(source, "fp32", ctx.resources.threads)
    batch = list(_rows(data, split, rows, tokenizer))
    low: dict[str, torch.Tensor] = {}
    high: dict[str, torch.Tensor] = {}

    def widen(name: str, x: torch.Tensor) -> None:
        low[name] = torch.minimum(low[name], x.amin()) if name in low else x.amin()
        high[name] = torch.maximum(high[name], x.amax()) if name in high else x.amax()

    _watch(model, batch, widen)
    errors = Errors("activation")

    def measure(name: str, x: torch.Tensor) -> None:
        errors.add(name, x, dequantize(in_range(x, low[name], high[name], affine)))

    _watch(model, batch, measure)
    return {name: {"input_low": low[name].cpu(), "input_high": high[name].cpu()} for name in low}, errors


def _rows(data: Path, split: str, rows: int, tokenizer: Any) -> Iterator[torch.Tensor]:
    from toolkit.data.splits import open_split

    table = open_split(data, split, limit=rows)
    names = table.column_names
    if "input_ids" not in names and "text" not in names:
        raise ValueError(
            f"split {split!r} of {data} has neither 'input_ids' nor 'text' to calibrate on; it has {', '.join(names)}"
        )
    for row in table:
        ids = row["input_ids"] if "input_ids" in names else tokenizer(row["text"])["input_ids"][:LONGEST]
        if ids:
            yield torch.tensor([ids])


def _watch(model: "PreTrainedModel", rows: list[torch.Tensor], told: Callable[[str, torch.Tensor], None]) -> None:
    """Run the model, telling what each linear layer is given."""
    hooks = []
    for name in linears(model):
        layer = model.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(lambda _, given, name=name: told(name, given[0].detach())))
    with torch.inference_mode():
        for row in rows:
            model(input_ids=row.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
