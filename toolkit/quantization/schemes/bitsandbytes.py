"""LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) by its authors' library; see `llm_int8`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.stage import Artifact, Context


@dataclass(frozen=True, kw_only=True)
class Spec:
    """threshold: magnitude from which an activation makes an outlier of its feature."""

    scheme: str
    threshold: float = 6.0

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold is {self.threshold}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a plain one."""

    model: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with a model folder that transformers reads, and the errors of its layers."""
    import torch
    from transformers import BitsAndBytesConfig

    from toolkit.quantization import library

    def weight_of(layer: Any) -> torch.Tensor:
        codes, scale = layer.weight.data, layer.weight.SCB
        return codes.float() * scale.float().unsqueeze(1) / 127

    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=spec.threshold)
    return library.run(inputs.model.path, out, config, weight_of, ctx)
