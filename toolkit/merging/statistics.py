"""What a method must know of whole tensors before it merges them: thresholds and lengths, from passes of their own.

An exact order statistic of 4-byte numbers needs two passes and no sorting: |x| as bits is a whole number that orders as
|x| does. The first pass counts its upper half (32,768 counts), which says in which of them the wanted number lies; the
second counts the lower half of those alone. Memory: a few hundred kilobytes a tensor, and few tensors at a time.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from toolkit.merging.models import Source
from toolkit.merging.stream import Place, Room, walk

if TYPE_CHECKING:
    import torch

TOGETHER = 16  # tensors whose counts are held at a time
BLOCK = 4096  # elements that one sum in float64 is of; pieces are multiples of it, so that they change no digit
Wanted = Callable[[int], Sequence[int]]
Models = Mapping[str, Mapping[str, Source]]


def floats(models: Models) -> list[str]:
    """The tensors that are merged: those of floating point."""
    from toolkit.checkpoints.tensors import FLOATS

    return [name for name, tensor in next(iter(models.values())).items() if tensor.dtype in FLOATS]


def magnitudes(models: Models, wanted: Wanted, threads: int) -> dict[str, list[list[float]]]:
    """Tensor -> for each model but the first -> |model - first| (fp32) of the ranks wanted(elements), 0 the least."""
    found: dict[str, list[list[float]]] = {}
    first = next(iter(models.values()))
    names = floats(models)
    for group in (names[at : at + TOGETHER] for at in range(0, len(names), TOGETHER)):
        ranks = {name: list(wanted(first[name].elements)) for name in group}
        upper = _count(models, group, threads, 1 << 15, lambda name, model, bits: [bits >> 16])
        bins = {name: [[_bin(counts, rank) for rank in ranks[name]] for counts in upper[name]] for name in group}

        def lower(name: str, model: int, bits: "torch.Tensor") -> "list[torch.Tensor]":
            half = bits >> 16
            return [bits[half == inside] & 0xFFFF for inside, _ in bins[name][model]]

        counts = _count(models, group, threads, 1 << 16, lower)
        for name in group:
            found[name] = [
                [
                    _value(inside, _bin(counted, rest)[0])
                    for (inside, rest), counted in zip(bins[name][model], _tables(counts[name][model]), strict=True)
                ]
                for model in range(len(models) - 1)
            ]
    return found


def _count(models: Models, names: Sequence[str], threads: int, size: int, halves: Any) -> dict[str, list[Any]]:
    """Counts of what `halves(name, model, bits of |delta|)` gives, one row each, by tensor and model."""
    import torch

    found: dict[str, list[Any]] = {name: [0] * (len(models) - 1) for name in names}
    lock = Lock()

    def work(place: Place, chunks: "list[torch.Tensor]", room: Room) -> None:
        base, *others = chunks
        for number, other in enumerate(others):
            bits = other.sub_(base).abs_().view(torch.int32)
            counts = torch.stack([torch.bincount(half, minlength=size) for half in halves(place.name, number, bits)])
            with lock:
                found[place.name][number] = found[place.name][number] + counts

    walk(models, names, work, threads=threads)
    return found


def _tables(counts: "torch.Tensor") -> "Iterator[torch.Tensor]":
    return (counts[row : row + 1] for row in range(counts.shape[0]))


def _bin(counts: "torch.Tensor", rank: int) -> tuple[int, int]:
    """In which bin the number of that rank lies, and its rank among those of the bin."""
    import torch

    ends = counts[0].cumsum(0)
    inside = int(torch.searchsorted(ends, rank, right=True))
    return inside, rank - (int(ends[inside - 1]) if inside else 0)


def _value(upper: int, lower: int) -> float:
    import torch

    return float(torch.tensor((upper << 16) | lower, dtype=torch.int32).view(torch.float32))


def products(
    models: Models, terms: "Callable[[list[torch.Tensor]], list[torch.Tensor]]", threads: int
) -> dict[str, list[float]]:
    """Tensor -> the sums of terms(chunks in float64): of blocks in float64, of blocks together exact."""
    found: dict[str, list[list[list[float]]]] = {name: [] for name in floats(models)}

    def work(place: Place, chunks: "list[torch.Tensor]", room: Room) -> None:
        found[place.name].append([_blocks(term) for term in terms([chunk.double() for chunk in chunks])])

    walk(models, list(found), work, threads=threads)
    return {
        name: [math.fsum(value for piece in pieces for value in piece[term]) for term in range(len(pieces[0]))]
        for name, pieces in found.items()
    }


def _blocks(x: "torch.Tensor") -> list[float]:
    whole = x.numel() // BLOCK * BLOCK
    sums: list[float] = x[:whole].view(-1, BLOCK).sum(dim=1).tolist() if whole else []
    return [*sums, float(x[whole:].sum())]
