"""Merge models: the method that the spec names is a module of `toolkit.merging.methods`."""

from pathlib import Path
from typing import Any

from toolkit import lookup
from toolkit.checkpoints.whole import whole_inputs
from toolkit.stage import Choice, Context

VERSION = 1
CHOICE = Choice(field="method", package="toolkit.merging.methods")
WARM = (
    "torch", "tokenizers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto",
    "toolkit.merging.compiled",
)  # fmt: skip


def run(spec: Any, inputs: Any, out: Path, ctx: Context) -> dict[str, Any]:
    """The method's own `run`: fills `out` with a model folder."""
    metrics: dict[str, Any] = lookup.find(CHOICE.package, spec.method, "method").run(
        spec, whole_inputs(inputs, ctx.state), out, ctx
    )
    return metrics
