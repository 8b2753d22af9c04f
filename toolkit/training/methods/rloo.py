"""REINFORCE with leave-one-out baselines (arXiv 2402.14740), by TRL's RLOOTrainer: RLHF without a value network.

The reward of an answer is r - beta x KL, with the KL of the whole answer to the reference, log p - log p_ref (which has
it as its mean); its baseline is the mean reward of the other answers to the same prompt. `kl` in loss.parquet is the
mean over tokens.
"""

from pathlib import Path
from typing import Any

from toolkit.stage import Context
from toolkit.training.policy import Inputs, Spec, improve

__all__ = ["Inputs", "Spec", "run"]


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """See `toolkit.training.policy.improve`."""
    return improve(spec, inputs, out, ctx, "RLOO")
