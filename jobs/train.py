"""Train a model: the method that the spec names is a module of `toolkit.training.methods`.

`resources.processes` ranks on each node, `resources.zero` for DeepSpeed; neither changes what is computed.
"""

from pathlib import Path
from typing import Any

from toolkit import lookup
from toolkit.checkpoints.whole import whole_inputs
from toolkit.stage import Choice, Context

VERSION = 1
MANY_NODES = True
CHOICE = Choice(field="method", package="toolkit.training.methods")
WARM = (
    "torch",
    "deepspeed",
    "transformers.trainer",
    "datasets",
    "pyarrow.parquet",
    "accelerate",
    "trl.trainer.sft_trainer",
)


def run(spec: Any, inputs: Any, out: Path, ctx: Context) -> dict[str, Any]:
    """The method's own `run`: fills `out` with a model folder, `steps/<N>/` and `loss.parquet`."""
    method = lookup.find(CHOICE.package, spec.method, "method")
    if hasattr(method, "check"):  # `plan` has asked it too
        method.check(spec, ctx.resources)
    metrics: dict[str, Any] = method.run(spec, whole_inputs(inputs, ctx.state), out, ctx)
    return metrics
