"""Prefix tuning: keys and values that are trained stand before those of the text, in every block (Li and Liang 2021,
arXiv 2101.00190), by PEFT. Everything else is as in `sft`.

They are no weights of the model, so they stay beside it: `generate` and `evaluate` load both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.stage import Context
from toolkit.training.methods import sft


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and tokens: how many keys and values in each block."""

    tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}: at least one key and value is trained")
        if self.packing:
            raise ValueError("packing joins rows, and each row needs the trained prefix before it: leave it out")


Inputs = sft.Inputs


def check(spec: Spec, resources: Any) -> None:
    """Refuse a layout without a cache.

    Raises:
        ValueError: gradient checkpointing.
    """
    if resources.gradient_checkpointing:
        raise ValueError("prefix_tuning hands its prefix over as a cache, which gradient_checkpointing does without")


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the adapter, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: what `sft` says.
    """
    from peft import PrefixTuningConfig

    from toolkit.training.adapters import tune, with_peft

    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=spec.tokens)
    return tune(spec, inputs, out, ctx, lambda model: with_peft(model, config))
