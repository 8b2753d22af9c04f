"""BitFit: only biases are trained (Ben Zaken et al. 2022, arXiv 2106.10199); in a model without any, what is nearest.

Many decoders have no biases (OLMo, Llama). There the gains of norms are trained, and biases that the architecture has
a switch for (`attention_bias`, `mlp_bias`) are added, from zero. `training.json` names every trained tensor.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Context
from toolkit.training.methods import sft

if TYPE_CHECKING:
    import torch

SWITCHES = ("attention_bias", "mlp_bias")  # fields of a config that give its linear layers biases
Part = Literal["bias", "norm", "added"]


@dataclass(frozen=True, kw_only=True)
class Spec(sft.Spec):
    """The fields of `sft`, and parts: what is trained of `bias` (that the model has), `norm` (gains) and `added` (new
    biases). By default `bias`, or `norm` and `added` where the model has no biases."""

    parts: tuple[Part, ...] = ()


Inputs = sft.Inputs


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the adapter, `steps/<N>/` and `loss.parquet`.

    Raises:
        ValueError: the model has nothing of what `parts` names, and what `sft` says.
    """
    from toolkit.checkpoints.check import read_config
    from toolkit.checkpoints.tensors import read_folder
    from toolkit.training.adapters import tune

    names = set(read_folder(inputs.model.path))
    parts = spec.parts or (("bias",) if any(name.endswith(".bias") for name in names) else ("norm", "added"))
    config = read_config(inputs.model.path)
    switches = {key: True for key in SWITCHES if "added" in parts and getattr(config, key, True) is False}
    if "added" in parts and not switches and "norm" not in parts and "bias" not in parts:
        raise ValueError(
            f"parts is added, and a {config.model_type} has no switch for biases that is off ({', '.join(SWITCHES)}):"
            " train bias or norm"
        )

    def wrap(model: Any) -> Any:
        chosen = _chosen(model, parts, names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        if not chosen:
            raise ValueError(
                f"a {config.model_type} has nothing of what parts names ({', '.join(parts)}): choose others of bias,"
                " norm, added"
            )
        return model

    def files(model: Any, weights: "dict[str, torch.Tensor]") -> tuple[dict[str, Any], "dict[str, torch.Tensor]"]:
        return {"peft_type": "BITFIT", "parts": list(parts), "config": switches}, weights

    return tune(spec, inputs, out, ctx, wrap, files, switches)


def _chosen(model: Any, parts: tuple[str, ...], known: set[str]) -> set[str]:
    """Names of the parameters to train; `known` are those of the model as it was."""
    found = set()
    for path, module in model.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            kind = "norm" if norm and name == "weight" else "bias" if name == "bias" and full in known else ""
            kind = kind or ("added" if name == "bias" else "")
            if kind in parts:
                found.add(full)
    return found
