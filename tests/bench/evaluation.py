"""Four tasks on eight checkpoints: one study through one worker, against a command-line run of lm-eval for each pair.

    python -m tests.bench.evaluation [FOLDER [FIRST LAST]]

One thread and one process at a time on both sides. The scores are compared too. With a FOLDER, what was measured is
kept there, and FIRST and LAST choose some of the 32 command-line runs: the measurement may be made in parts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.bench.planning import TIDEMARK, write
from tests.toolkit.evaluation.sets import nli, questions
from tests.toolkit.generation.tiny import save
from toolkit.study import Stage, Study

CHECKPOINTS, ROWS, BATCH = 8, 200, 8
TASKS = ("arc_easy", "mnli_matched", "mnli_mismatched_cloze", "xsum_likelihood")
MOST = 1 / 3  # of the time of the command-line runs
SHAPE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}


def prepare(base: Path) -> None:
    """Checkpoints with random weights, and made-up rows for every task."""
    from transformers import Olmo2Config, Olmo2ForCausalLM, set_seed

    from toolkit.data import bpe

    texts = [row["prompt"] for row in (*questions(ROWS), *nli(ROWS))]
    special = ("<|endoftext|>", "<|pad|>")
    tokenizer = bpe.train([texts], vocab_size=400, min_frequency=2, special=special, bos=None, split_digits=False)
    config = Olmo2Config(vocab_size=400, eos_token_id=0, pad_token_id=1, bos_token_id=None, **SHAPE)
    for i in range(CHECKPOINTS):
        set_seed(i)
        Olmo2ForCausalLM(config).save_pretrained(base / f"step{i}")
        bpe.save(tokenizer, base / f"step{i}", eos=special[0], pad=special[1], bos=None, chat_template="none")
    save(base / "arc_easy", test=questions(ROWS), train=questions(4))
    save(base / "mnli", validation_matched=nli(ROWS), validation_mismatched=nli(ROWS), train=nli(4))
    text = [
        {"prompt": row["prompt"], "completion": f" {row['gold']}", "gold": row["gold"]} for row in questions(ROWS, 500)
    ]
    save(base / "xsum", test=text, train=text[:4])


def study(base: Path) -> Study:
    """The eight checkpoints are an axis, the four tasks one process."""
    data = {f"data.{name}": {"path": str(base / name)} for name in ("arc_easy", "mnli", "xsum")}
    models = [{"path": str(base / f"step{i}")} for i in range(CHECKPOINTS)]
    scores = Stage(
        job="evaluate",
        inputs={"model": models, **data},
        spec={"tasks": list(TASKS)},
        resources={"micro_batch": BATCH, "threads": 1},
    )
    return Study(name="evaluation", stages={"scores": scores})


def through_tidemark(base: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of `tidemark launch`, and the score of every checkpoint, task and metric."""
    file, root = write(study(base), base / "evaluation.yaml"), base / "root"
    started = time.perf_counter()
    subprocess.run([TIDEMARK, "launch", file, "--root", str(root)], check=True, capture_output=True)
    took = time.perf_counter() - started
    scores = {}
    for folder in root.glob("artifacts/evaluate/*"):
        step = json.loads((folder / "artifact.json").read_text())["provenance"]["coords"]["model"]
        for row in pq.read_table(folder / "rows.parquet").to_pylist():
            scores[f"{step} {row['task']} {row['metric']}"] = row["value"]
    return took, scores


def command_line(base: Path, step: str, task: str) -> tuple[float, dict[str, Any]]:
    """Seconds and scores of one `lm_eval run`."""
    out = base / "theirs" / step / task
    run = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", task, "--num_fewshot", "0"]
    run += ["--model_args", f"pretrained={base / step}", "--batch_size", str(BATCH), "--device", "cpu"]
    run += ["--include_path", str(base / "tasks"), "--output_path", str(out)]
    started = time.perf_counter()
    subprocess.run(run, check=True, capture_output=True)
    took = time.perf_counter() - started
    values = json.loads(next(out.rglob("results_*.json")).read_text())["results"][task]
    found = {key.split(",")[0]: value for key, value in values.items() if "," in key and "_stderr" not in key}
    return took, {f"{step} {task} {metric}": value for metric, value in found.items()}


def task_files(base: Path) -> None:
    """The files that join tasks and rows, for the command line; Tidemark writes its own."""
    from toolkit.evaluation.join import Given, Source
    from toolkit.evaluation.tasks import load

    data = {name: Given(path=base / name) for name in ("arc_easy", "mnli", "xsum")}
    load(TASKS, Source(data=data), 0, 1234, base / "tasks")


def main() -> None:
    """Print a row of docs/performance.md for either way, when both are whole."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(sys.argv[1] if sys.argv[1:] else scratch)
        if not (base / "tasks").is_dir():
            base.mkdir(exist_ok=True)
            prepare(base)
            task_files(base)
        kept = base / "measured.json"
        measured = json.loads(kept.read_text()) if kept.exists() else {}
        os.environ["OMP_NUM_THREADS"] = "1"
        if "ours" not in measured:
            measured["ours"] = through_tidemark(base)
            kept.write_text(json.dumps(measured))
        pairs = [(f"step{i}", task) for i in range(CHECKPOINTS) for task in TASKS]
        first, last = map(int, sys.argv[2:4] or (0, len(pairs)))
        for step, task in pairs[first:last]:
            measured[f"{step} {task}"] = command_line(base, step, task)
            kept.write_text(json.dumps(measured))
        report(measured, pairs)


def report(measured: dict[str, Any], pairs: list[tuple[str, str]]) -> None:
    """The rows, once every run is there."""
    took, ours = measured["ours"]
    runs = [measured[f"{step} {task}"] for step, task in pairs if f"{step} {task}" in measured]
    theirs = {key: value for _, scores in runs for key, value in scores.items()}
    assert all(ours[key] == value for key, value in theirs.items()), "a score differs"
    if len(runs) < len(pairs):
        print(f"{len(runs)} of {len(pairs)} command-line runs are measured")
        return
    other = sum(seconds for seconds, _ in runs)
    share = f"{took / other:.3f} of that"
    print(f"| `tidemark launch`: {CHECKPOINTS} cells of {len(TASKS)} tasks each | {took:.1f} s: {share} | 1/3 |")
    print(f"| {len(runs)} runs of `lm_eval run` ({other / len(runs):.1f} s each) | {other:.0f} s | |")
    print(f"| of {len(theirs)} scores, those that are equal in every bit | {len(theirs)} | all |")
    assert took <= MOST * other


if __name__ == "__main__":
    main()
