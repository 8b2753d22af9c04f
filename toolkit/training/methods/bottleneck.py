"""Bottleneck adapters: a narrow two-layer network after attention and after the MLP of each block (Houlsby et al. 2019,
arXiv 1902.00751); see `toolkit.training.bottleneck`. Everything else is as in `sft`.

They are not part of any weight matrix, so they stay beside the model: `generate` and `evaluate` load both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Context
from toolkit.training.methods import sft

if TYPE_CHECKING:
    import torch

# Names of the last layer of attention and of the MLP in the families of models that there are.
USUAL = (("o_proj", "down_proj"), ("dense", "dense_4h_to_h"))


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and: size: width of the bottleneck; activation: in it; targets: names of the layers that it
    follows, by default the last of attention and of the MLP."""

    size: int = 16
    activation: Literal["relu", "gelu", "silu"] = "gelu"
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"size is {self.size}: the bottleneck is at least 1 wide")


Inputs = sft.Inputs


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the adapter, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: a target that the model has not, and what `sft` says.
    """
    from toolkit.training.adapters import linear_names, tune
    from toolkit.training.bottleneck import insert

    def targets(model: Any) -> tuple[str, ...]:
        there = set(linear_names(model))
        return spec.targets or next((names for names in USUAL if set(names) <= there), USUAL[0])

    def wrap(model: Any) -> Any:
        model.requires_grad_(False)
        insert(model, spec.size, targets(model), spec.activation)
        return model

    def files(model: Any, weights: "dict[str, torch.Tensor]") -> tuple[dict[str, Any], "dict[str, torch.Tensor]"]:
        words = {"peft_type": "BOTTLENECK", "size": spec.size, "activation": spec.activation}
        return words | {"targets": list(targets(model))}, weights

    return tune(spec, inputs, out, ctx, wrap, files)
