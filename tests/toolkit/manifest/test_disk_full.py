"""What the libraries that write artifacts say of a full disk is understood, whichever way they wrap it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.failures import Failure, classify

BIG = 1_000_000  # values of four or eight bytes, for a disk of one MiB


def torch_save(path: Path) -> None:
    import torch

    torch.save(torch.zeros(BIG), path)


def safetensors_save(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(BIG)}, path)


def parquet(path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": np.random.default_rng(0).random(BIG)}), path)


def numpy_save(path: Path) -> None:
    import numpy as np

    np.save(path, np.zeros(BIG))


def plain(path: Path) -> None:
    path.write_bytes(bytes(4 * BIG))


@pytest.mark.parametrize("write", [torch_save, safetensors_save, parquet, numpy_save, plain])
def test_a_full_disk_is_recognised(tiny_disk: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(Exception) as caught:
        write(tiny_disk / "file")
    assert classify(caught.value) is Failure.DISK_FULL
