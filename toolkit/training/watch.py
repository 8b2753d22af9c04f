"""One callback for what happens at every step: a loss that went wrong, progress, kept weights, saves, stop requests.

Everything hangs on `on_log`, which comes once a step on every rank, after the optimizer and with the step's loss, and
before Trainer looks whether it should save: so a step with a bad loss is neither kept nor saved.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.checkpoints.folders import copy_config, copy_tokenizer
from toolkit.checkpoints.tensors import read_folder
from toolkit.failures import NanLoss
from toolkit.manifest.files import seal, write_atomic
from toolkit.stage import Context
from toolkit.training import speed
from toolkit.training.exact import Exact, attempt_folder
from toolkit.training.recipe import Layout
from toolkit.training.saves import put_folder
from toolkit.training.state import shape_of, trained, write_like

if TYPE_CHECKING:
    from toolkit.training.engine import Run

SAVE_SECONDS = 120.0  # between two saves; slow saves stretch it; TIDEMARK_SAVE_SECONDS sets it
SAVE_SHARE = 0.05  # largest part of the time that may go into saves
WINDOW, DIVERGED = 20, 3.0  # a run has diverged if the median loss of so many steps is so often that of the first ones
SHOWN = 16  # rows of a batch that a message names


class Watch(TrainerCallback):
    """See the module. `stopped` says after training that it ended because `stop()` said so."""

    def __init__(self, trainer: Exact, run: "Run", layout: Layout, ctx: Context, stop: Callable[[], bool]) -> None:
        self.trainer, self.run, self.layout, self.ctx, self.stop = trainer, run, layout, ctx, stop
        self.recipe = run.recipe
        trainer.check = self._check_finite
        self.stopped = False
        self.asked = os.environ.get("TIDEMARK_SAVE_SECONDS")
        self.every = float(self.asked or SAVE_SECONDS)
        self.saved = self.last = time.monotonic()
        self.tokens = 0
        self.gauge: speed.Gauge | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say how it is done; keep the initialisation, if it is asked for; the clock of saves starts here."""
        if state.is_world_process_zero:
            self.gauge = speed.Gauge(self.trainer.model, self.run.tokens_a_row, self.recipe.precision, args.world_size)
            write_atomic(self.ctx.state / "training.json", (json.dumps(self._how(), indent=1) + "\n").encode())
        if state.global_step == 0 and 0 in self.recipe.keep_steps:
            self.keep(0)
        self.saved = self.last = time.monotonic()
        self.tokens = state.num_input_tokens_seen

    def _how(self) -> dict[str, Any]:
        model, args, resources = self.trainer.model, self.trainer.args, self.ctx.resources
        ours = trained(model)
        sizes = {name: math.prod(shape_of(p)) for name, p in model.named_parameters()}
        return {
            "trained": {"parameters": sum(sizes[n] for n in ours), "of": sum(sizes.values()), "names": list(ours)},
            "attention": model.config._attn_implementation,
            "kernels": "liger" if args.use_liger_kernel else "none",
            "optimizer": str(getattr(args.optim, "value", args.optim)),
            "device": args.device.type,
            "zero": resources.zero,
            "offload": resources.offload,
            "gradient_checkpointing": bool(args.gradient_checkpointing),
            "micro_batch": self.layout.micro_batch,
            "accumulation": self.layout.accumulation,
            "ranks": self.layout.processes,
        }

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """After every step (and once more, without a loss, at the end of training)."""
        if "loss" not in (logs or {}):
            return
        step, steps = state.global_step, self.recipe.steps
        self._check_step(step, logs)
        self._look_for_divergence(state)
        self._report(state, logs)
        if step in self.recipe.keep_steps or step == steps:
            self.keep(step)
        if step < steps:
            self._decide(control)

    def _check_step(self, step: int, logs: dict[str, Any]) -> None:
        """A gradient that is not finite spoils the weights: the loss of the next step would blame that one's batch.

        DeepSpeed leaves such a step out and says nothing of it, or at stage 0 takes it and tells no norm.
        """
        applied = getattr(self.trainer.model_wrapped, "was_step_applied", lambda: True)()
        for name, found in (("loss", logs["loss"]), ("gradient", logs.get("grad_norm", 0.0) if applied else math.nan)):
            if not math.isfinite(found):
                where = f"at step {step} of {self.recipe.steps}"
                raise NanLoss(f"the {name} is {float(found)} {where}, {self._batch(step)}: {self._remedy()}")
        if self.trainer.zero_stage() == 0:
            self._check_finite(trained(self.trainer.model), step)

    def _batch(self, step: int) -> str:
        """Which rows step `step` saw: numbers of the prepared data's rows, in their order."""
        size = self.recipe.global_batch
        rows = list(islice(self.trainer.order, max(0, step - 1) * size, step * size))
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        return f"in the batch of rows {', '.join(map(str, rows[:SHOWN]))}{more}"

    def _remedy(self) -> str:
        return (
            f"lower lr (it is {self.recipe.lr:g}), raise the warm-up (it is {self.recipe.warmup_steps} steps) or lower"
            f" clip (it is {self.recipe.clip:g})"
        )

    def _look_for_divergence(self, state: TrainerState) -> None:
        """One bad batch is none, and neither is a loss that rises by a half: both may come down again."""
        if not self.run.diverges or state.global_step % WINDOW:  # not at every step: it reads all losses
            return
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if len(losses) < 2 * WINDOW:
            return
        first, last = statistics.median(losses[:WINDOW]), statistics.median(losses[-WINDOW:])
        if last > DIVERGED * first > 0:
            worst = max(range(len(losses) - WINDOW, len(losses)), key=losses.__getitem__)
            raise NanLoss(
                f"the loss has diverged at step {state.global_step} of {self.recipe.steps}: its median over {WINDOW}"
                f" steps is {last:.3g}, and was {first:.3g} over the first {WINDOW}; it was worst, {losses[worst]:.3g},"
                f" at step {worst + 1}, {self._batch(worst + 1)}: {self._remedy()}"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stretch the time between saves where a save takes long."""
        now = time.monotonic()
        if self.asked is None:
            self.every = max(self.every, (now - self.saved) / SAVE_SHARE)
        self.saved = now

    def _report(self, state: TrainerState, logs: dict[str, Any]) -> None:
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        rate = (tokens - self.tokens) / max(now - self.last, 1e-9)
        self.last, self.tokens = now, tokens
        if self.gauge is None:
            return
        numbers = {
            "loss": logs["loss"],
            "tokens_per_second": round(rate, 1),
            "mfu": round(self.gauge.mfu(rate), 4),
            "memory_gb": round(speed.memory_gb(), 2),
        }
        line = {"step": state.global_step, **numbers, "learning_rate": logs.get("learning_rate")}
        with open(self.ctx.state / "steps.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.ctx.progress(state.global_step, self.recipe.steps, **numbers)

    def _decide(self, control: TrainerControl) -> None:
        """All ranks save and stop at the same step, or the ones that do would wait for the others for ever."""
        stop, save = self._agree(bool(self.stop()), time.monotonic() - self.saved >= self.every)
        if stop or save:
            control.should_save = True
            self.saved = time.monotonic()
        if stop:
            self.stopped = control.should_training_stop = True

    def _agree(self, *flags: bool) -> list[bool]:
        import torch

        if self.trainer.args.world_size == 1:
            return list(flags)
        votes = torch.tensor([int(flag) for flag in flags], device=self.trainer.args.device)
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def keep(self, step: int) -> None:
        """Write `state/kept/<step>`: a whole model folder, or an adapter; it gets its name only when it is complete.

        Whether the keys are the architecture's is asked by the engine, outside the ranks: while ZeRO-3's arguments are
        alive, transformers shards every model that is built, also the one that only tells the keys.
        """
        part = attempt_folder(self.ctx.state)  # of this rank's own; the first one's gets the name
        written = self._write_adapter(part, step) if self.run.adapter is not None else self._write_model(part, step)
        if written:
            mode = next(part.glob("*config.json")).stat().st_mode
            for path in part.iterdir():  # safetensors are written for the owner only; a root is shared by a group
                path.chmod(mode)
                seal(path)  # on the disk before it has its name
            put_folder(part, self.ctx.state / "kept" / str(step))
        self.trainer.accelerator.wait_for_everyone()

    def _write_adapter(self, part: Path, step: int) -> bool:
        weights = self.trainer.trained_weights()
        if weights is None:
            return False
        self._check_finite(weights, step)
        assert self.run.adapter is not None
        self.run.adapter(self.trainer.model, weights, part)
        return True

    def _write_model(self, part: Path, step: int) -> bool:
        first = self.trainer.args.should_save
        # Under ZeRO-3 a whole model may be more than a node's memory; what it was read from says how it is cut.
        check = partial(self._check_finite, step=step)
        if self.trainer.zero_stage() != 3 or not write_like(self.trainer, self.run.source, part, check):
            weights = self.trainer.weights()
            if weights is not None:
                check(weights)
                self.trainer.model.save_pretrained(part, state_dict=weights, max_shard_size="5GB")
        if first:
            copy_config(self.run.source, part, "float32")
            copy_tokenizer(self.run.tokenizer, part)
            read_folder(part)
        return first

    def _check_finite(self, weights: dict[str, Any], step: int) -> None:
        """For what is kept and for what is saved: training must not go on from weights that are lost."""
        for name, tensor in weights.items():
            if not bool(tensor.isfinite().all()):
                where = f"after step {step} of {self.recipe.steps}"
                raise NanLoss(f"weight {name} is not finite {where}, {self._batch(step)}: {self._remedy()}")
