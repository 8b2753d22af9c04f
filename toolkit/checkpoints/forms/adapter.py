"""An adapter: merged into its base where its kind allows that, or else laid beside it for `generate` and `evaluate`."""

from pathlib import Path


def restore(folder: Path, base: Path, out: Path) -> None:
    """Fill `out` with the model; see `toolkit.training.adapters`.

    Raises:
        ValueError: the adapter was trained for another model.
    """
    from toolkit.training.adapters import MERGING, kind_of, merge, put_beside

    (merge if kind_of(folder) in MERGING else put_beside)(folder, base, out)
