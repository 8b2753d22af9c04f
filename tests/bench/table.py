"""How long a table of a million rows takes: `python -m tests.bench.table [artifacts] [rows in each]`.

Prints medians of five, in seconds: reading every artifact (cold), reading through the index (warm), then a rectangle
and each format. The target is 3 s for a warm table and a pivot of 1,000,000 rows together.
"""

import hashlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.analysis.formats import to_csv, to_parquet
from toolkit.analysis.pivot import pivot
from toolkit.analysis.report import write_report
from toolkit.analysis.table import measure
from toolkit.plan import CellState
from toolkit.stage import Request
from toolkit.study import Cell

AXES = ("step", "model", "seed")


def make(root: Path, artifacts: int, rows: int) -> dict[str, Any]:
    """Evaluations of `rows` measurements each, over steps x 2 models x 5 seeds."""
    cells, states, folders = [], {}, {}
    for i in range(artifacts):
        print_ = hashlib.sha256(str(i).encode()).hexdigest()
        coords = {"step": i // 10 * 100, "model": ("base", "tuned")[i % 2], "seed": i // 2 % 5}
        cells.append(
            Cell(stage="scores", job="evaluate", version=1, coords=coords, spec={}, inputs={}, fingerprint=print_,
                 label="scores", resources=Request())
        )  # fmt: skip
        states[print_], folders[print_] = CellState(state="done"), root / print_[:12]
        folders[print_].mkdir()
        record = {"job": "evaluate", "metrics": {}, "files": {"rows.parquet": {}}, "provenance": {"seconds": 1.0}}
        (folders[print_] / "artifact.json").write_text(json.dumps(record))
        random = np.random.default_rng(i)
        columns = {
            "task": [f"task{k // 2:05d}" for k in range(rows)], "metric": ["acc", "acc_norm"] * (rows // 2),
            "value": random.integers(0, 500, rows) / 500, "stderr": random.random(rows) / 20, "n": np.full(rows, 500),
        }  # fmt: skip
        pq.write_table(pa.table(columns), folders[print_] / "rows.parquet")
    return {"cells": cells, "states": states, "folders": folders, "axes": AXES}


def median(work: Callable[[], Any], times: int = 5) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def say(what: str, seconds: float, note: str = "") -> None:
    print(f"{what:56}{seconds:6.2f}{f'   ({note})' if note else ''}")


def main(artifacts: int = 1000, rows: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        study = make(root, artifacts, rows)
        index = root / "index.parquet"

        def cold() -> None:
            index.unlink(missing_ok=True)
            measure(**study, index=index)

        print(f"{artifacts} artifacts x {rows} rows, median of 5, seconds")
        say("measure, cold (reads every artifact, writes the index)", median(cold))
        warm = median(lambda: measure(**study, index=index))
        say("measure, warm", warm)
        table = measure(**study, index=index)
        shape: dict[str, Any] = {"rows": ["step", "task"], "cols": ["model"], "values": "acc", "mean_over": ["seed"]}
        square = median(lambda: pivot(table, **shape))
        say("pivot step, task x model, mean over seeds", square)
        say("warm measure + pivot", warm + square, "target 3")
        say("CSV of the long table", median(lambda: to_csv(table)))
        say("parquet of the long table", median(lambda: to_parquet(table, root / "table.parquet")))
        page = root / "report.html"
        took = median(lambda: write_report(page, name="bench", text="", index=index, **study), times=1)
        say("report (once)", took, f"{page.stat().st_size / 1e6:.1f} MB; target 30")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
