"""(IA)3: keys, values and the inner activations of the MLP are each scaled by a trained vector (Liu et al. 2022,
arXiv 2205.05638), by PEFT. The vectors begin at one. Everything else is as in `sft`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.stage import Context
from toolkit.training.methods import sft

# Names of (keys and values, what leads out of the MLP) in the families of models that there are.
USUAL = ((("k_proj", "v_proj"), ("down_proj",)), (("query_key_value",), ("dense_4h_to_h",)))


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and: targets: layers whose output is scaled; feedforward: layers whose input is. By default
    keys, values and the MLP's last layer, under the names that the model has for them."""

    targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = ()


Inputs = sft.Inputs


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the adapter, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: a target that the model has not, and what `sft` says.
    """
    from toolkit.training.adapters import tune

    return tune(spec, inputs, out, ctx, lambda model: _wrap(spec, model))


def _wrap(spec: Spec, model: Any) -> Any:
    from peft import IA3Config

    from toolkit.training.adapters import linear_names, with_peft

    scaled, inner = spec.targets, spec.feedforward
    if not scaled and not inner:
        there = linear_names(model)
        usual = next((pair for pair in USUAL if {*pair[0], *pair[1]} <= set(there)), None)
        if usual is None:
            raise ValueError(
                f"which layers of a {model.config.model_type} are keys, values and the end of the MLP is not known:"
                f" name targets and feedforward out of {', '.join(there)}"
            )
        scaled, inner = usual
    config = IA3Config(task_type="CAUSAL_LM", target_modules=[*scaled, *inner], feedforward_modules=list(inner))
    return with_peft(model, config)
