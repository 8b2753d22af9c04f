"""Planning, launching without work and status at scale, on roots that are made for it: medians of several runs.

python -m tests.bench.planning
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slurm import outline
from slurm import status as status_module
from slurm import submissions
from toolkit.manifest.files import check_root
from toolkit.manifest.log import encode
from toolkit.plan import folder
from toolkit.study import Cell, Stage, Study
from toolkit.study_file import load

TINY = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TIDEMARK = str(Path(sys.executable).with_name("tidemark"))


def chain(seeds: int) -> Study:
    """Six stages of the real jobs, `seeds` cells each."""
    pretrain = {"method": "pretrain", "architecture": TINY, "steps": 10, "global_batch": 8, "lr": 1e-3}
    predict = {"recipe": "predict", "split": "heldout", "max_new_tokens": 8}
    stages = {
        "people": Stage(job="prepare", spec={"dataset": "bios", "people": 10}, axes={"seed": list(range(seeds))}),
        "tokenizer": Stage(job="tokenizer", inputs={"data": "people"}, spec={"split": "pretrain", "vocab_size": 500}),
        "tokens": Stage(
            job="prepare",
            inputs={"data": "people", "tokenizer": "tokenizer"},
            spec={"dataset": "packed", "split": "pretrain", "sequence_length": 64},
        ),
        "model": Stage(job="train", inputs={"data": "tokens", "tokenizer": "tokenizer"}, spec=pretrain),
        "answers": Stage(job="generate", inputs={"model": "model", "data": "people"}, spec=predict),
        "quality": Stage(job="evaluate", inputs={"predictions": "answers"}, spec={"metrics": ["exact_match"]}),
    }
    return Study(name="scale", stages=stages)


def fill(root: Path, cells: list[Cell]) -> None:
    """Committed artifacts and the log of their attempts, as workers would have left them (without their files)."""
    segments = [[] for _ in range(16)]
    for i, cell in enumerate(cells):
        made = {
            "format": 1, "job": cell.job, "label": cell.label, "fingerprint": cell.fingerprint, "spec": dict(cell.spec),
            "inputs": {name: c.fingerprint for name, c in cell.inputs.items()}, "metrics": {}, "files": {},
            "provenance": {"version": cell.version, "stage": cell.stage, "coords": dict(cell.coords), "identity": {}},
        }  # fmt: skip
        path = folder(root, cell)
        path.mkdir(parents=True)
        (path / "artifact.json").write_text(json.dumps(made))
        base = {"fingerprint": cell.fingerprint, "cell": cell.name, "launch": 1, "attempt": 1, "time": 0.0}
        segments[i % 16] += [
            encode({**base, "event": "started"}),
            encode({**base, "event": "committed", "seconds": 1.0}),
        ]
        (root / "claims" / f"{cell.fingerprint[:12]}.1").write_text("{}")
    log = root / "log" / "scale"
    log.mkdir(parents=True)
    for i, lines in enumerate(segments):
        (log / f"worker-{i}.jsonl").write_bytes(b"".join(lines))


def seconds(run: Callable[[], object], times: int = 5) -> float:
    """Median wall time of a call."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def command(*words: str) -> Callable[[], object]:
    """A `tidemark` command in a process of its own."""
    return lambda: subprocess.run([TIDEMARK, *words], check=True, capture_output=True)


def write(study: Study, path: Path) -> str:
    """The study as a file (JSON is YAML)."""
    path.write_text(json.dumps(study.words()))
    return str(path)


def main() -> None:
    """Print a row a measurement."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        rows = [("tidemark --help", seconds(command("--help")), 0.4)]
        root, study = base / "small", chain(1000)
        check_root(root)
        file = write(study, base / "small.yaml")
        rows.append(
            ("plan, 1,000 cells x 6 stages, nothing cached", seconds(command("plan", file, "--root", str(root))), 2)
        )
        fill(root, submissions.cells_of(root, study))
        rows.append(("plan, all cached", seconds(command("plan", file, "--root", str(root))), 2))
        rows.append(("launch with nothing to do", seconds(command("launch", file, "--root", str(root))), 2))
        rows.append(("status of 6,000 cells", seconds(command("status", file, "--root", str(root))), 0.4))
        root, study = base / "large", chain(16_667)
        check_root(root)
        file = write(study, base / "large.yaml")
        fill(root, submissions.cells_of(root, load(Path(file))))
        rows.append(("status of 100,000 cells, cold", seconds(command("status", file, "--root", str(root)), 1), 10))
        rows.append(("status of 100,000 cells, warm", seconds(command("status", file, "--root", str(root))), 1))
        words = load(Path(file))
        nodes = outline.nodes(root, words)
        assert isinstance(nodes[0], outline.Row)
        rows.append(("of which the cells, from the snapshot", seconds(lambda: outline.nodes(root, words)), 1))
        rows.append(("of which their states", seconds(lambda: status_module.read(root, "scale", nodes)), 1))
        rows.append(("instead of the snapshot: expanding them", seconds(lambda: submissions.cells_of(root, words)), 2))
    for name, took, most in rows:
        print(f"| {name} | {took:.2f} s | {most} s |")


if __name__ == "__main__":
    main()
