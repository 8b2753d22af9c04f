"""Prompt tuning: vectors that are trained stand before the text's embeddings (Lester et al. 2021, arXiv 2104.08691), by
PEFT. They begin as the embeddings of tokens drawn at random. Everything else is as in `sft`.

They are no weights of the model, so they stay beside it: `generate` and `evaluate` load both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.stage import Context
from toolkit.training.methods import sft


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and tokens: how many vectors."""

    tokens: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}: at least one vector is trained")
        if self.packing:
            raise ValueError("packing joins rows, and each row needs the trained vectors before it: leave it out")


Inputs = sft.Inputs


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the adapter, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: what `sft` says.
    """
    from peft import PromptTuningConfig

    from toolkit.training.adapters import tune, with_peft

    config = PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=spec.tokens, prompt_tuning_init="SAMPLE_VOCAB"
    )
    return tune(spec, inputs, out, ctx, lambda model: with_peft(model, config))
