"""The models of an artifact: its root, and the kept steps of a training run under `steps/<N>/`."""

from pathlib import Path


def kept_steps(artifact: Path) -> list[int]:
    """Steps that the artifact keeps, ascending; none for a plain model folder."""
    folder = artifact / "steps"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def model_folder(artifact: Path, step: int | None) -> Path:
    """The folder of one step, or the root where no step is asked for.

    Raises:
        ValueError: that step is not kept; the message lists those that are.
    """
    if step is None:
        return artifact
    steps = kept_steps(artifact)
    if step not in steps:
        there = f"it keeps {', '.join(map(str, steps))}" if steps else "it keeps no steps, only the model at its root"
        raise ValueError(
            f"{artifact.name} has no step {step}: {there}; name one of these, or set keep_steps in its spec"
        )
    return artifact / "steps" / str(step)
