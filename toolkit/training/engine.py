"""Run a Trainer on what there is: one process or several ranks, with or without DeepSpeed, exactly resumable.

This is the one place that knows DeepSpeed. A method gives the numbers (`Recipe`), a model folder to start from, the
prepared rows and a function that builds its Trainer; what it gets back is a finished folder. What survives attempts,
all in `ctx.state`: `saves/` (to resume from), `kept/<step>/` (weights that were asked for) and, last, `loss.parquet`.
`training.json` says how it was done: what was trained, on which layout, with which kernels.
"""

import gc
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.check import CAUSAL, check_model
from toolkit.checkpoints.folders import copy_file
from toolkit.failures import Failure, classify
from toolkit.manifest.files import discard
from toolkit.stage import Context, Interrupted, Resources
from toolkit.training.ranks import StopFlag, run_ranks
from toolkit.training.recipe import Layout, Recipe, lay_out

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel

    from toolkit.training.exact import Exact

    Load = Callable[[], PreTrainedModel]
    Build = Callable[[dict[str, Any], Load], Exact]
    Write = Callable[[Any, dict[str, torch.Tensor], Path], None]

CPU_TOKENS, GPU_TOKENS = 4096, 16384  # tokens of a micro-batch that nobody chose
LOSSES, HOW = "loss.parquet", "training.json"
SCRATCH = "TIDEMARK_SWAP"  # a worker sets it to a folder in the profile's scratch, which goes when the worker ends


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run from the folders `source` and `tokenizer` on `rows`, the longest of which has `tokens_a_row`.

    build: (arguments of a TrainingArguments, function that loads the model) -> a Trainer with `Exact` mixed in. It must
    make the arguments before it loads: with ZeRO-3 the model is born in shards. config: fields of the source's
    config that are changed; biases that they add begin at zero. how: further words of `from_pretrained`. adapter:
    (model, what was trained, folder) writes what is kept, where that is no whole model. fused: Liger's kernels may
    be used, which compute a loss without logits. diverges: the loss is one that falls, so that a rise says that
    training went wrong. auto: the class of transformers that reads the model. traced: columns of `loss.parquet`
    beside the loss -> what the Trainer calls them in its logs.
    """

    recipe: Recipe
    source: Path
    tokenizer: Path
    rows: "Dataset"
    tokens_a_row: int
    build: "Build"
    config: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    adapter: "Write | None" = None
    fused: bool = False
    diverges: bool = True
    auto: str = CAUSAL
    traced: Mapping[str, str] = field(default_factory=dict)


def train(run: Run, out: Path, ctx: Context) -> dict[str, Any]:
    """Train, or go on where the last attempt stopped, and fill `out`: the model, `steps/<N>/` and `loss.parquet`.

    Returns:
        metrics: steps, loss and what is traced (means of the last ten steps), tokens, trained (parameters).

    Raises:
        ValueError: a global batch that cannot be met exactly, or bad inputs.
        NanLoss: a loss or a weight that is not finite.
        Interrupted: `ctx.stop_requested`; the state is saved.
        RankFailed: a rank died.
    """
    if len(run.rows) == 0:
        raise ValueError("the data set has no rows to train on")
    if not (ctx.state / LOSSES).is_file():
        _run_all(run, ctx)
    return _assemble(run, out, ctx) if ctx.group.node == 0 else {}


def _run_all(run: Run, ctx: Context) -> None:
    """Halve the micro-batch each time that memory runs out, and go on from the last save; results are the same.

    Nodes that work together each see another error, so there it takes another attempt.
    """
    resources, budget = ctx.resources, GPU_TOKENS if _has_cuda() else CPU_TOKENS
    while True:
        layout = lay_out(run.recipe.global_batch, resources, run.tokens_a_row, budget, ctx.group.nodes)
        try:
            return _run_ranks(run, layout, ctx)
        except Exception as error:
            if classify(error) is not Failure.OOM or layout.micro_batch == 1 or ctx.group.nodes > 1:
                raise
            warnings.warn(f"memory ran out with a micro-batch of {layout.micro_batch}: it is halved", stacklevel=2)
        gc.collect()
        resources = replace(resources, halvings=resources.halvings + 1)


def _run_ranks(run: Run, layout: Layout, ctx: Context) -> None:
    # With a GPU even one rank is forked: CUDA stays out of this process, and Trainer, told that there is one rank, does
    # not spread it over all visible GPUs by DataParallel.
    if ctx.resources.zero is None and layout.processes == 1 and not _has_cuda():
        return _rank(run, layout, ctx, lambda: ctx.stop_requested)
    flag = StopFlag()
    work = partial(_in_rank, run, layout, ctx, flag)
    run_ranks(ctx.resources.processes, work, lambda: ctx.stop_requested, flag, ctx.group)


def _in_rank(run: Run, layout: Layout, ctx: Context, flag: StopFlag, rank: int) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    os.environ["OMP_NUM_THREADS"] = str(ctx.resources.threads)  # accelerate would set it to 1 where it finds none
    # Singletons of the parent, if it ever trained, say that there is one process; a rank must not inherit that.
    for singleton in (AcceleratorState, GradientState, PartialState):
        singleton._reset_state()
    _rank(run, layout, ctx, lambda: bool(flag))


def _rank(run: Run, layout: Layout, ctx: Context, stop: Callable[[], bool]) -> None:
    """What every rank does; the plain single process is the only rank of its kind."""
    import torch
    from transformers import PrinterCallback

    from toolkit.training.exact import attempt_folder
    from toolkit.training.kernels import attention
    from toolkit.training.order import Order
    from toolkit.training.saves import Saves
    from toolkit.training.state import STATE, read_weights
    from toolkit.training.watch import Watch

    settle()
    torch.set_num_threads(ctx.resources.threads)
    recipe = run.recipe
    if ctx.resources.zero is not None:
        _start_deepspeed()
    saves = Saves(ctx.state)
    parts, newest = _from_first(lambda: (attempt_folder(ctx.state), saves.newest()), layout.processes)
    how = attention(recipe.precision) | run.how
    arguments = _arguments(run, layout, ctx.resources, parts, _swap(ctx.resources, parts))
    trainer = run.build(arguments, lambda: load(run.source, run.auto, run.config, **how))
    trainer.remove_callback(PrinterCallback)
    trainer.order = Order(rows=len(run.rows), total=recipe.steps * recipe.global_batch, seed=recipe.seed)
    trainer.saves = saves
    if ctx.resources.gradient_checkpointing:
        trainer.args.gradient_checkpointing = True
        trainer.args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    if newest is not None:
        read_weights(trainer.model, newest / STATE)
    watch = Watch(trainer, run, layout, ctx, stop)
    trainer.add_callback(watch)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if watch.stopped:
        raise Interrupted(f"training was asked to stop and saved step {trainer.state.global_step} of {recipe.steps}")
    assert trainer.state.global_step == recipe.steps, f"{trainer.state.global_step} of {recipe.steps} steps"
    if trainer.is_world_process_zero():
        _write_losses(trainer.state.log_history, run.traced, ctx.state / LOSSES)


def _swap(resources: Resources, parts: Path) -> Path | None:
    """Where `offload: nvme` puts its files: the node's scratch folder, or a folder of this attempt beside its saves.

    Raises:
        ValueError: what DeepSpeed compiles to write them is not there.
    """
    if resources.offload != "nvme":
        return None
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import AsyncIOBuilder

    compiled = installed_ops.get(AsyncIOBuilder.NAME, False)
    if not compiled and (not AsyncIOBuilder().is_compatible(False) or shutil.which("c++") is None):
        raise ValueError(
            "offload is nvme, and DeepSpeed's async_io cannot be compiled here: install libaio-dev (libaio-devel) and"
            " g++ on the nodes, or say offload: cpu"
        )
    scratch = os.environ.get(SCRATCH)
    return Path(scratch) / parts.name if scratch else parts / "swap"


def _arguments(
    run: Run, layout: Layout, resources: Resources, folder: Path, swap: Path | None = None
) -> dict[str, Any]:
    """Arguments of TrainingArguments and its subclasses; every default that could change a number is said here."""
    from toolkit.training.kernels import has_liger
    from toolkit.training.tracking import check_tracking
    from toolkit.training.zero import deepspeed_config

    recipe, zero = run.recipe, resources.zero
    if zero is None and resources.offload is not None:
        raise ValueError(f"offload is {resources.offload!r} and zero is not set: say zero 2 or 3 beside it")
    floor = recipe.schedule == "cosine" and recipe.final_lr_ratio > 0
    return {
        "output_dir": str(folder),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": layout.micro_batch,
        "gradient_accumulation_steps": layout.accumulation,
        "average_tokens_across_devices": True,  # the mean is over the target tokens of the whole global batch
        "learning_rate": recipe.lr,
        "lr_scheduler_type": "cosine_with_min_lr" if floor else _SCHEDULES[recipe.schedule],
        "lr_scheduler_kwargs": {"min_lr_rate": recipe.final_lr_ratio} if floor else {},
        "warmup_steps": recipe.warmup_steps,
        "weight_decay": recipe.weight_decay,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": 1e-8,
        "max_grad_norm": recipe.clip,
        "optim": "adamw_torch" if zero is not None else "adamw_torch_fused",
        "bf16": recipe.precision == "bf16" and zero is None,
        "fp16": False,
        "seed": recipe.seed,
        "use_cpu": not _has_cuda(),
        "deepspeed": None if zero is None else deepspeed_config(zero, recipe.precision, resources.offload, swap),
        "use_liger_kernel": run.fused and has_liger(),
        "save_strategy": "no",  # Watch decides
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default puts an average in the place of a NaN
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": _has_cuda(),
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,
        "report_to": check_tracking(resources.tracking, folder.parent),
    }


_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def load(source: Path, auto: str = CAUSAL, config: Mapping[str, Any] = {}, **how: Any) -> "PreTrainedModel":
    """The model in fp32. Keys were checked by `check_model`; here they are checked again, as transformers sees them."""
    import torch
    import transformers

    loaded: Any = getattr(transformers, auto).from_pretrained(
        str(source),
        dtype=torch.float32,
        local_files_only=True,
        output_loading_info=True,
        **how,
        **config,
    )
    model, info = loaded
    faults = {kind: keys for kind, keys in info.items() if kind != "error_msgs" and keys}
    if config:  # what they add
        faults["missing_keys"] = {key for key in faults.pop("missing_keys", ()) if not key.endswith(".bias")}
    if any(faults.values()):
        raise ValueError(f"the weights in {source} do not fit their architecture: {faults}")
    return model


def _has_cuda() -> bool:
    """Whether there is a GPU, asked without starting CUDA: a process that started it can fork no ranks."""
    import torch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return bool(torch.cuda.is_available())


def _start_deepspeed() -> None:
    """Before any TrainingArguments: otherwise ZeRO-3 on several ranks believes that there is one."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    __compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for 45 s; results are the same without
    deepspeed.init_distributed(dist_backend="nccl" if _has_cuda() else "gloo", verbose=False)


def _from_first(ask: Callable[[], Any], processes: int) -> Any:
    """Rank 0's answer on every rank: what one rank reads of a folder, another may read differently a moment later."""
    import torch

    if processes == 1:
        return ask()
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if _has_cuda() else "gloo")
    answer: list[Any] = [ask() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(answer)
    return answer[0]


def settle() -> None:
    """Before anything else of a run: no bars and no banners (`status` tells), and one thread until the ranks are there.

    Hazard: OpenMP's threads do not survive a fork. A process that has used them forks ranks that hang at their first
    large tensor.
    """
    import datasets
    import torch
    import transformers

    torch.set_num_threads(1)

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated.*")  # DeepSpeed calls it
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated.*")  # TRL's default uses it


def _write_losses(history: list[dict[str, Any]], traced: Mapping[str, str], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    steps = [entry for entry in history if "loss" in entry]
    table = pyarrow.table(
        {
            "step": pyarrow.array([e["step"] for e in steps], pyarrow.int64()),
            "loss": pyarrow.array([e["loss"] for e in steps], pyarrow.float64()),
            "learning_rate": pyarrow.array([e["learning_rate"] for e in steps], pyarrow.float64()),
            "tokens": pyarrow.array([e["num_input_tokens_seen"] for e in steps], pyarrow.int64()),
            **{name: pyarrow.array([e[logged] for e in steps], pyarrow.float64()) for name, logged in traced.items()},
        }
    )
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    pyarrow.parquet.write_table(table, part)
    part.replace(path)


def _assemble(run: Run, out: Path, ctx: Context) -> dict[str, Any]:
    """Links, not copies: the last kept step and the root of the model are the same bytes."""
    import pyarrow.parquet

    recipe = run.recipe
    for step in sorted({*recipe.keep_steps, recipe.steps}):
        _link_folder(ctx.state / "kept" / str(step), out / "steps" / str(step))
        if run.adapter is None:
            check_model(out / "steps" / str(step), auto=run.auto)
    _link_folder(ctx.state / "kept" / str(recipe.steps), out)
    for name in (LOSSES, HOW):
        copy_file(ctx.state / name, out / name, link=False)
    if (ctx.state / "tracking").is_dir():
        shutil.copytree(ctx.state / "tracking", out / "tracking")
    for scrap in [ctx.state / "saves", *ctx.state.glob("part-*")]:  # nothing will be resumed: give back the space
        discard(scrap)
    table = pyarrow.parquet.read_table(out / LOSSES).to_pydict()
    assert table["step"] == list(range(1, recipe.steps + 1)), "the loss curve has a gap"
    means = {name: sum(table[name][-10:]) / len(table[name][-10:]) for name in ("loss", *run.traced)}
    counts = json.loads((out / HOW).read_text())["trained"]
    return {"steps": recipe.steps, **means, "tokens": table["tokens"][-1], "trained": counts["parameters"]}


def _link_folder(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        copy_file(path, target / path.name, link=True)
