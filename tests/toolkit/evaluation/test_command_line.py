"""The numbers of a cell are those of `lm_eval run` on the same model and tasks, bit for bit: choices, generation, a text
whose likelihood is taken in windows, and a group with its parts, each on data of its own. The command is started once,
as a user would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from jobs import evaluate
from jobs.evaluate import Inputs, Spec
from tests.toolkit.evaluation.sets import download, nli, questions
from tests.toolkit.evaluation.test_spread import Told
from tests.toolkit.generation.tiny import Tiny, save

TASKS = ("bios_qa", "bios_qa_cloze", "mnli_matched_instruct", "wikitext", "arc")


def test_five_tasks_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    pages = [{"page": "Where was Ada born? In Paris, a town of physics. " * (1 + 3 * i)} for i in range(3)]
    data = {
        "": tiny.people,
        "mnli": save(tmp_path / "mnli", validation_matched=nli(7), train=nli(4)),
        "arc_easy": save(tmp_path / "easy", test=questions(5), train=questions(3)),
        "arc_challenge": save(tmp_path / "hard", test=questions(9, 50), train=questions(3)),
        "wikitext": download(
            tmp_path / "wiki", "EleutherAI/wikitext_document_level", **{"wikitext-2-raw-v1": dict.fromkeys(("train", "validation", "test"), pages)}
        ),
    }  # fmt: skip
    ctx, out = Told(tmp_path / "cell", micro_batch=4), tmp_path / "out"
    out.mkdir()
    evaluate.run(Spec(tasks=TASKS, shots=1), Inputs(model=tiny.model, data=data), out, ctx)

    run = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", *TASKS, "--num_fewshot", "1"]
    run += ["--model_args", f"pretrained={tiny.model.path}", "--batch_size", "4", "--device", "cpu", "--log_samples"]
    run += ["--include_path", str(ctx.state / "tasks"), "--output_path", str(tmp_path / "theirs")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as our cell has: sums in another order differ in the last bit
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[3], env=one_thread)
    assert done.returncode == 0, done.stderr[-3000:]

    theirs = json.loads(next((tmp_path / "theirs").rglob("results_*.json")).read_text())
    ours = {(row["task"], row["metric"]): row for row in pq.read_table(out / "rows.parquet").to_pylist()}
    compared = set()
    for task, values in theirs["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                row, stderr = ours[task, metric], values[f"{metric}_stderr,{kind}"]
                assert row["value"] == value and row["stderr"] == (None if stderr == "N/A" else stderr)
                compared.add((task, metric))
    assert {task for task, _ in compared} == {*TASKS, "arc_easy", "arc_challenge"} and len(compared) == 13
    assert ours["arc", "acc"]["n"] == 14 and ours["arc", "acc"]["version"].startswith("1.0 ")
    items = pq.read_table(out / "items.parquet").to_pylist()
    for file in (tmp_path / "theirs").rglob("samples_*.jsonl"):
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        mine = [item for item in items if item["task"] == file.name.removeprefix("samples_").rpartition("_")[0]]
        for item, sample in zip(mine, sorted(samples, key=lambda s: s["doc_id"]), strict=True):
            assert item["prompt_hash"] == sample["prompt_hash"]
            answered = sample["filtered_resps"]
            if item["loglikelihoods"] is None:
                assert item["prediction"] == answered[0]
            else:
                assert item["loglikelihoods"] == [float(a[0] if isinstance(a, list) else a) for a in answered]
