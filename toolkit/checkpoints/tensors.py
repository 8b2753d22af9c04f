"""Safetensors without loading them: headers, ranges of tensors, and files written front to back.

A safetensors file is 8 bytes (little-endian length of the header), the header (JSON: name -> dtype, shape,
data_offsets) and the data. Everything here works on ranges, so that a model larger than memory can be checked, cast
and merged.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20  # elements that are worked on at a time
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"} | {
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
FLOATS = ("F64", "F32", "F16", "BF16")
PRECISIONS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # words of a spec -> words of safetensors


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """Where a tensor lies: `start` is the byte offset in `file`; `dtype` is safetensors' word (F32, BF16, ...)."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file, in the order of their data.

    Raises:
        ValueError: not a safetensors file, or shorter or longer than its header says.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{path} is truncated or no safetensors file: it has {size:,} bytes, and its header alone would take"
                f" {length + 8:,}; fetch or save it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is no safetensors file: its header is not JSON ({error})") from error
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length) for name, entry in header.items()]
    end = max((t.start + t.elements * BYTES[t.dtype] for t in tensors), default=8 + length)
    if end != size:
        raise ValueError(
            f"{path} is {'truncated' if size < end else 'too long'}: it has {size:,} bytes and its header promises"
            f" {end:,}; fetch or save it again"
        )
    return {t.name: t for t in sorted(tensors, key=lambda t: t.start)}


def _tensor(path: Path, name: str, entry: Mapping[str, object], base: int) -> Tensor:
    dtype, shape, offsets = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    assert isinstance(shape, list) and isinstance(offsets, list)
    if dtype not in BYTES:
        raise ValueError(f"{path}: tensor {name!r} has dtype {dtype}; valid: {', '.join(BYTES)}")
    tensor = Tensor(name=name, file=path, dtype=dtype, shape=tuple(shape), start=base + offsets[0])
    if offsets[1] - offsets[0] != tensor.elements * BYTES[dtype]:
        raise ValueError(f"{path}: tensor {name!r} {shape} {dtype} does not fit its {offsets[1] - offsets[0]:,} bytes")
    return tensor


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: the single one, or the shards that the index names.

    Raises:
        ValueError: there are none, or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ValueError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX} is there")
    shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {missing[0]}, one of the {len(shards)} shards that its {INDEX} names")
    return [folder / name for name in shards]


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a model folder, by name.

    Raises:
        ValueError: no weights, a missing or truncated file, a tensor that two files hold, or an adapter beside them.
    """
    if (folder / "adapter").is_dir():
        from toolkit.training.adapters import kind_of

        kind = kind_of(folder / "adapter").lower()
        raise ValueError(
            f"{folder} is a model with an adapter that is no part of its weights ({kind}): it can be asked (generate,"
            " evaluate), not trained further, converted, merged or quantized"
        )
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            if name in found:
                raise ValueError(f"tensor {name!r} is in {found[name].file} and in {path}")
            found[name] = tensor
    return found


def chunks(tensor: Tensor, elements: int = CHUNK) -> "Iterator[torch.Tensor]":
    """The tensor's elements in order, flat, at most `elements` at a time; memory is one chunk."""
    import torch

    dtype, width = getattr(torch, TORCH[tensor.dtype]), BYTES[tensor.dtype]
    with open(tensor.file, "rb", buffering=0) as file:
        for first in range(0, tensor.elements, elements):
            count = min(elements, tensor.elements - first)
            buffer = bytearray(count * width)
            read_into(file.fileno(), memoryview(buffer), tensor.start + first * width, tensor)
            yield torch.frombuffer(buffer, dtype=dtype)


def read_into(fd: int, buffer: memoryview, offset: int, tensor: Tensor) -> None:
    """Fill `buffer` with the bytes at `offset` of the file of `tensor`, which is open as `fd`.

    Raises:
        ValueError: the file ends before that.
    """
    done = 0
    while done < len(buffer):
        got = os.preadv(fd, [buffer[done:]], offset + done)
        if got == 0:
            raise ValueError(f"{tensor.file} ends inside tensor {tensor.name!r}; fetch or save it again")
        done += got


def write_file(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], parts: "Source") -> None:
    """Write one safetensors file front to back.

    tensors: name -> (dtype, shape), in the order of the data. parts: name -> its elements in flat chunks of that dtype,
        or the ranges of files that they are to be copied from.
    """
    import torch

    start = head(tensors)
    with open(path, "wb") as file:
        file.write(start)
        for name in tensors:
            for part in parts(name):
                if isinstance(part, Tensor):
                    _copy(part, file)
                else:
                    file.write(part.contiguous().view(torch.uint8).numpy().data)
    size = len(start) + sum(prod(shape) * BYTES[dtype] for dtype, shape in tensors.values())
    assert path.stat().st_size == size, f"{path}: parts do not add up to their tensors"


def head(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> bytes:
    """What a safetensors file begins with: everything before the data of `tensors`, name -> (dtype, shape)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8, as readers that map the file expect
    return len(text).to_bytes(8, "little") + text


def _copy(tensor: Tensor, file: BinaryIO) -> None:
    """Append a tensor's bytes through a buffer that stays in the processor's cache.

    Measured: as fast as sendfile where both files are aligned to pages, and twice as fast where they are not, as here.
    """
    buffer = memoryview(bytearray(1 << 20))
    at, left = tensor.start, tensor.elements * BYTES[tensor.dtype]
    with open(tensor.file, "rb", buffering=0) as source:
        while left:
            got = os.preadv(source.fileno(), [buffer[:left]], at)
            if got == 0:
                raise ValueError(f"{tensor.file} ends inside tensor {tensor.name!r}; fetch or save it again")
            file.write(buffer[:got])
            at, left = at + got, left - got


Source = Callable[[str], "Iterator[torch.Tensor | Tensor]"]


def write_folder(folder: Path, like: Mapping[str, Tensor], dtype: str | None, parts: Source) -> None:
    """Write weights laid out in files as those of `like` are, with an index where there are several files.

    dtype: safetensors' word for every floating-point tensor, or None to keep each tensor's own.
    parts: name -> elements in flat chunks, already of the wanted dtype.
    """
    files: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for tensor in like.values():
        word = dtype if dtype and tensor.dtype in FLOATS else tensor.dtype
        files.setdefault(tensor.file.name, {})[tensor.name] = (word, tensor.shape)
    for name, tensors in files.items():
        write_file(folder / name, tensors, parts)
    write_index(folder, files)


def write_index(folder: Path, files: Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]) -> None:
    """The index of a folder's weights, where they are in several files: file -> tensor -> (dtype, shape)."""
    if len(files) > 1:
        weight_map = {tensor: name for name, tensors in sorted(files.items()) for tensor in tensors}
        size = sum(prod(shape) * BYTES[word] for tensors in files.values() for word, shape in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
