"""Rows for training from a data artifact: `data/`, a DatasetDict on disk, memory-mapped."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.lookup import unknown

if TYPE_CHECKING:
    from datasets import Dataset


def load_split(artifact: Path, split: str) -> "Dataset":
    """One split of a data artifact (or of a folder that `save_to_disk` wrote).

    Raises:
        ValueError: no data set there, or no such split (nearest spelling).
    """
    from datasets import load_from_disk

    folder = artifact / "data" if (artifact / "data").is_dir() else artifact
    if not (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{artifact} holds no data set: there is no data/dataset_dict.json; give a prepare artifact")
    splits = load_from_disk(str(folder))
    if split not in splits:
        raise ValueError(unknown(f"split of {artifact.name}", split, list(splits)))
    return splits[split]


def need_columns(rows: "Dataset", names: Iterable[str], why: str) -> None:
    """Raises:
    ValueError: a column is missing; the message names those there are.
    """
    for name in names:
        if name not in rows.column_names:
            raise ValueError(f"{why} needs a column {name!r}; the data set has {', '.join(rows.column_names)}")
