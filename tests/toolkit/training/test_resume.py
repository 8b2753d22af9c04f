"""Killed anywhere, a run ends with the same bytes: weights and loss curve of the run that nobody disturbed."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.training.small import Small, context, losses, weights
from toolkit.stage import Context, Interrupted

STEPS = 8
RESULTS = ("model.safetensors", "loss.parquet", "steps/3/model.safetensors")


def start(method: str) -> Callable[..., Path]:
    def go(small: Small, folder: Path, **more: Any) -> Path:
        if method == "pretrain":
            return small.pretrain(folder, steps=STEPS, keep_steps=[0, 3], **more)
        return small.tune(folder, steps=STEPS, keep_steps=[0, 3], packing=method == "packed", **more)

    return go


@dataclass(kw_only=True)
class Deadly(Context):
    """Kills its process with SIGKILL when a step reports its progress: after the step, before its save."""

    step: int

    def progress(self, step: int, total: int, **_: Any) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(kw_only=True)
class Told(Context):
    """Keeps the steps that it was told of."""

    steps: list[int] = field(default_factory=list)

    def progress(self, step: int, total: int, **_: Any) -> None:
        self.steps.append(step)


def killed_at(step: int, folder: Path, run: Callable[..., Path], small: Small) -> None:
    """Run in a fork of this warm process, which dies at `step`."""
    ctx = Deadly(state=context(folder).state, step=step)
    pid = os.fork()
    if pid == 0:
        try:
            run(small, folder, ctx=ctx)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def same(one: Path, other: Path) -> None:
    for name in RESULTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def again(folder: Path) -> Path:
    """What the worker does: an empty `out`, the same state."""
    (folder / "out").rename(folder / f"lost-{time.monotonic_ns()}")
    return folder


@pytest.mark.parametrize("method", ["pretrain", "sft", "packed"])
def test_after_sigkill(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    run = start(method)
    whole = run(small, tmp_path / "whole")
    assert not (tmp_path / "whole" / "state" / "saves").exists()  # seconds pass between saves, unless asked
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")
    folder = tmp_path / "killed"
    for step in (1, 3, 4, 8):
        killed_at(step, folder, run, small)
        again(folder)
    out = run(small, folder)
    same(whole, out)


def test_a_torn_save_is_skipped(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start("pretrain")
    whole = run(small, tmp_path / "whole")
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")
    folder = tmp_path / "torn"
    killed_at(6, folder, run, small)
    saves = folder / "state" / "saves"
    assert sorted(p.name for p in saves.iterdir()) == ["4", "5"]  # two are kept
    path = saves / "5" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    again(folder)
    with pytest.warns(UserWarning, match="save of step 5 is not used: state.safetensors is torn"):
        out = run(small, folder)
    same(whole, out)


def test_stop_request_saves_and_says_so(small: Small, tmp_path: Path) -> None:
    run = start("pretrain")
    whole = run(small, tmp_path / "whole")
    ctx = context(tmp_path / "stopped")
    ctx.stop_requested = True
    for step in (1, 2):
        with pytest.raises(Interrupted, match=f"saved step {step} of {STEPS}"):
            run(small, tmp_path / "stopped", ctx=ctx)
        again(tmp_path / "stopped")
    ctx.stop_requested = False
    same(whole, run(small, tmp_path / "stopped", ctx=ctx))


def test_a_finished_run_is_not_trained_again(small: Small, tmp_path: Path) -> None:
    """Killed between the last step and the commit."""
    run = start("sft")
    first, second = Told(state=context(tmp_path / "a").state), Told(state=context(tmp_path / "a").state)
    kept = run(small, tmp_path / "a", ctx=first).rename(tmp_path / "first")
    same(kept, run(small, tmp_path / "a", ctx=second))
    assert first.steps == list(range(1, STEPS + 1)) and second.steps == []


def test_another_micro_batch_goes_on_where_the_first_stopped(small: Small, tmp_path: Path) -> None:
    run = start("pretrain")
    whole = run(small, tmp_path / "whole")
    ctx = context(tmp_path / "b", micro_batch=8)
    ctx.stop_requested = True
    with pytest.raises(Interrupted):
        run(small, tmp_path / "b", ctx=ctx)
    out = run(small, again(tmp_path / "b"), ctx=context(tmp_path / "b", micro_batch=2))
    assert losses(out) == pytest.approx(losses(whole), abs=3e-6)


def test_killed_and_preempted_at_random(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL or the signal of a preemption at any moment, inside an accumulation of four too, and again until it ends.

    TIDEMARK_KILLS says how often (`make kills`: 30 times), TIDEMARK_KILL_SEED from which seed.
    """
    kills, seed = int(os.environ.get("TIDEMARK_KILLS", "5")), int(os.environ.get("TIDEMARK_KILL_SEED", "0"))
    dice, struck, number = random.Random(seed), Counter[int](), 0
    run = partial(small.pretrain, steps=24, keep_steps=[0, 3])
    begun = time.monotonic()
    whole = run(tmp_path / "whole", ctx=context(tmp_path / "whole", micro_batch=2))
    longest = 1.5 * (time.monotonic() - begun)
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0.02")
    while struck.total() < kills:
        number += 1
        folder, code = tmp_path / str(number), 1
        while code != 0:
            ctx = context(folder, micro_batch=2)
            pid = preemptible(run, folder, ctx)
            if struck.total() < kills:
                time.sleep(dice.uniform(0, longest))
                os.kill(pid, dice.choice([signal.SIGKILL, signal.SIGUSR2]))  # one that has ended waits to be reaped
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in (0, PREEMPTED, -signal.SIGKILL), code
            struck[code] += code != 0
            out = folder / "out"
            if code != 0 and out.exists():
                again(folder)
        same(whole, out)
    print(f"seed {seed}: {dict(struck)} over {number} runs")


PREEMPTED = 3


def preemptible(run: Callable[..., Path], folder: Path, ctx: Context) -> int:
    """A fork that does what a worker's child does with the signal that its time is up."""
    before = signal.signal(signal.SIGUSR2, lambda _number, _frame: setattr(ctx, "stop_requested", True))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(folder, ctx=ctx)
            code = 0
        except Interrupted:
            code = PREEMPTED
        finally:
            os._exit(code)
    signal.signal(signal.SIGUSR2, before)
    return pid


@pytest.mark.parametrize("zero", [None, 3])
def test_stop_request_reaches_the_ranks(small: Small, tmp_path: Path, zero: int | None) -> None:
    whole = small.pretrain(tmp_path / "whole", steps=3)
    ctx = context(tmp_path / "r", processes=2, zero=zero)
    ctx.stop_requested = True
    with pytest.raises(Interrupted, match="saved step 1 of 3"):
        small.pretrain(tmp_path / "r", steps=3, ctx=ctx)
    ctx.stop_requested = False
    resumed = small.pretrain(again(tmp_path / "r"), steps=3, ctx=ctx)
    assert losses(resumed) == pytest.approx(losses(whole), abs=5e-6)


@pytest.mark.parametrize(
    ("before", "after"),
    [((None, 1), (3, 2)), ((3, 2), (2, 1)), ((2, 2), (None, 2))],
)
def test_another_layout_goes_on_where_the_first_stopped(
    small: Small, tmp_path: Path, before: tuple[int | None, int], after: tuple[int | None, int]
) -> None:
    """Weights, moments, schedule and data order are the run's, not the layout's; in fp32 what differs is rounding."""
    fields = {"steps": 4, "lr": 1e-2, "warmup": 2}
    whole = small.pretrain(tmp_path / "whole", **fields)
    for zero, processes in (before, after):
        ctx = context(tmp_path / "r", zero=zero, processes=processes)
        ctx.stop_requested = True
        with pytest.raises(Interrupted):
            small.pretrain(tmp_path / "r", ctx=ctx, **fields)
        again(tmp_path / "r")
    saved = weights_of_save(tmp_path / "r" / "state" / "saves" / "2")
    assert {name.partition(":")[0] for name in saved if ":" in name} == {"exp_avg", "exp_avg_sq"}
    out = small.pretrain(tmp_path / "r", ctx=context(tmp_path / "r"), **fields)
    assert losses(out) == pytest.approx(losses(whole), abs=5e-6)
    ours, theirs = weights(out), weights(whole)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 5e-5


def weights_of_save(save: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(save / "state.safetensors"))
