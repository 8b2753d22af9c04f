"""One callback for what happens at every step: a loss that is not finite, progress, kept weights, saves, stop requests.

Everything hangs on `on_log`, which comes once a step on every rank, after the optimizer and with the step's loss, and
before Trainer looks whether it should save: so a step with a bad loss is neither kept nor saved.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toolkit.checkpoints.folders import CONFIG, copy_config, copy_tokenizer
from toolkit.checkpoints.tensors import read_folder
from toolkit.failures import NanLoss
from toolkit.manifest.files import seal
from toolkit.stage import Context
from toolkit.training.exact import Exact, attempt_folder
from toolkit.training.recipe import Recipe
from toolkit.training.saves import put_folder

SAVE_SECONDS = 120.0  # between two saves; slow saves stretch it; TIDEMARK_SAVE_SECONDS sets it
SAVE_SHARE = 0.05  # largest part of the time that may go into saves


class Watch(TrainerCallback):
    """See the module. `stopped` says after training that it ended because `stop()` said so."""

    def __init__(
        self, trainer: Exact, recipe: Recipe, source: Path, tokenizer: Path, ctx: Context, stop: Callable[[], bool]
    ) -> None:
        self.trainer, self.recipe, self.ctx, self.stop = trainer, recipe, ctx, stop
        self.source, self.tokenizer = source, tokenizer
        self.stopped = False
        self.asked = os.environ.get("TIDEMARK_SAVE_SECONDS")
        self.every = float(self.asked or SAVE_SECONDS)
        self.saved = self.last = time.monotonic()
        self.tokens = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the initialisation, if it is asked for; the clock of saves starts here."""
        self.saved = self.last = time.monotonic()
        self.tokens = state.num_input_tokens_seen
        if state.global_step == 0 and 0 in self.recipe.keep_steps:
            self.keep(0)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """After every step (and once more, without a loss, at the end of training)."""
        if "loss" not in (logs or {}):
            return
        step, steps = state.global_step, self.recipe.steps
        if not math.isfinite(logs["loss"]):
            raise NanLoss(
                f"the loss is {logs['loss']} at step {step} of {steps}: lower lr (it is {self.recipe.lr:g}), raise the"
                f" warm-up (it is {self.recipe.warmup_steps} steps) or lower clip (it is {self.recipe.clip:g})"
            )
        self._report(state, logs["loss"])
        if step in self.recipe.keep_steps or step == steps:
            self.keep(step)
        if step < steps:
            self._decide(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stretch the time between saves where a save takes long."""
        now = time.monotonic()
        if self.asked is None:
            self.every = max(self.every, (now - self.saved) / SAVE_SHARE)
        self.saved = now

    def _report(self, state: TrainerState, loss: float) -> None:
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        speed = (tokens - self.tokens) / max(now - self.last, 1e-9)
        self.last, self.tokens = now, tokens
        if state.is_world_process_zero:
            self.ctx.progress(state.global_step, self.recipe.steps, loss=loss, tokens_per_second=round(speed, 1))

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
        """Write `state/kept/<step>`, a whole model folder; it gets its name only when it is complete.

        Whether the keys are the architecture's is asked by the engine, outside the ranks: while ZeRO-3's arguments are
        alive, transformers shards every model that is built, also the one that only tells the keys.
        """
        weights = self.trainer.weights()
        if weights is not None:
            for name, tensor in weights.items():
                if not bool(tensor.isfinite().all()):
                    raise NanLoss(f"weight {name} is not finite after step {step} of {self.recipe.steps}: lower lr")
            part = attempt_folder(self.ctx.state)
            self.trainer.model.save_pretrained(part, state_dict=weights, max_shard_size="5GB")
            copy_config(self.source, part, "float32")
            copy_tokenizer(self.tokenizer, part)
            read_folder(part)
            for path in part.iterdir():  # safetensors are written for the owner only; a root is shared by a group
                path.chmod((part / CONFIG).stat().st_mode)
                seal(path)  # on the disk before it has its name
            put_folder(part, self.ctx.state / "kept" / str(step))
        self.trainer.accelerator.wait_for_everyone()
