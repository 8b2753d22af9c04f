"""Results that others published, as rows of ours: the source that the spec names is a module that reads its files."""

from pathlib import Path
from typing import Any

from toolkit import lookup
from toolkit.stage import Choice, Context

VERSION = 1
CHOICE = Choice(field="source", package="toolkit.analysis.published")
WARM = ("pyarrow.parquet",)


def run(spec: Any, inputs: Any, out: Path, ctx: Context) -> dict[str, Any]:
    """The source's own `run`: fills `out` with rows.parquet."""
    metrics: dict[str, Any] = lookup.find(CHOICE.package, spec.source, "source").run(spec, inputs, out, ctx)
    return metrics
