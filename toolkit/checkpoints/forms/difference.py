"""Weights stored losslessly as their difference to a base, file by file: `model.safetensors.difference`.

Bit patterns are read as integers in the order of the numbers that they stand for, so a weight that training moved a
little gives a small difference, whatever its sign. The differences of a chunk are folded to unsigned (0, -1, 1, -2,
...), cut into byte planes, and each plane is compressed by zstd; docs/storage.md has what else was tried. A tensor that
the base does not have, or has in another shape, is cut and compressed as it is.

The planes come first, then a table in JSON, then the table's length in 8 bytes. The table holds the header of the
safetensors file and the digest of the whole file, so what is restored is proven to be the same file.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import xxhash

from toolkit.checkpoints.folders import copy_file
from toolkit.checkpoints.tensors import BYTES, FLOATS, TORCH, Tensor, read_folder, read_header
from toolkit.manifest.files import digest_file
from toolkit.manifest.record import DROPPED, LOG, RECORD, REFERENCE, SUFFIX

CHUNK = 1 << 18  # elements: what is worked on stays in the processor's cache
LEVEL = 1  # of zstd
AHEAD = 4  # chunks in the making for each thread
SAMPLE = 32  # chunks that an estimate looks at
Bits = np.ndarray[Any, np.dtype[Any]]
A = TypeVar("A")
B = TypeVar("B")


def restore(folder: Path, base: Path, out: Path) -> None:
    """Fill `out` with the model of `folder`: its differences added to the weights of `base`; other files are linked.

    Raises:
        ValueError: a difference is damaged, or the base is not bit for bit the one that it was taken from.
    """
    weights = read_folder(base)
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        if path.name.endswith(SUFFIX):
            decode(path, weights, out / path.name.removesuffix(SUFFIX))
        elif path.name not in (REFERENCE, RECORD, LOG, DROPPED) and not (folder / (path.name + SUFFIX)).exists():
            copy_file(path, out / path.name, link=True)


def encode(path: Path, base: Mapping[str, Tensor], out: Path, threads: int = 0) -> None:
    """Write the difference of a safetensors file to the tensors of a base.

    Raises:
        ValueError: no safetensors file, or one with gaps between its tensors.
    """
    tensors = read_header(path)
    head = _head(path, tensors)
    pairs = {name: pair(tensor, base) for name, tensor in tensors.items()}
    words = [[t.name, t.dtype, t.shape, getattr(pairs[t.name], "dtype", None)] for t in tensors.values()]
    lengths: list[list[int]] = []
    with _Ranges() as ranges, open(out, "wb") as file:

        def pack(piece: _Piece) -> list[bytes]:
            return _pack(ranges.bits(piece.tensor, piece.first, piece.count), ranges.prediction(piece))

        pieces = (_Piece(t, pairs[t.name], first) for t in tensors.values() for first in range(0, t.elements, CHUNK))
        for planes in _in_order(pieces, pack, threads):
            lengths.append([len(plane) for plane in planes])
            file.writelines(planes)
        told = {"size": path.stat().st_size, "digest": digest_file(path), "head": head.decode("latin-1")}
        text = json.dumps({**told, "tensors": words, "lengths": lengths}, separators=(",", ":")).encode()
        file.write(text + len(text).to_bytes(8, "little"))


def decode(path: Path, base: Mapping[str, Tensor], out: Path | None, threads: int = 0) -> str:
    """Write the file that a difference stands for, or only prove it where `out` is None; returns its digest.

    base: the tensors that it was taken from.

    Raises:
        ValueError: the difference is damaged, or the base is another.
    """
    table = _table(path)
    head, state = table["head"].encode("latin-1"), xxhash.xxh3_128()
    with _Ranges() as ranges, open(out or os.devnull, "wb") as file:

        def find(piece: _Packed) -> Bits:
            frame, prediction = ranges.bytes(path, piece.at, sum(piece.lengths)), ranges.prediction(piece)
            try:
                return _unpack(frame, piece.lengths, piece.count, piece.width, prediction)
            except OSError as error:  # which is what pyarrow calls it
                raise ValueError(f"{path} is damaged in tensor {piece.tensor.name!r} ({error})") from error

        for found in chain([head], _in_order(_packed(path, table, base, len(head)), find, threads)):
            state.update(found)
            file.write(found)
    digest = f"xxh3:{state.hexdigest()}"
    if digest != table["digest"]:
        raise ValueError(
            f"{path} does not give back the file that it was made from: it is damaged, or the base is not bit for bit"
            " what it was; `tidemark verify` tells which"
        )
    return digest


def estimate(path: Path, base: Mapping[str, Tensor]) -> float:
    """The share of a safetensors file's bytes that its difference will take, from a sample of chunks; 1 if empty."""
    tensors = read_header(path)
    pieces = [_Piece(t, pair(t, base), first) for t in tensors.values() for first in range(0, t.elements, CHUNK)]
    packed = whole = 0
    with _Ranges() as ranges:
        for piece in pieces[:: 1 + len(pieces) // SAMPLE]:
            bits = ranges.bits(piece.tensor, piece.first, piece.count)
            packed += sum(map(len, _pack(bits, ranges.prediction(piece))))
            whole += bits.nbytes
    return packed / whole if whole else 1.0


def paired(path: Path, base: Mapping[str, Tensor]) -> float:
    """The share of a safetensors file's elements in tensors that the base has in the same shape."""
    tensors = read_header(path).values()
    return sum(t.elements for t in tensors if pair(t, base)) / max(1, sum(t.elements for t in tensors))


def pair(tensor: Tensor, base: Mapping[str, Tensor]) -> Tensor | None:
    """The tensor of the base that another is predicted from: of its name and shape, and of its type or one to cast."""
    other = base.get(tensor.name)
    if other is None or other.shape != tensor.shape:
        return None
    castable = tensor.dtype in FLOATS and other.dtype in FLOATS
    return other if castable or other.dtype == tensor.dtype else None


def _head(path: Path, tensors: Mapping[str, Tensor]) -> bytes:
    """What is before the data; the data must be one tensor after the other."""
    end = start = min((t.start for t in tensors.values()), default=path.stat().st_size)
    for tensor in tensors.values():
        if tensor.start != end:
            raise ValueError(f"{path} has a gap or an overlap before tensor {tensor.name!r}: save it again")
        end += tensor.elements * BYTES[tensor.dtype]
    with open(path, "rb") as file:
        return file.read(start)


def _table(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            file.seek(size - 8)
            length = int.from_bytes(file.read(8), "little")
            file.seek(size - 8 - length)
            table: dict[str, Any] = json.loads(file.read(length))
            return table
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: its table cannot be read ({error}); see `tidemark verify`") from error


@dataclass(frozen=True)
class _Piece:
    """A chunk of a tensor, from element `first` on, and the tensor of the base that it is predicted from."""

    tensor: Tensor
    base: Tensor | None
    first: int

    @property
    def count(self) -> int:
        return min(CHUNK, self.tensor.elements - self.first)

    @property
    def width(self) -> int:
        return BYTES[self.tensor.dtype]


@dataclass(frozen=True)
class _Packed(_Piece):
    """The same in a difference: its planes are at byte `at`, of these lengths."""

    at: int
    lengths: list[int]


def _packed(path: Path, table: Mapping[str, Any], base: Mapping[str, Tensor], start: int) -> Iterator[_Packed]:
    lengths, at = iter(table["lengths"]), 0
    for name, dtype, shape, predicted in table["tensors"]:
        tensor = Tensor(name=name, file=path, dtype=dtype, shape=tuple(shape), start=start)
        other = pair(tensor, base) if predicted else None
        if predicted and (other is None or other.dtype != predicted):
            raise ValueError(
                f"{path}: tensor {name!r} was stored as a difference to one of shape {tuple(shape)} and type"
                f" {predicted}, which the base does not have: it is another model"
            )
        for first in range(0, tensor.elements, CHUNK):
            planes = next(lengths)
            yield _Packed(tensor, other, first, at, planes)
            at += sum(planes)
        start += tensor.elements * BYTES[dtype]


class _Ranges:
    """Ranges of files, each of which is opened once; threads may share it."""

    def __init__(self) -> None:
        self.stack, self.files = ExitStack(), dict[Path, int]()

    def __enter__(self) -> "_Ranges":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stack.close()

    def bytes(self, path: Path, start: int, count: int) -> bytes:
        if path not in self.files:
            self.files[path] = self.stack.enter_context(open(path, "rb", buffering=0)).fileno()
        found = os.pread(self.files[path], count, start)
        if len(found) != count:
            raise ValueError(f"{path} is truncated: it ends before byte {start + count:,}; see `tidemark verify`")
        return found

    def bits(self, tensor: Tensor, first: int, count: int) -> Bits:
        width = BYTES[tensor.dtype]
        return np.frombuffer(self.bytes(tensor.file, tensor.start + first * width, count * width), f"u{width}")

    def prediction(self, piece: _Piece) -> Bits | None:
        """The base's bits, in the type of the tensor; of a NaN, which machines cast in different ways, those of 0."""
        if piece.base is None:
            return None
        found = self.bits(piece.base, piece.first, piece.count)
        return found if piece.base.dtype == piece.tensor.dtype else _cast(found, piece.base.dtype, piece.tensor.dtype)


def _cast(bits: Bits, dtype: str, to: str) -> Bits:
    import torch

    numbers = torch.frombuffer(bytearray(bits), dtype=getattr(torch, TORCH[dtype]))
    numbers = numbers.masked_fill_(numbers.isnan(), 0)
    whole = getattr(torch, f"int{8 * BYTES[to]}")
    cast: Bits = numbers.to(getattr(torch, TORCH[to])).view(whole).numpy().view(f"u{BYTES[to]}")
    return cast


def _ordered(bits: Bits) -> Bits:
    """Floating-point bits, sign and magnitude, as two's complement: neighbours among the numbers differ by 1.

    It is its own inverse, and takes any bits: as integers, of NaN and of tensors that are no numbers at all.
    """
    last = bits.dtype.itemsize * 8 - 1
    signed = bits.view(f"i{bits.dtype.itemsize}")
    sign: Bits = signed >> last
    sign &= signed.dtype.type((1 << last) - 1)
    sign ^= signed
    return sign.view(bits.dtype)


def _pack(bits: Bits, base: Bits | None) -> list[bytes]:
    """The planes of a chunk, lowest byte first: compressed, or as they are where that is not smaller; none of zeros."""
    width = bits.dtype.itemsize
    if base is not None:
        moved = (_ordered(bits) - _ordered(base)).view(f"i{width}")
        bits = ((moved << 1) ^ (moved >> (8 * width - 1))).view(f"u{width}")
    codec = pa.Codec("zstd", compression_level=LEVEL)
    planes = []
    for number in range(width):
        plane = np.ascontiguousarray(bits.view(np.uint8)[number::width])
        packed = codec.compress(plane, asbytes=True) if plane.any() else b""
        planes.append(packed if len(packed) < len(plane) else plane.tobytes())
    return planes


def _unpack(frame: bytes, lengths: list[int], count: int, width: int, base: Bits | None) -> Bits:
    codec, view, at = pa.Codec("zstd"), memoryview(frame), 0
    bits = np.zeros(count, f"u{width}")
    bytes_ = bits.view(np.uint8)
    for number, length in enumerate(lengths):
        part = view[at : at + length]
        at += length
        if length:
            plane = part if length == count else codec.decompress(part, count)
            bytes_[number::width] = np.frombuffer(plane, np.uint8)
    if base is None:
        return bits
    sign = -(bits & 1).view(f"i{width}")
    bits >>= 1
    bits ^= sign.view(bits.dtype)
    bits += _ordered(base)
    return _ordered(bits)


def _in_order(things: Iterable[A], work: Callable[[A], B], threads: int) -> Iterator[B]:
    """`work` of every thing in their order, on all cores that this process may use; a few are in the making at once."""
    threads = threads or len(os.sched_getaffinity(0))
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for thing in things:
            waiting.append(pool.submit(work, thing))
            if len(waiting) >= AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
