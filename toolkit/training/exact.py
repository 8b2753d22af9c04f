"""The parts of Hugging Face's Trainer that are replaced, so that a run is exact: data order and saves."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer

from toolkit.training.order import Order
from toolkit.training.saves import Saves

if TYPE_CHECKING:
    import torch


class Exact(Trainer):
    """Mixed in before a Trainer: `class Tuner(Exact, SFTTrainer)`. The engine sets `order` and `saves`."""

    model: Any  # typed more widely by Trainer than it is here
    order: Order
    saves: Saves

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The weights that a save needs: none where DeepSpeed's own files hold them."""
        if not self.is_deepspeed_enabled and self.args.should_save:
            self.model.save_pretrained(output_dir, max_shard_size="100TB")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Trainer's own method, past TRL's, which would write a model card into every save.
        Trainer._save_checkpoint(self, model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            self.saves.publish(Path(str(self.args.output_dir)) / f"checkpoint-{step}", step)
        self.accelerator.wait_for_everyone()

    def weights(self) -> "dict[str, torch.Tensor] | None":
        """The whole model's tensors on rank 0 and None elsewhere; every rank must call it (ZeRO-3 gathers)."""
        state = (
            self.accelerator.get_state_dict(self.model_wrapped) if self.zero_stage() == 3 else self.model.state_dict()
        )
        return dict(state) if self.args.should_save else None

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
