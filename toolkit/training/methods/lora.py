"""LoRA: beside each linear layer a product of two thin matrices is trained (Hu et al. 2021, arXiv 2106.09685), by PEFT.

With `dora` the weights' magnitudes are trained as well (Liu et al. 2024, arXiv 2402.09353); `rank_stabilised` scales by
alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732). Everything else is as in `sft`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.stage import Context
from toolkit.training.methods import sft


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and: rank; alpha: the product counts alpha / rank times; dropout: on what goes into it;
    targets: names of layers, all linear ones of the blocks by default."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rank_stabilised: bool = False
    dora: bool = False
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"rank is {self.rank}, alpha {self.alpha:g}, dropout {self.dropout:g}: rank is at least 1, alpha above"
                " 0, dropout from 0 up to 1"
            )


Inputs = sft.Inputs


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
    return tune(spec, inputs, out, ctx, lambda model: with_peft(model, config))
