"""Group-relative policy optimisation (arXiv 2402.03300), by TRL's GRPOTrainer: RLHF without a value network.

The advantage of an answer is its reward less the mean of its prompt's answers, over their standard deviation; beta x KL
to the reference (p_ref / p - log(p_ref / p) - 1, which is never negative) is added to each token's loss. The loss is a
mean over the tokens of all answers of a step (DAPO, arXiv 2503.14476). `kl` in loss.parquet is the mean over tokens.
"""

from pathlib import Path
from typing import Any

from toolkit.stage import Context
from toolkit.training.policy import Inputs, Spec, improve

__all__ = ["Inputs", "Spec", "run"]


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """See `toolkit.training.policy.improve`."""
    return improve(spec, inputs, out, ctx, "GRPO")
