"""Quantization-aware training: the model learns with the rounding that it will be used with, by torchao.

In the forward pass weights (and activations, if asked for) are rounded to the grid of the scheme and back; in the
backward pass the rounding counts as the identity (straight-through, arXiv 1308.3432; on language models arXiv
2305.17888). What is trained and kept are the fp32 weights, as of any other method: a post-training scheme with the same
grid then rounds them as training did. Everything else is as in `sft`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Context
from toolkit.training.methods import sft


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and: bits: of a weight, on a grid that is symmetric about 0. group: weights along a row that
    share a scale; 0 for the whole row. activations: `int8` rounds what goes into a layer, token by token on a grid of
    its own range; `none` leaves it. The output head and the embeddings are not rounded.
    """

    bits: Literal[2, 3, 4, 5, 6, 7, 8] = 4
    group: int = 32
    activations: Literal["none", "int8"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 0:
            raise ValueError(f"group is {self.group}: it is a number of weights, or 0 for the whole row")


Inputs = sft.Inputs


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the model in fp32, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: a group that does not divide the rows of a layer, and what `sft` says.
    """
    return sft.tune(spec, inputs, out, ctx, lambda model: prepared(spec, model))


def scheme(spec: Spec) -> Any:
    """The post-training scheme of torchao that rounds as training does."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, PerAxis, PerGroup

    grid = PerGroup(spec.group) if spec.group else PerAxis(0)
    dtype = getattr(torch, f"int{spec.bits}")
    if spec.activations == "int8":
        return Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=grid)
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=grid)


def linear(model: Any) -> Any:
    """(module, its name) -> whether it is one of the layers that are rounded: all linear ones but the output head."""
    import torch

    head = model.get_output_embeddings()
    return lambda module, name: isinstance(module, torch.nn.Linear) and module is not head


def prepared(spec: Spec, model: Any) -> Any:
    """The model with its linear layers rounding; names and values of its weights are the same."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    chosen = linear(model)
    for name, module in model.named_modules():
        if spec.group and chosen(module, name) and module.in_features % spec.group:
            raise ValueError(
                f"group is {spec.group} and the rows of {name} have {module.in_features} weights: it must divide them"
                " (0 takes whole rows)"
            )
    quantize_(model, QATConfig(scheme(spec), step="prepare"), filter_fn=chosen)
    return model
