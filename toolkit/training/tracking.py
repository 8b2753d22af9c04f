"""TensorBoard or Weights & Biases beside what Tidemark writes itself, where the resources say `tracking`."""

import os
from importlib.util import find_spec
from pathlib import Path

FOLDER = "tracking"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb"}


def check_tracking(name: str | None, state: Path) -> str:
    """Trainer's `report_to`; what is written goes to `tracking/` of the state, and with the artifact.

    Compute nodes have no network: W&B keeps its runs on the disk, and `wandb sync` sends them from a host that has one.

    Raises:
        ValueError: the package is not installed.
    """
    if name is None:
        return "none"
    if find_spec(PACKAGES[name]) is None:
        raise ValueError(
            f"tracking is {name!r} and the package {PACKAGES[name]!r} is not installed: `pip install {PACKAGES[name]}`"
            " into the environment of the workers, or leave tracking out of the profile and of the stage's resources"
        )
    folder = state / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TENSORBOARD_LOGGING_DIR"] = os.environ["WANDB_DIR"] = str(folder)
    os.environ["WANDB_MODE"] = "offline"
    return name
