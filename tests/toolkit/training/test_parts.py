"""The parts of the engine: order of rows, layout of a batch, ranks, DeepSpeed's files, and ZeRO against one process."""

import json
import os
import re
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.training.small import Small, context, losses, weights
from toolkit.checkpoints.folders import copy_tokenizer
from toolkit.failures import Failure, NanLoss, classify
from toolkit.stage import Artifact, Context, Group, Resources, read_progress
from toolkit.training.order import Order
from toolkit.training.ranks import RankFailed, StopFlag, run_ranks
from toolkit.training.recipe import Layout, lay_out
from toolkit.training.speed import flops_a_token
from toolkit.training.zero import SPEC_FIELDS, deepspeed_config, layout_config


def test_order_takes_every_row_once_a_pass_and_differs_by_seed_and_pass() -> None:
    order = list(Order(rows=10, total=25, seed=3))
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == list(Order(rows=10, total=25, seed=3))
    passes = {tuple(list(Order(rows=10, total=20, seed=seed))[i : i + 10]) for seed in range(5) for i in (0, 10)}
    assert len(passes) == 10  # no seed's second pass is another's first


def test_layout_meets_the_global_batch_or_says_why_not() -> None:
    assert lay_out(16, Resources(), 256, 4096) == Layout(micro_batch=16, accumulation=1, processes=1)
    assert lay_out(16, Resources(), 256, 1024) == Layout(micro_batch=4, accumulation=4, processes=1)
    assert lay_out(24, Resources(processes=2), 10**6, 4096) == Layout(micro_batch=1, accumulation=12, processes=2)
    assert lay_out(24, Resources(processes=2, micro_batch=6), 1, 1) == Layout(
        micro_batch=6, accumulation=2, processes=2
    )
    with pytest.raises(ValueError, match="global_batch 10 cannot be split over 4 processes.*1, 2, 5, 10"):
        lay_out(10, Resources(processes=4), 1, 1)
    with pytest.raises(
        ValueError, match="global_batch 12 is not micro_batch 4 x accumulation x 2 processes.*1, 2, 3, 6"
    ):
        lay_out(12, Resources(processes=2, micro_batch=4), 1, 1)


def test_ranks_rendezvous_and_return() -> None:
    def work(rank: int) -> tuple[int, int]:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        total = torch.tensor([rank + 1])
        dist.all_reduce(total)
        return rank, int(total)

    assert run_ranks(2, work, lambda: False, StopFlag()) == (0, 3)


def test_ranks_of_a_second_node_come_after_those_of_the_first() -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

    def work(rank: int) -> list[str]:
        return [os.environ[name] for name in names]

    group = Group(node=1, nodes=3, address="198.51.100.7", port=29400)
    assert run_ranks(2, work, lambda: False, StopFlag(), group) == ["2", "0", "6", "2", "198.51.100.7", "29400"]


def test_what_is_processed_at_once_is_halved_as_often_as_memory_ran_out() -> None:
    given = [lay_out(24, Resources(halvings=n), 256, 4096).micro_batch for n in range(5)]
    assert given == [12, 6, 3, 1, 1]
    assert lay_out(24, Resources(micro_batch=6, halvings=1), 256, 4096).micro_batch == 3
    assert lay_out(24, Resources(processes=2), 10**6, 4096, nodes=3).processes == 6


def test_a_rank_that_fails_fails_the_stage_with_its_own_exception() -> None:
    def work(rank: int) -> None:
        if rank == 1:
            raise NanLoss("the loss is nan at step 3")
        time.sleep(60)

    begun = time.monotonic()
    with pytest.raises(NanLoss, match="at step 3") as caught:
        run_ranks(2, work, lambda: False, StopFlag())
    assert isinstance(caught.value.__cause__, RankFailed)
    assert "rank 1 of 2 failed" in str(caught.value.__cause__) and "in work" in str(caught.value.__cause__)
    assert time.monotonic() - begun < 10  # the other one was not waited for


def test_a_rank_that_is_killed_is_named() -> None:
    def work(rank: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)

    with pytest.raises(RankFailed, match="rank 1 of 2 was killed by SIGKILL; the kernel kills what exceeds its memory"):
        run_ranks(2, work, lambda: False, StopFlag())


def test_what_a_rank_says_of_a_killed_neighbour_is_not_the_cause() -> None:
    def work(rank: int) -> None:
        if rank == 1:
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(RankFailed, match="rank 1 of 2 was killed") as caught:
        run_ranks(2, work, lambda: False, StopFlag())
    assert classify(caught.value) is Failure.LOST


def test_ranks_die_with_their_parent(tmp_path: Path) -> None:
    """The worker is killed: its ranks must not go on writing."""

    def work(rank: int) -> None:
        (tmp_path / f"{rank}.part").write_text(str(os.getpid()))
        (tmp_path / f"{rank}.part").rename(tmp_path / str(rank))
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        run_ranks(2, work, lambda: False, StopFlag())
        os._exit(0)
    limit = time.monotonic() + 20
    while len(list(tmp_path.glob("[01]"))) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    pids = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while any(alive(pid) for pid in pids) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("key", sorted(SPEC_FIELDS))
def test_deepspeed_files_hold_layout_only(tmp_path: Path, key: str) -> None:
    (tmp_path / "zero2.json").write_text(json.dumps({"zero_optimization": {"stage": 2}, key: 1}))
    with pytest.raises(ValueError, match=f"{key}.* changes the result.*spec's field for it is {SPEC_FIELDS[key][:8]}"):
        layout_config(2, tmp_path)


def test_deepspeed_files_unknown_keys_and_stages(tmp_path: Path) -> None:
    (tmp_path / "zero2.json").write_text(json.dumps({"zero_optimisation": {"stage": 2}}))
    with pytest.raises(ValueError, match="unknown key 'zero_optimisation'; did you mean 'zero_optimization'"):
        layout_config(2, tmp_path)
    with pytest.raises(
        ValueError, match="zero is 4; valid: 0, 1, 2, 2 with offload cpu, 3, 3 with offload cpu, 3 with"
    ):
        layout_config(4)
    for stage in range(4):
        assert deepspeed_config(stage, "fp32")["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize(("zero", "processes"), [(None, 2), (0, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)])
def test_ranks_and_zero_compute_what_one_process_computes(
    small: Small, tmp_path: Path, zero: int | None, processes: int
) -> None:
    """fp32 over 6 steps at a high learning rate: sums in another order, so rounding (1e-7 a sum) and what grows of it."""
    fields = {"steps": 6, "lr": 1e-2, "clip": 0.5, "keep_steps": [0]}
    one = small.pretrain(tmp_path / "one", **fields)
    ctx = context(tmp_path / "many", processes=processes, zero=zero, micro_batch=2)
    many = small.pretrain(tmp_path / "many", ctx=ctx, **fields)
    assert losses(many) == pytest.approx(losses(one), abs=3e-6)
    for step, tolerance in (("0", 0.0), ("6", 5e-5)):
        ours, theirs = weights(one / "steps" / step), weights(many / "steps" / step)
        assert ours.keys() == theirs.keys()
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fine_tuning_under_zero3_on_two_ranks(small: Small, tmp_path: Path, precision: str) -> None:
    one = small.tune(tmp_path / "one", lr=1e-2, precision=precision)
    ctx = context(tmp_path / "two", processes=2, zero=3, micro_batch=1)
    two = small.tune(tmp_path / "two", lr=1e-2, precision=precision, ctx=ctx)
    assert losses(two) == pytest.approx(losses(one), abs=5e-6 if precision == "fp32" else 3e-2)
    assert {str(tensor.dtype) for tensor in weights(two).values()} == {"torch.float32"}


def test_zero3_writes_files_as_the_model_came_in(small: Small, tmp_path: Path) -> None:
    """Tensor by tensor, never the whole model on one rank: the shards are those of the model that training began with."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small.model.path)
    model.save_pretrained(tmp_path / "cut", max_shard_size="40KB")
    copy_tokenizer(small.model.path, tmp_path / "cut")
    given = {"model": Artifact(path=tmp_path / "cut")}
    shards = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    out = small.pretrain(tmp_path / "z", inputs=given, steps=2, ctx=context(tmp_path / "z", zero=3, processes=2))
    assert sorted(path.name for path in out.glob("*.safetensors")) == shards and len(shards) > 2
    one = small.pretrain(tmp_path / "one", inputs=given, steps=2)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, one))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) <= 5e-5


def test_nan_in_a_rank_is_a_nan_loss(small: Small, tmp_path: Path) -> None:
    with pytest.raises(NanLoss, match=r"(at|after) step \d+ of 30"):
        small.pretrain(tmp_path, steps=30, lr=1e30, clip=1e30, ctx=context(tmp_path, processes=2))


def test_a_step_that_goes_wrong_names_its_rows(small: Small, tmp_path: Path) -> None:
    with pytest.raises(NanLoss, match=r"step (\d+) of 30, in the batch of rows") as caught:
        small.pretrain(tmp_path, steps=30, lr=1e30, clip=1e30)
    found = re.search(r"step (\d+) of 30, in the batch of rows ([\d, ]+):", str(caught.value))
    assert found is not None
    step = int(found[1])
    assert [int(row) for row in found[2].split(", ")] == list(Order(rows=40, total=240, seed=0))[
        8 * step - 8 : 8 * step
    ]


def test_a_loss_that_has_diverged_stops(small: Small, tmp_path: Path) -> None:
    """It stays finite, and three times what it was: its median over twenty steps says so."""
    with pytest.raises(
        NanLoss, match=r"diverged at step \d\d of 200: its median.*worst.*in the batch of rows .*lower lr"
    ):
        small.pretrain(tmp_path, steps=200, lr=30, clip=1e9, warmup=60)


def test_memory_that_runs_out_halves_the_micro_batch_in_the_same_attempt(small: Small, tmp_path: Path) -> None:
    ctx = Scarce(state=context(tmp_path / "scarce").state, resources=Resources(micro_batch=8))
    with pytest.warns(UserWarning, match="memory ran out with a micro-batch of 4: it is halved"):
        out = small.pretrain(tmp_path / "scarce", ctx=ctx)
    how = json.loads((out / "training.json").read_text())
    assert (how["micro_batch"], how["accumulation"]) == (2, 4)
    assert losses(out) == pytest.approx(losses(small.pretrain(tmp_path / "whole")), abs=3e-6)


class Scarce(Context):
    """Memory runs out at the third step, until the micro-batch is small enough."""

    def progress(self, step: int, total: int, **_: Any) -> None:
        micro = json.loads((self.state / "training.json").read_text())["micro_batch"]
        if step == 3 and micro > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes.")


def test_gradient_checkpointing_changes_no_result(small: Small, tmp_path: Path) -> None:
    plain = small.pretrain(tmp_path / "a")
    again = small.pretrain(tmp_path / "b", ctx=context(tmp_path / "b", gradient_checkpointing=True))
    assert json.loads((again / "training.json").read_text())["gradient_checkpointing"] is True
    assert (plain / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


@pytest.mark.parametrize("zero", [2, 3])
def test_offload_to_the_nodes_memory(small: Small, tmp_path: Path, zero: int) -> None:
    """With torch's AdamW, which runs where its tensors lie: nothing is compiled, and the numbers are the same."""
    plain = small.pretrain(tmp_path / "a", lr=1e-2)
    ctx = context(tmp_path / "b", zero=zero, offload="cpu", processes=2)
    out = small.pretrain(tmp_path / "b", lr=1e-2, ctx=ctx)
    assert json.loads((out / "training.json").read_text())["offload"] == "cpu"
    assert losses(out) == pytest.approx(losses(plain), abs=3e-6)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"offload": "cpu"}, "offload is 'cpu' and zero is not set"),
        ({"offload": "cpu", "zero": 1}, "zero is 1 with offload cpu; valid: 0, 1, 2, 2 with offload cpu"),
    ],
)
def test_resources_that_cannot_be_had(small: Small, tmp_path: Path, resources: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.pretrain(tmp_path, ctx=context(tmp_path, **resources))


@pytest.mark.parametrize(("name", "trace"), [("tensorboard", "events.out.tfevents.*"), ("wandb", "offline-run-*")])
def test_tracking_writes_beside_the_artifact_or_is_refused(small: Small, tmp_path: Path, name: str, trace: str) -> None:
    """Neither package comes with Tidemark, so which of the two happens depends on what else is installed."""
    ctx = context(tmp_path, tracking=name)
    if find_spec(name) is None:
        with pytest.raises(
            ValueError, match=f"tracking is '{name}' and the package.*not installed: `pip install {name}`"
        ):
            small.pretrain(tmp_path, ctx=ctx)
    else:
        assert list((small.pretrain(tmp_path, ctx=ctx) / "tracking").rglob(trace))


def test_progress_tells_speed_and_memory(small: Small, tmp_path: Path) -> None:
    small.pretrain(tmp_path)
    told = read_progress(tmp_path / "state")
    assert told["step"] == told["total"] == 4 and told["tokens_per_second"] > 0
    assert 0 < told["mfu"] < 1 and 0.05 < told["memory_gb"] < 50
    steps = [json.loads(line) for line in (tmp_path / "state" / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4] and all(step["loss"] > 0 for step in steps)


def test_flops_of_a_token_by_hand(small: Small) -> None:
    """Two blocks of width 32 with 4 projections of attention, 3 of the MLP, norms; an untied head; the formula's 6N + 12LHT."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small.model.path)
    rows = model.get_input_embeddings().weight.shape[0]
    weights_ = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32 + 2 * 32) + 32 + rows * 32
    assert flops_a_token(model, 16) == 6 * weights_ + 12 * 2 * 32 * 16
    model.requires_grad_(False)
    assert flops_a_token(model, 16) == 4 * weights_ + 12 * 2 * 32 * 16
