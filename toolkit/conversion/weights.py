"""A weight as ranges of files: one range in most formats, several where ranks saved a piece each.

Nothing is loaded to be renamed, sliced by rows or put together: a `Weight` says which bytes make it up, and `stream`
reads them front to back. Only pieces that split a row (tensor parallelism) need the whole tensor in memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoints.tensors import BYTES, CHUNK, FLOATS, INDEX, SINGLE, TORCH, Tensor, chunks, write_file

if TYPE_CHECKING:
    import torch

SHARD = 5_000_000_000  # bytes of a written file, at most (a tensor that is larger has one of its own)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of a weight: where its first element stands in the weight, and the range of a file that holds it."""

    offsets: tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True, kw_only=True)
class Weight:
    """`name` is the original's; `dtype` safetensors' word. `pieces` cover `shape` once, in order; none means zeros."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)


def whole(tensor: Tensor) -> Weight:
    """A weight that lies in one range."""
    piece = Piece(offsets=(0,) * len(tensor.shape), tensor=tensor)
    return Weight(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, pieces=(piece,))


def assemble(name: str, shape: tuple[int, ...], pieces: list[Piece]) -> Weight:
    """A weight of pieces that were saved apart.

    Raises:
        ValueError: they leave a gap, overlap, stand out or differ in dtype.
    """
    pieces = sorted((piece for piece in pieces if piece.tensor.elements), key=lambda piece: piece.offsets)
    for piece in pieces:
        corner = piece.offsets, piece.tensor.shape
        if any(len(part) != len(shape) for part in corner) or any(
            o < 0 or o + n > size for o, n, size in zip(*corner, shape, strict=True)
        ):
            raise ValueError(f"{name!r} {shape} has a piece {piece.tensor.shape} at {piece.offsets}, outside of it")
    held = sum(piece.tensor.elements for piece in pieces)
    if held != prod(shape) or _twice([(piece.offsets, piece.tensor.shape) for piece in pieces], shape):
        raise ValueError(
            f"{name!r} {shape} is not covered exactly once by its {len(pieces)} pieces, which hold {held:,} of"
            f" {prod(shape):,} elements: a rank's file is missing or listed twice; fetch the checkpoint again"
        )
    dtypes = sorted({piece.tensor.dtype for piece in pieces})
    if len(dtypes) != 1:
        raise ValueError(f"{name!r} has pieces of different types: {', '.join(dtypes)}")
    return Weight(name=name, dtype=dtypes[0], shape=shape, pieces=tuple(pieces))


def _twice(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]], shape: tuple[int, ...]) -> bool:
    """Whether two boxes (offsets, sizes), in order of their offsets, share an element."""
    if all(sizes[1:] == shape[1:] for _, sizes in boxes):  # bands of rows, of which there may be thousands
        return any(at[0] + sizes[0] > following[0] for (at, sizes), (following, _) in pairwise(boxes))
    return any(
        all(x < y + m and y < x + n for x, n, y, m in zip(*one, *other, strict=True))
        for one, other in combinations(boxes, 2)
    )


def rows(weight: Weight, first: int, last: int) -> Weight:
    """Rows [first, last) of a weight that lies in one range: a part of a fused projection."""
    assert len(weight.pieces) == 1 and 0 <= first <= last <= weight.shape[0], (weight.name, first, last)
    tensor = weight.pieces[0].tensor
    shape = (last - first, *tensor.shape[1:])
    start = tensor.start + first * prod(tensor.shape[1:]) * BYTES[tensor.dtype]
    return whole(replace(tensor, shape=shape, start=start))


def stream(weight: Weight, chunk: int = CHUNK) -> "Iterator[torch.Tensor]":
    """The elements in order, flat, at most `chunk` at a time where the pieces are bands of rows."""
    import torch

    if not weight.pieces:  # zeros: a bias that the target has and the original does without
        yield from torch.zeros(weight.elements, dtype=getattr(torch, TORCH[weight.dtype])).split(chunk)
    elif _in_bands(weight):
        for piece in weight.pieces:
            yield from chunks(piece.tensor, chunk)
    else:
        full = torch.empty(weight.shape, dtype=getattr(torch, TORCH[weight.dtype]))
        for piece in weight.pieces:
            box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
            full[box] = torch.cat(list(chunks(piece.tensor, chunk))).view(piece.tensor.shape)
        yield from full.view(-1).split(chunk)


def _in_bands(weight: Weight) -> bool:
    return all(piece.tensor.shape[1:] == weight.shape[1:] for piece in weight.pieces)


def load(weight: Weight) -> "torch.Tensor":
    """The tensor itself."""
    import torch

    full = torch.empty(weight.elements, dtype=getattr(torch, TORCH[weight.dtype]))
    done = 0
    for part in stream(weight):
        full[done : done + part.numel()] = part
        done += part.numel()
    return full.view(weight.shape)


def save(
    weights: Mapping[str, Weight],
    out: Path,
    dtype: str | None,
    *,
    shard: int = SHARD,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write `out`/model*.safetensors, and an index where there are several files; memory is a chunk, or none.

    dtype: safetensors' word for floating-point weights, or None to keep each one's own. report: (elements done, of how
    many).
    """
    import torch

    total, done = sum(weight.elements for weight in weights.values()), 0

    def parts(name: str) -> "Iterator[torch.Tensor | Tensor]":
        nonlocal done
        weight, word = weights[name], _word(weights[name], dtype)
        if word == weight.dtype and weight.pieces and _in_bands(weight):
            yield from (piece.tensor for piece in weight.pieces)  # byte for byte
        else:
            yield from (part.to(getattr(torch, TORCH[word])) for part in stream(weight))
        done += weight.elements
        report(done, total)

    files = _files(weights, dtype, shard)
    for name, held in files.items():
        write_file(out / name, {key: (_word(weights[key], dtype), weights[key].shape) for key in held}, parts)
    if len(files) > 1:
        weight_map = {key: name for name, held in files.items() for key in held}
        size = sum(weight.elements * BYTES[_word(weight, dtype)] for weight in weights.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _word(weight: Weight, dtype: str | None) -> str:
    return dtype if dtype and weight.dtype in FLOATS else weight.dtype


def _files(weights: Mapping[str, Weight], dtype: str | None, shard: int) -> dict[str, list[str]]:
    """File name -> the weights in it, in their order; no file grows past `shard` bytes by a second weight."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, weight in weights.items():
        more = weight.elements * BYTES[_word(weight, dtype)]
        if groups[-1] and size + more > shard:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups)}
