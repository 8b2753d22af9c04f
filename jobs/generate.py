"""Generate text with a model; `recipe` names the module of `toolkit.generation.recipes` that says what and how."""

from pathlib import Path
from typing import Any

from toolkit.checkpoints.folders import copy_file
from toolkit.checkpoints.whole import whole_inputs
from toolkit.lookup import find
from toolkit.stage import Choice, Context

VERSION = 1
CHOICE = Choice(field="recipe", package="toolkit.generation.recipes")
WARM = ("torch", "datasets", "pyarrow.parquet", "transformers.modeling_utils", "transformers.generation.utils")

ENGINE = "engine.json"


def run(spec: Any, inputs: Any, out: Path, ctx: Context) -> dict[str, Any]:
    """Hand over to the recipe, whose `Spec` and `Inputs` these are."""
    metrics: dict[str, Any] = find(CHOICE.package, spec.recipe, "recipe").run(
        spec, whole_inputs(inputs, ctx.state), out, ctx
    )
    if (ctx.state / ENGINE).is_file():  # vLLM's environment is not the one that the record tells of
        copy_file(ctx.state / ENGINE, out / ENGINE, link=False)
    return metrics
