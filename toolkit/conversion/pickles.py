"""Pickles read as data: names that are not on a list are refused, and those on it build records, not their classes.

A checkpoint of torch is a zip file with a pickle that describes its tensors, beside their bytes. Unpickling calls
whatever the pickle names, so a weight file can run any program. Here the few names that such files need are mapped to
inert stand-ins, and every other one is an error before it is imported. The bytes are not read: their place is returned.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from toolkit.checkpoints.tensors import BYTES, TORCH, Tensor

# What torch calls the type of a tensor's storage -> what safetensors calls it.
STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip
DTYPES = {f"torch.{name}": word for word, name in TORCH.items()}
LOCAL_HEADER = 30  # bytes of a zip entry's own header before its name


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor as a pickle describes it: `key` names the zip entry of its storage, `offset` counts elements."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Refused(ValueError):
    """A pickle asks for more than data."""


def loads(data: bytes, names: Mapping[str, Any], where: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """What a pickle holds. names: `module.name` -> what stands in for it; nothing else is looked up.

    Raises:
        ValueError: it names something else, or is no pickle.
    """

    class Restricted(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return names[f"{module}.{name}"]
            except KeyError:
                raise Refused(
                    f"{where} is not read: its pickle asks for {module}.{name}, which no weights need. Files from"
                    " strangers may run programs this way; fetch it from its publisher and compare the digests"
                ) from None

        def persistent_load(self, pid: Any) -> Any:
            if persistent is None:
                raise Refused(f"{where} is not read: its pickle refers to something outside of it ({pid!r})")
            return persistent(pid)

    try:
        return Restricted(io.BytesIO(data)).load()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can
        raise ValueError(f"{where} is damaged: its pickle cannot be read ({type(error).__name__}: {error})") from error


def _rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Stored:
    key, dtype = storage
    return Stored(key=key, dtype=dtype, offset=offset, shape=tuple(size), stride=tuple(stride))


def _rebuild_parameter(tensor: Stored, *rest: Any) -> Stored:
    return tensor


STATE = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": OrderedDict,
    **{f"torch.{name}": word for name, word in STORAGES.items()},
    **{f"torch.storage.{name}": word for name, word in STORAGES.items()},
}


def read_torch(path: Path, start: int = 0, length: int | None = None) -> Any:
    """What `torch.save` wrote to a file, or to `length` bytes of it from `start`, with a `Tensor` for every tensor.

    Raises:
        ValueError: it is truncated, in torch's format from before 1.6, compressed, or asks for code; a tensor in it is
            not contiguous.
    """
    with open(path, "rb") as file:
        window = _Window(file, start, path.stat().st_size - start if length is None else length)
        try:
            archive = zipfile.ZipFile(window)
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"{path} is truncated or not torch's zip format ({error}): fetch it again, or load and save it with a"
                " newer torch"
            ) from error
        with archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "data.pkl" not in entries:
                raise ValueError(f"{path} is a zip file, but not one of torch: there is no data.pkl in it")
            if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                raise ValueError(f"{path} was written on a big-endian machine, which is not supported")
            tree = loads(archive.read(entries["data.pkl"]), STATE, str(path), _storage)
        return _place(tree, "", lambda key: _data(window, entries, key, path), path)


def _storage(pid: Any) -> tuple[str, str]:
    kind, dtype, key, *_ = pid
    if kind != "storage" or dtype not in BYTES:
        raise Refused(f"a tensor's storage is described as {pid!r}, which is not known")
    return str(key), str(dtype)


def _place(tree: Any, name: str, data: Callable[[str], tuple[int, int]], path: Path) -> Any:
    """Every `Stored` in nested dicts becomes a `Tensor`; other values stay."""
    if isinstance(tree, dict):
        return {key: _place(value, f"{name}.{key}" if name else str(key), data, path) for key, value in tree.items()}
    if not isinstance(tree, Stored):
        return tree
    expected = tuple(prod(tree.shape[at + 1 :]) for at in range(len(tree.shape)))
    if any(s != e for s, e, n in zip(tree.stride, expected, tree.shape, strict=True) if n > 1):
        raise ValueError(f"{path}: tensor {name!r} is a transposed or strided view; save it contiguous")
    begin, size = data(tree.key)
    first, last = tree.offset * BYTES[tree.dtype], (tree.offset + prod(tree.shape)) * BYTES[tree.dtype]
    if not 0 <= first <= last <= size:
        raise ValueError(f"{path}: tensor {name!r} {tree.shape} does not fit the {size:,} bytes of its storage")
    return Tensor(name=name, file=path, dtype=tree.dtype, shape=tree.shape, start=begin + first)


def _data(window: "_Window", entries: Mapping[str, zipfile.ZipInfo], key: str, path: Path) -> tuple[int, int]:
    """(offset in the file, bytes) of a storage; the length of an entry's own header stands in it alone."""
    info = entries.get(f"data/{key}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path}: the storage {key!r} of a tensor is {'compressed' if info else 'missing'}")
    window.seek(info.header_offset)
    header = window.read(LOCAL_HEADER)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return window.start + info.header_offset + LOCAL_HEADER + name + extra, info.file_size


class _Window(io.RawIOBase):
    """Some bytes of a file as a file: zip files inside the files of a distributed checkpoint."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self.file, self.start, self.length, self.at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence])
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.length - self.at)
        self.file.seek(self.start + self.at)
        data = self.file.read(left if size is None or size < 0 else min(size, left))
        self.at += len(data)
        return data
