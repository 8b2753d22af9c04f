"""However the work is done, in one process or in two, in one go or after a kill, with enough memory or too little, the
numbers are the same; and what was answered is not computed again."""

import multiprocessing
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer, Olmo2Config, Olmo2ForCausalLM

from jobs import evaluate
from jobs.evaluate import Inputs, Spec
from tests.toolkit.generation.tiny import Tiny
from toolkit.evaluation import answers
from toolkit.evaluation.answers import Answers, generation_key, likelihood_key
from toolkit.stage import Artifact, Context, Interrupted, Resources

TASKS = ("bios_qa", "bios_qa_cloze", "instructions_likelihood")


class Told(Context):
    """A context that keeps how many requests were finished, each time that it was told, and may act on it."""

    def __init__(self, work: Path, then: Callable[["Told", int], None] = lambda ctx, done: None, **given: Any) -> None:
        (work / "state").mkdir(parents=True, exist_ok=True)
        super().__init__(state=work / "state", resources=Resources(**{"micro_batch": 5, **given}))
        self.done: list[int] = []
        self.then = then

    def progress(self, step: int, total: int, **words: Any) -> None:
        self.done.append(step)
        self.then(self, step)


def go(tiny: Tiny, ctx: Context, **fields: Any) -> dict[str, bytes]:
    """What the files of results hold; `out` is new in every attempt."""
    out = ctx.state.parent / f"out-{len(list(ctx.state.parent.glob('out-*')))}"
    out.mkdir()
    spec = Spec(**{"tasks": TASKS, "shots": 1, **fields})
    evaluate.run(spec, Inputs(model=tiny.model, data={"": tiny.people}), out, ctx)
    return {name: (out / name).read_bytes() for name in ("rows.parquet", "items.parquet")}


@pytest.fixture(scope="module")
def expected(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return go(tiny, Told(tmp_path_factory.mktemp("expected")))


def test_two_processes_give_the_bits_of_one(tiny: Tiny, tmp_path: Path, expected: dict[str, bytes]) -> None:
    assert go(tiny, Told(tmp_path, processes=2)) == expected
    assert len(list((tmp_path / "state" / "answers").glob("*/*.parquet"))) >= 4, "two processes, two kinds of requests"


def test_what_two_processes_cannot_load_is_said_as_by_one(tiny: Tiny, tmp_path: Path) -> None:
    """A tokenizer of another model, with more tokens than the embedding has rows."""
    shutil.copytree(tiny.model.path, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    tokenizer.save_pretrained(tmp_path / "model")
    wrong = replace(tiny, model=Artifact(path=tmp_path / "model"))
    for processes in (1, 2):
        with pytest.raises(ValueError, match="the tokenizer of .* has .* tokens and the model's embedding only"):
            go(wrong, Told(tmp_path / str(processes), processes=processes))
    with pytest.raises(ValueError, match="holds no model: there is no config.json"):
        go(replace(tiny, model=tiny.people), Told(tmp_path / "none", processes=2))


def test_an_evaluation_that_was_stopped_goes_on(tiny: Tiny, tmp_path: Path, expected: dict[str, bytes]) -> None:
    first = Told(tmp_path, then=lambda ctx, done: setattr(ctx, "stop_requested", done >= 20))
    with pytest.raises(Interrupted):
        go(tiny, first)
    again = Told(tmp_path)
    assert go(tiny, again) == expected
    assert again.done[0] > first.done[-1] >= 20


def test_two_processes_that_were_stopped_go_on(tiny: Tiny, tmp_path: Path, expected: dict[str, bytes]) -> None:
    ctx = Told(tmp_path, processes=2)
    ctx.stop_requested = True
    with pytest.raises(Interrupted):
        go(tiny, ctx)
    assert go(tiny, Told(tmp_path, processes=2)) == expected


def test_a_killed_evaluation_goes_on(
    tiny: Tiny, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "FLUSH_SECONDS", 0.0)

    def die(ctx: Told, done: int) -> None:
        if done >= 30:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            go(tiny, Told(tmp_path, then=die))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    again = Told(tmp_path)
    assert go(tiny, again) == expected
    assert again.done[0] > 30


def test_more_tasks_do_not_ask_again_and_a_sentinel_asks_all(tiny: Tiny, tmp_path: Path) -> None:
    cell = tmp_path / "work"
    first, more, repeated = (Told(cell / name) for name in "abc")
    go(tiny, first, tasks=("bios_qa_cloze",))
    assert (tmp_path / "index" / "answers").is_dir() and first.done[0] <= 5
    found = go(tiny, more, tasks=("bios_qa_cloze", "bios_qa"))
    assert more.done[0] == first.done[-1] + 5, "the first batch is of the other task"
    assert set(pq.read_table(cell / "b" / "out-0" / "rows.parquet")["task"].to_pylist()) == {"bios_qa_cloze", "bios_qa"}
    assert go(tiny, repeated, tasks=("bios_qa_cloze", "bios_qa"), repeat=1) == found and repeated.done[0] <= 5


def test_what_ran_before_changes_no_bit(tiny: Tiny, tmp_path: Path, expected: dict[str, bytes]) -> None:
    """Likelihoods of two tasks share batches: those of one task alone were other batches, and are asked anew."""
    cell = tmp_path / "work"
    go(tiny, Told(cell / "before"), tasks=("bios_qa_cloze",))
    after = Told(cell / "after")
    assert go(tiny, after) == expected
    assert after.done[0] <= 5
    again = Told(cell / "again")
    assert go(tiny, again) == expected and again.done == [], "the same batches are asked once"
    other = Told(cell / "other", threads=2)
    go(tiny, other)
    assert other.done[0] <= 5, "two threads add in another order"


def test_another_models_answers_are_not_taken(tiny: Tiny, tmp_path: Path) -> None:
    names = {
        answers.identity(
            replace(tiny.model, record={"files": {"model.safetensors": {"digest": d}}}), tiny.model.path, p=p
        )
        for d in "ab"
        for p in ("fp32", "bf16")
    }
    assert len(names | {answers.identity(tiny.model, tiny.model.path, p="fp32")}) == 5
    assert answers.identity(tiny.model, tiny.model.path) == answers.identity(tiny.model, tiny.model.path)
    assert likelihood_key([1], [2, 3]) != likelihood_key([1, 2], [3])
    assert generation_key("a", {"n": 1}) != generation_key("a", {"n": 2}) != generation_key("a", {"n": 2}, 1)


def test_a_torn_segment_is_as_good_as_not_there(tmp_path: Path) -> None:
    kept = Answers(tmp_path)
    kept.put([b"k" * 16, b"t" * 16], [(-1.25, True), "text"])
    kept.flush()
    (tmp_path / "torn.parquet").write_bytes(next(tmp_path.glob("*.parquet")).read_bytes()[:-9])
    again = Answers(tmp_path)
    assert (again[b"k" * 16], again[b"t" * 16]) == ((-1.25, True), "text")


def under_a_limit(tiny: Tiny, wide: Tiny, work: Path) -> None:
    """In a process of its own: in one that ran other tests, what those freed would serve a batch past the limit."""
    go(tiny, Told(work / "imports", micro_batch=1), tasks=TASKS[1:])
    size = re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert size is not None
    resource.setrlimit(resource.RLIMIT_AS, ((int(size[1]) << 10) + (80 << 20), resource.RLIM_INFINITY))
    go(wide, Told(work / "limited", micro_batch=24), tasks=TASKS[1:])


def test_a_batch_for_which_memory_runs_out_is_halved(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under a limit that the kernel sets: 24 sequences need some 450 MB for logits and their logarithms, one 20 MB."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    Olmo2ForCausalLM(Olmo2Config(vocab_size=60_000, **shape)).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny.model.path).save_pretrained(tmp_path / "model")
    wide = replace(tiny, model=Artifact(path=tmp_path / "model"))
    go(wide, Told(tmp_path / "whole", micro_batch=24), tasks=TASKS[1:])
    child = multiprocessing.get_context("spawn").Process(target=under_a_limit, args=(tiny, wide, tmp_path))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert "memory ran out at 24 sequences" in capfd.readouterr().out
    whole, limited = (pq.read_table(tmp_path / name / "out-0" / "items.parquet") for name in ("whole", "limited"))
    assert whole["correct"] == limited["correct"] and whole["prompt_hash"] == limited["prompt_hash"]
    for one, two in zip(whole["loglikelihoods"].to_pylist(), limited["loglikelihoods"].to_pylist(), strict=True):
        assert one == pytest.approx(two, rel=1e-5)


def test_memory_that_is_free_bounds_a_batch(tiny: Tiny, tmp_path: Path, expected: dict[str, bytes]) -> None:
    from toolkit.evaluation.memory import fitting, room
    from toolkit.generation.models import load

    model, _ = load(tiny.model.path, "auto", 1)
    assert 0 < fitting(model, 2) < fitting(model, 1) * 0.6
    small = room(Resources(batch_tokens=400))
    assert [small(n) for n in (40, 399, 500)] == [10, 1, 1]
    assert room(Resources(batch_tokens=400, halvings=1))(40) == 5
    assert room(Resources(micro_batch=7, halvings=1))(10**6) == 3
    found = go(tiny, Told(tmp_path, micro_batch=None, batch_tokens=400))
    assert found.keys() == expected.keys()
    tables = [pq.read_table(pa.BufferReader(files["rows.parquet"])) for files in (found, expected)]
    assert tables[0]["value"].to_pylist() == pytest.approx(tables[1]["value"].to_pylist(), rel=1e-5)
