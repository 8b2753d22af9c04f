"""How far quantized weights are from what they were, by layer and for all: rows of a table, and metrics.

`weight_error` is |W - W'| / |W| in the Frobenius norm; `sqnr_db`, the signal-to-quantization-noise ratio, is
-20 log10 of it. `all` pools the squares of all layers.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ALL = "all"


class Errors:
    """Sums of squares by layer, in float64."""

    def __init__(self, kind: str = "weight") -> None:
        self.kind = kind
        self.squares: dict[str, tuple[float, float, int]] = {}

    def add(self, layer: str, true: torch.Tensor, found: torch.Tensor) -> None:
        """Count a tensor, or another batch of it; both of the same shape."""
        noise, signal, count = self.squares.get(layer, (0.0, 0.0, 0))
        true, found = true.double(), found.double()
        here = (true - found).square().sum().item(), true.square().sum().item(), true.numel()
        self.squares[layer] = (noise + here[0], signal + here[1], count + here[2])

    def total(self) -> float:
        """The error of all layers together."""
        noise, signal = (sum(entry[i] for entry in self.squares.values()) for i in (0, 1))
        return math.sqrt(noise / signal) if signal else 0.0

    def rows(self) -> Iterable[dict[str, Any]]:
        """Two rows a layer, and two for all; an error of 0 has no ratio."""
        sums = [sum(entry[i] for entry in self.squares.values()) for i in range(3)]
        for layer, (noise, signal, count) in {**self.squares, ALL: (sums[0], sums[1], int(sums[2]))}.items():
            error = math.sqrt(noise / signal) if signal else 0.0
            yield _row(layer, f"{self.kind}_error", error, count)
            if error > 0:
                yield _row(layer, f"{self.kind}_sqnr_db", -20 * math.log10(error), count)


def finish(out: Path, before: int, *errors: Errors) -> dict[str, Any]:
    """Write rows.parquet; the metrics: bytes of the weights as they are stored, and before, and the whole errors."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    metrics = {"bytes": size, "bytes_before": before, **{f"{found.kind}_error": found.total() for found in errors}}
    rows = [row for found in errors for row in found.rows()]
    rows += [_row(ALL, name, float(metrics[name]), None) for name in ("bytes", "bytes_before")]
    types = {"task": pa.string(), "metric": pa.string(), "value": pa.float64(), "stderr": pa.float64(), "n": pa.int64()}
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(types)), out / "rows.parquet", compression="zstd")
    return metrics


def bytes_of(folder: Path) -> int:
    """Bytes of the weights of a model folder, as they are stored."""
    from toolkit.checkpoints.tensors import weight_files

    return sum(path.stat().st_size for path in weight_files(folder))


def _row(task: str, metric: str, value: float, n: int | None) -> dict[str, Any]:
    return {"task": task, "metric": metric, "value": value, "stderr": None, "n": n}
