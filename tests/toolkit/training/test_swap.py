"""`offload: nvme`: what DeepSpeed is told, where its files lie, the same numbers and resumption, and what is refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.training.small import OLMO, Small, context, losses, weights
from tests.toolkit.training.test_resume import again
from toolkit.stage import Interrupted, Request
from toolkit.training import engine
from toolkit.training.zero import deepspeed_config

WIDE = OLMO | {"hidden_size": 256, "intermediate_size": 1024}  # what is less than a megabyte a rank stays in memory


def built() -> bool:
    """Whether DeepSpeed's async_io is there; it takes minutes to compile, which only TIDEMARK_NVME=1 asks for here."""
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import _get_build_directory

    builder = AsyncIOBuilder()
    if not builder.is_compatible(False):
        return False
    return "TIDEMARK_NVME" in os.environ or (Path(_get_build_directory("async_io", False)) / "async_io.so").is_file()


def test_what_deepspeed_is_told(tmp_path: Path) -> None:
    """Memory layout, and the place; the layout file itself names none."""
    plain, told = deepspeed_config(3, "fp32", "cpu"), deepspeed_config(3, "fp32", "nvme", tmp_path)
    zero = told["zero_optimization"]
    assert zero.pop("offload_optimizer") == {
        "device": "nvme", "nvme_path": str(tmp_path), "pin_memory": True, "buffer_count": 4,
    }  # fmt: skip
    assert zero.pop("sub_group_size") == 100_000_000 and told["zero_force_ds_cpu_optimizer"] is False
    assert zero.pop("offload_param") == plain["zero_optimization"].pop("offload_param")
    plain["zero_optimization"].pop("offload_optimizer")
    assert told == plain  # with offload cpu everything else is the same


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_stage_that_cannot_is_refused_where_it_is_planned(zero: int) -> None:
    with pytest.raises(ValueError, match=f"offload is nvme and zero is {zero}, .*: take zero 3"):
        Request(offload="nvme", zero=zero)
    if zero < 2:
        with pytest.raises(ValueError, match="take zero 2 or 3"):
            Request(offload="cpu", zero=zero)


def test_without_a_compiler_or_libaio_it_is_refused(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # neither dpkg, which DeepSpeed asks for libaio, nor c++
    with pytest.raises(ValueError, match="async_io cannot be compiled here: install libaio-dev .* or say offload: cpu"):
        small.pretrain(tmp_path / "a", ctx=context(tmp_path / "a", zero=3, offload="nvme"))


def test_the_same_numbers_from_a_disk(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    """Two ranks against the same two with all in memory. After the first step it is interrupted; the node of the first
    attempt has a scratch folder and that of the second has none."""
    if not built():
        pytest.skip("DeepSpeed's async_io is not built (libaio-dev, g++, minutes): TIDEMARK_NVME=1 builds and tests it")
    scratch, state = tmp_path / "scratch", tmp_path / "r" / "state"
    plain = small.pretrain(tmp_path / "p", ctx=context(tmp_path / "p", zero=3, processes=2), architecture=WIDE)
    ctx = context(tmp_path / "r", zero=3, processes=2, offload="nvme")
    ctx.stop_requested = True
    monkeypatch.setenv(engine.SCRATCH, str(scratch))
    with pytest.raises(Interrupted):
        small.pretrain(tmp_path / "r", ctx=ctx, architecture=WIDE)
    found = {path.name for path in scratch.rglob("*.swp")}
    assert any("exp_avg-" in name for name in found) and any("exp_avg_sq-" in name for name in found)
    monkeypatch.delenv(engine.SCRATCH)
    ctx.stop_requested = False
    out = small.pretrain(again(tmp_path / "r"), ctx=ctx, architecture=WIDE)
    assert losses(out) == pytest.approx(losses(plain), abs=1e-6)
    ours, theirs = weights(out), weights(plain)
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 1e-6
    assert not list(state.rglob("*.swp"))  # nothing of it is left; what is in scratch goes with the worker
