"""Quantize a model: the scheme that the spec names is a module of `toolkit.quantization.schemes`."""

from pathlib import Path
from typing import Any

from toolkit import lookup
from toolkit.checkpoints.whole import whole_inputs
from toolkit.stage import Choice, Context

VERSION = 1
CHOICE = Choice(field="scheme", package="toolkit.quantization.schemes")
WARM = ("torch", "pyarrow.parquet", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


def run(spec: Any, inputs: Any, out: Path, ctx: Context) -> dict[str, Any]:
    """The scheme's own `run`: fills `out` with a model folder."""
    import torch

    torch.set_num_threads(ctx.resources.threads)
    metrics: dict[str, Any] = lookup.find(CHOICE.package, spec.scheme, "scheme").run(
        spec, whole_inputs(inputs, ctx.state), out, ctx
    )
    return metrics
