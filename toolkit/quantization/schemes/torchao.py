"""8-bit weights by torchao, whose kernels multiply integers on CPUs and GPUs: what one would serve a model with.

Weights are absmax by row (output); activations stay floats, or are absmax by token, as in `absmax` with `vector`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """activations: `none` multiplies in floats, `dynamic` in integers."""

    scheme: str
    activations: Literal["none", "dynamic"] = "none"


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a plain one."""

    model: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with a model folder that transformers reads, and the errors of its layers."""
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    from toolkit.quantization import library

    def weight_of(layer: Any) -> torch.Tensor:
        return layer.weight.dequantize()  # type: ignore[no-any-return]

    kind = Int8WeightOnlyConfig if spec.activations == "none" else Int8DynamicActivationInt8WeightConfig
    return library.run(inputs.model.path, out, TorchAoConfig(kind()), weight_of, ctx)
