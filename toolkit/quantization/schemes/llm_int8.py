"""LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339), a reference in plain torch: what it splits can be read off it.

Weights are absmax by row; activations vector-wise, but for features in which a token reaches the threshold: those are
multiplied in floats. `bitsandbytes` is the same by that library, in fp16 and with kernels for GPUs.
"""

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
    """Fill `out` with the quantized model and the errors of its layers."""
    from toolkit.quantization import store
    from toolkit.quantization.errors import bytes_of, finish
    from toolkit.quantization.integers import absmax

    words = {"kind": "outliers", "threshold": spec.threshold}
    errors = store.write(inputs.model.path, out, words, lambda weight: absmax(weight, 1), ctx)
    return finish(out, bytes_of(inputs.model.path), errors)
