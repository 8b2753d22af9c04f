"""Distributed checkpoints of torch, as data: `.metadata`, and one or more `__RANK_N.distcp` files a rank.

`.metadata` is a pickle that says, for every tensor, which box of it is where in which file; each box is a zip file of
its own there. A model is a third of the bytes, beside its optimizer's states, and spread over all files.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.checkpoints.tensors import Tensor
from toolkit.conversion.pickles import DTYPES, loads, read_torch
from toolkit.conversion.weights import Piece, Weight, assemble

METADATA = ".metadata"


class Record:
    """Stands in for the dataclasses of `.metadata`, which have no place in a file of data."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)


class Index(Record):
    """MetadataIndex: a key of a dict, so that it needs an identity."""


class Properties(Record):
    """TensorProperties: it is pickled as a tuple that begins with the dtype."""

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


def _size(values: Sequence[int] = ()) -> tuple[int, ...]:
    return tuple(values)


def _opaque(*values: Any) -> tuple[Any, ...]:
    return values


NAMES = {
    **{
        f"torch.distributed.checkpoint.metadata.{name}": Record
        for name in (
            "Metadata", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        )
    },
    "torch.distributed.checkpoint.metadata.TensorProperties": Properties,
    "torch.distributed.checkpoint.metadata.MetadataIndex": Index,
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": _opaque,
    "torch.distributed.checkpoint.filesystem._StorageInfo": Record,
    "olmo_core.distributed.checkpoint.filesystem._StorageInfo": Record,
    "torch.serialization._get_layout": _opaque,
    "pathlib.PosixPath": _opaque,
    "pathlib._local.PosixPath": _opaque,
    "torch.Size": _size,
    "collections.OrderedDict": OrderedDict,
    **{f"torch.{name.partition('.')[2]}": name for name in DTYPES},
}  # fmt: skip


def read_checkpoint(folder: Path, prefix: str) -> dict[str, Weight]:
    """The tensors whose names begin with `prefix`, which is taken off, whichever ranks saved them; others stay unread.

    Raises:
        ValueError: `.metadata` asks for code or is damaged, a file is missing, or a tensor's boxes do not cover it.
    """
    where = folder / METADATA
    tree = loads(where.read_bytes(), NAMES, str(where))
    parts: dict[str, list[Piece]] = {}
    for index, info in tree.storage_data.items():
        if index.fqn.startswith(prefix):
            parts.setdefault(index.fqn, []).append(_piece(folder, index, info))
    out = {}
    for name, described in tree.state_dict_metadata.items():
        if name.startswith(prefix):
            short = name.removeprefix(prefix)
            out[short] = assemble(short, tuple(described.size), parts.get(name, []))
            if out[short].dtype != DTYPES.get(described.properties.dtype):
                raise ValueError(f"{folder}: {name!r} is stored as {out[short].dtype}; {METADATA} says otherwise")
    return out


def _piece(folder: Path, index: Any, info: Any) -> Piece:
    path = folder / info.relative_path
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{folder / METADATA} names {info.relative_path!r}, which is not there")
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"{path}: {index.fqn!r} is stored compressed ({info.transform_descriptors})")
    tensor = read_torch(path, info.offset, info.length)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path}: {index.fqn!r} is no tensor at byte {info.offset:,}, where {METADATA} has it")
    return Piece(offsets=tuple(index.offset or (0,) * len(tensor.shape)), tensor=tensor)
