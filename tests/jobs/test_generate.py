"""The job `generate` with the recipe predict: what it writes, that it survives a kill, what it refuses."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import generate
from tests.toolkit.generation.tiny import NAMES, Tiny, context, people, save
from tests.toolkit.generation.tiny import tiny as build
from toolkit.generation.recipes.predict import Inputs, Spec
from toolkit.stage import Artifact, Interrupted


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return build()


def go(tiny: Tiny, folder: Path, data: Artifact | None = None, **fields: Any) -> tuple[Path, dict[str, Any]]:
    resources = {name: fields.pop(name) for name in ("batch_tokens",) if name in fields}
    spec = Spec(**{"recipe": "predict", "split": "heldout", "max_new_tokens": 12} | fields)
    out = folder / "out"
    out.mkdir(parents=True)
    inputs = Inputs(model=tiny.model, data=data or tiny.people)
    return out / "predictions.parquet", generate.run(spec, inputs, out, context(folder / "state", **resources))


def test_predictions_stand_in_the_order_of_the_split(tiny: Tiny, tmp_path: Path) -> None:
    path, metrics = go(tiny, tmp_path)
    table = pq.read_table(path)
    assert table.column_names == ["id", "prompt", "prediction", "gold", "attribute"]
    asked = people(NAMES[6:])
    assert table["id"].to_pylist() == list(range(12))
    for name in ("prompt", "gold", "attribute"):
        assert table[name].to_pylist() == [row[name] for row in asked]
    right = [gold in said for gold, said in zip(table["gold"].to_pylist(), table["prediction"].to_pylist())]
    assert any(right) and not all(right)
    assert metrics["rows"] == 12 and metrics["truncated_prompts"] == 0 and metrics["new_tokens"] >= 12


def test_bytes_do_not_depend_on_the_token_budget(tiny: Tiny, tmp_path: Path) -> None:
    for name, fields in {"greedy": {}, "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 3}}.items():
        paths = [go(tiny, tmp_path / f"{name}{b}", batch_tokens=b, **fields)[0] for b in (1, 70, 10**6)]
        assert len({path.read_bytes() for path in paths}) == 1


def test_limit_and_seed(tiny: Tiny, tmp_path: Path) -> None:
    fields = {"temperature": 2.0, "batch_tokens": 100}
    first = pq.read_table(go(tiny, tmp_path / "a", seed=1, **fields)[0])
    assert pq.read_table(go(tiny, tmp_path / "b", seed=1, limit=5, **fields)[0]) == first.slice(0, 5)
    assert pq.read_table(go(tiny, tmp_path / "c", seed=2, **fields)[0]) != first


def test_progress_is_told(tiny: Tiny, tmp_path: Path) -> None:
    go(tiny, tmp_path)
    told = (tmp_path / "state" / "progress.json").read_text()
    assert '"step": 12' in told and '"total": 12' in told and "tokens_per_second" in told


def test_killed_twenty_times_it_gives_the_same_file(tiny: Tiny, tmp_path: Path) -> None:
    """At random moments: while it loads, in a batch, while a shard is written; with one process and with two in turn."""
    rows = [{"prompt": f"Who {i}?" + " Who?" * (i % 3), "gold": str(i % 7)} for i in range(600)]
    data = save(tmp_path / "many", heldout=rows)
    fields = {"temperature": 1.0, "max_new_tokens": 90, "batch_tokens": 500, "data": data}
    undisturbed = go(tiny, tmp_path / "whole", **fields)[0].read_bytes()
    state, rng, done = tmp_path / "killed" / "state", random.Random(0), [0]
    for attempt in range(20):
        child = multiprocessing.get_context("fork").Process(
            target=_run_in, args=(tiny, state, tmp_path, attempt, fields, 1 + attempt % 2)
        )
        child.start()
        wanted, deadline = done[-1] + attempt % 3, time.monotonic() + 60
        while len(list(state.glob("shards/*.parquet"))) < wanted and child.is_alive() and time.monotonic() < deadline:
            time.sleep(0.003)
        time.sleep(rng.uniform(0, 0.05))
        assert child.is_alive() and child.pid is not None, "finished before it could be killed"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        done.append(len(list(state.glob("shards/*.parquet"))))
    assert done == sorted(done) and len(set(done)) > 5, f"attempts did not go on where the last one was: {done}"
    assert _run_in(tiny, state, tmp_path, 99, fields, 1).read_bytes() == undisturbed


def _run_in(
    tiny: Tiny, state: Path, folder: Path, attempt: int, fields: dict[str, Any], processes: int
) -> Path:  # fmt: skip
    out = folder / f"attempt{attempt}"
    out.mkdir()
    spec = Spec(recipe="predict", split="heldout", temperature=1.0, max_new_tokens=fields["max_new_tokens"])
    inputs = Inputs(model=tiny.model, data=fields["data"])
    generate.run(spec, inputs, out, context(state, batch_tokens=fields["batch_tokens"], processes=processes))
    return out / "predictions.parquet"


def test_a_stop_request_interrupts_between_batches(tiny: Tiny, tmp_path: Path) -> None:
    ctx = context(tmp_path / "state", batch_tokens=1)
    ctx.stop_requested = True
    (tmp_path / "out").mkdir()
    with pytest.raises(Interrupted):
        spec = Spec(recipe="predict", split="heldout", max_new_tokens=4)
        generate.run(spec, Inputs(model=tiny.model, data=tiny.people), tmp_path / "out", ctx)


def test_overlong_prompts(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts are longer than 10 tokens"):
        go(tiny, tmp_path / "a", max_new_tokens=118)
    _, metrics = go(tiny, tmp_path / "b", max_new_tokens=118, overlong="truncate", limit=3)
    assert metrics["truncated_prompts"] == 1 and metrics["prompt_tokens"] <= 30


@pytest.mark.parametrize("what", ["keep", "strip", "refuse"])
def test_prompts_that_end_in_a_space(tiny: Tiny, tmp_path: Path, what: str) -> None:
    data = save(tmp_path / "data", heldout=[{"prompt": p, "gold": "x"} for p in ("Who? ", "Who?", "What ", "Who? ")])
    if what == "refuse":
        with pytest.raises(ValueError, match="3 prompts end in a space, the first is row 0: 'Who. '.*strip"):
            go(tiny, tmp_path, data=data, trailing_space=what)
        return
    path, metrics = go(tiny, tmp_path, data=data, trailing_space=what)
    assert metrics["prompts_ending_in_space"] == 3
    answers = pq.read_table(path)["prediction"].to_pylist()
    assert answers[0] == answers[3] and (answers[0] == answers[1]) == (what == "strip")


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"max_new_tokens": 0}, "'max_new_tokens' must be at least 1, not 0"),
        ({"limit": 0}, "'limit' must be at least 1"),
        ({"seed": -1}, "'seed' must be at least 0"),
        ({"temperature": -0.5}, "'temperature' must be 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "'top_p' must be above 0"),
        ({"top_p": 0.9}, "'top_p' 0.9 has no effect on greedy"),
        ({"stop": ("",)}, "empty string"),
    ],
)
def test_values_that_are_wrong_in_themselves(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Spec(**{"recipe": "predict", "split": "heldout", "max_new_tokens": 12} | fields)


def test_planning_imports_nothing_heavy() -> None:
    heavy = "torch transformers datasets pandas pyarrow numpy lm_eval"
    code = f"import sys, jobs.generate, toolkit.generation.recipes.predict; sys.exit([m for m in '{heavy}'.split() if m in sys.modules] or None)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
