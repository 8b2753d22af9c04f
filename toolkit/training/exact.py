"""The parts of Hugging Face's Trainer that are replaced, so that a run is exact: data order and saves."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from toolkit.training import state
from toolkit.training.order import Order
from toolkit.training.saves import Saves

if TYPE_CHECKING:
    import torch

SCHEDULE = "scheduler.pt"


class Exact(Trainer):
    """Mixed in before a Trainer: `class Tuner(Exact, SFTTrainer)`. The engine sets `order`, `saves` and `check`."""

    model: Any  # typed more widely by Trainer than it is here
    order: Order
    saves: Saves
    check: "Callable[[dict[str, torch.Tensor], int], None]"  # raises where what is to be saved is not finite

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The engine has put the weights in place, before anything was made of them."""

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        # Not told of the save, Trainer asks DeepSpeed for none of its own.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        if resume_from_checkpoint is not None:
            self._continue(Path(resume_from_checkpoint))
        return prepared

    def _continue(self, save: Path) -> None:
        import torch

        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(save / SCHEDULE, weights_only=True))
        state.read_moments(self, save / state.STATE, self.state.global_step)
        optimizer: Any = self.optimizer
        for group, lr in zip(optimizer.param_groups, scheduler.get_last_lr(), strict=True):
            group["lr"] = lr

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights that are trained, and the optimizer's state of each."""
        step = self.state.global_step
        state.write(self, Path(str(output_dir)) / state.STATE, lambda tensors: self.check(tensors, step))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        import torch

        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULE)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer's own method, past TRL's, which would write a model card into every save.
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            part = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
            self.saves.publish(part, step, set(state.entries(self.model)))
        self.accelerator.wait_for_everyone()

    def weights(self) -> "dict[str, torch.Tensor] | None":
        """The whole model's tensors on rank 0 and None elsewhere; every rank must call it (ZeRO-3 gathers)."""
        found = (
            self.accelerator.get_state_dict(self.model_wrapped) if self.zero_stage() == 3 else self.model.state_dict()
        )
        return dict(found) if self.args.should_save else None

    def trained_weights(self) -> "dict[str, torch.Tensor] | None":
        """What is trained, under the model's names, on rank 0 and None elsewhere; every rank must call it."""
        found = {name: state.whole(self, parameter) for name, parameter in state.trained(self.model).items()}
        return found if self.args.should_save else None

    def _send_telemetry(self) -> None:
        """TRL reports every run to its makers where it can; a study is nobody else's business."""

    def zero_stage(self) -> int | None:
        """DeepSpeed's ZeRO stage, or None without DeepSpeed."""
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        return None if plugin is None else int(plugin.zero_stage)


def attempt_folder(state: Path) -> Path:
    """A new folder of this attempt's own, where folders are written before they get their names."""
    folder = state / f"part-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    return folder
