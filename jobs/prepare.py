"""Make a data set; `dataset` names the module of `toolkit.data.datasets` that says which.

The module brings `Spec`, `Inputs` and `fill(spec, inputs, splits, ctx) -> metrics`, which adds rows to `splits`. The
artifact is `data/`, a `datasets.DatasetDict` on disk.
"""

from pathlib import Path
from typing import Any

from toolkit.data.splits import Splits
from toolkit.lookup import find
from toolkit.stage import Choice, Context

VERSION = 1
CHOICE = Choice(field="dataset", package="toolkit.data.datasets")
WARM = ("torch", "datasets", "pyarrow.parquet", "transformers.tokenization_utils_tokenizers")


def run(spec: Any, inputs: Any, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data`; the metrics are the module's own and `rows_<split>`."""
    splits = Splits(out / "data")
    metrics: dict[str, Any] = find(CHOICE.package, spec.dataset, "dataset").fill(spec, inputs, splits, ctx)
    return {**metrics, **{f"rows_{name}": rows for name, rows in splits.finish().items()}}
