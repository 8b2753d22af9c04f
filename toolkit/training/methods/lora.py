"""LoRA: beside each linear layer a product of two thin matrices is trained (Hu et al. 2021, arXiv 2106.09685), by PEFT.

With `dora` the weights' magnitudes are trained as well (Liu et al. 2024, arXiv 2402.09353); `rank_stabilised` scales by
alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732). Everything else is as in `sft`.

With `base: nf4` (or `fp4`) it is QLoRA (Dettmers et al. 2023, arXiv 2305.14314): the frozen layers are held in four
bits by bitsandbytes, the scales of their blocks in eight (double quantization), and are turned back to `precision` for
each product. Only training sees them so: the artifact is an adapter like any other, and is merged into the base as it
is stored. A base of rounded weights would tie a result to a library's rounding, and a difference to the base would no
longer be the two thin matrices.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Context
from toolkit.training.methods import sft

BLOCK = 64  # weights that share a scale in bitsandbytes' four bits


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and: rank; alpha: the product counts alpha / rank times; dropout: on what goes into it;
    targets: names of layers, all linear ones of the blocks by default; base: what the frozen layers are held in."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ()
    base: Literal["whole", "nf4", "fp4"] = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank is {self.rank}, alpha {self.alpha:g}, dropout {self.dropout:g}: rank is at least 1, alpha above"
                " 0, dropout from 0 up to 1"
            )


Inputs = sft.Inputs


def check(spec: Spec, resources: Any) -> None:
    """Refuse a layout that four bits cannot be trained on.

    Raises:
        ValueError: ZeRO 3, which would cut packed codes as if they were weights.
    """
    if spec.base != "whole" and resources.zero == 3:
        raise ValueError(
            f"base is {spec.base} and zero is 3, which cuts up weights and not codes of four bits: take zero 2, or none"
            " (four bits are a quarter of 16), or base: whole"
        )


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the adapter, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: a target that the model has not, and what `sft` says.
    """
    from peft import LoraConfig

    from toolkit.training.adapters import tune, with_peft

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        lora_dropout=spec.dropout,
        use_rslora=spec.rank_stabilised,
        use_dora=spec.dora,
        target_modules=list(spec.targets) or "all-linear",
    )

    def wrap(model: Any) -> Any:
        if spec.base != "whole":
            _check_rows(spec, model)
        return with_peft(model, config)

    return tune(spec, inputs, out, ctx, wrap, how=_four_bits(spec))


def _check_rows(spec: Spec, model: Any) -> None:
    """Hazard: bitsandbytes' blocks run on from row to row, but its code for CPUs reads scales as if each row began one:
    what it multiplies by is then wrong, and nothing says so."""
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit) and layer.in_features % BLOCK and layer.weight.device.type == "cpu":
            raise ValueError(
                f"base is {spec.base} and the rows of {name} have {layer.in_features} weights: on a CPU bitsandbytes"
                f" computes wrongly with rows that are no multiple of {BLOCK}; train on a GPU, or with base: whole"
            )


def _four_bits(spec: Spec) -> dict[str, Any]:
    """How transformers is to read the base."""
    import torch
    from transformers import BitsAndBytesConfig

    if spec.base == "whole":
        return {}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=spec.base,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if spec.precision == "bf16" else torch.float32,
        )
    }
