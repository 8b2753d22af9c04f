"""One pass over several models at once: the same piece of every model, a function of the pieces, the result to a file.

Threads take pieces from one queue; each has buffers of its own, which is all the memory that a pass needs. A piece is
read with one preadv a model, made fp32 (unless a method takes bf16 as it is, which is twice as fast), worked on and
written to its place with one pwrite, so the order does not matter. torch's operations, the reads and the writes let go
of Python's lock, and run at once.
"""

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.tensors import BYTES, FLOATS, TORCH, Tensor, read_into
from toolkit.merging.models import Source, source
from toolkit.merging.output import Output
from toolkit.merging.rounding import Rounding, random_words, stochastic

if TYPE_CHECKING:
    import torch

PIECE = 1 << 18  # elements that a thread works on at a time: few enough for a cache, enough that Python costs little
LARGE = {"F16": 2.0**31, "BF16": 1e38, "F32": 1e38}  # a sum of squares below this leaves no value out of range
Report = Callable[[int, int], None]
Models = Mapping[str, Mapping[str, Source | Tensor]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Elements [first, first + count) of a tensor; `last` where they end it."""

    name: str
    first: int
    count: int
    last: bool = False


class Room:
    """The buffers of one thread, as views of so many elements: a fp32 chunk for each model.

    halves: the beginning of the same memory, as the bits of bf16. raw: what was read, or is to be written, by
    safetensors' word for its type, and the same memory as bytes.
    """

    def __init__(self, buffers: "Sequence[torch.Tensor]", raw: "torch.Tensor", count: int) -> None:
        import torch

        self.chunks = [buffer[:count] for buffer in buffers]
        self.halves = [buffer.view(torch.uint16)[:count].numpy() for buffer in buffers]
        self.inside = [chunk.numpy().data.cast("B") for chunk in self.chunks]
        self.raw = {word: raw[: count * BYTES[word]].view(getattr(torch, TORCH[word])) for word in FLOATS}
        self.bytes = {word: raw[: count * BYTES[word]].numpy().data for word in FLOATS}


Chunk = Any  # a flat tensor of fp32, or a numpy array of the bits of bf16 where a pass takes these
Work = Callable[[Place, list[Chunk], Room], None]
Combine = Callable[[Place, list[Chunk]], Chunk]


def walk(
    models: Models,
    names: Iterable[str],
    work: Work,
    *,
    halves: Container[str] = (),
    threads: int = 1,
    piece: int = PIECE,
    report: Report = lambda done, total: None,
) -> None:
    """Call `work(place, chunks, room)` for every piece of the tensors `names`, from several threads.

    chunks: flat fp32, one for each model in their order; they may be overwritten. halves: tensors that are bf16 in
    every model, and whose chunks are the bits of it, as numpy has no such type. report: (elements done, of how many).

    Raises:
        ValueError: a file ends inside a tensor; and whatever `work` raises.
    """
    sources = {name: [source(tensors[name]) for tensors in models.values()] for name in names}
    sizes = {name: found[0].elements for name, found in sources.items()}
    waiting, total, done, lock = pieces(sizes, piece), sum(sizes.values()), 0, Lock()
    failed = Event()

    def run(files: Mapping[Path, int]) -> None:
        nonlocal done
        rooms = _rooms(len(models), piece)
        while not failed.is_set():
            with lock:
                place = next(waiting, None)
            if place is None:
                return
            try:
                room = rooms(place.count)
                half = place.name in halves
                for number, tensor in enumerate(sources[place.name]):
                    read(tensor, place, number, room, files, half)
                work(place, list(room.halves if half else room.chunks), room)
            except BaseException:
                failed.set()  # so that the others stop, too
                raise
            with lock:
                done += place.count
                report(done, total)

    with _files(sources.values()) as files, _one_thread_each(), ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run, files) for _ in range(threads)]:
            future.result()


def pieces(sizes: Mapping[str, int], piece: int) -> Iterator[Place]:
    """All tensors in pieces of at most so many elements."""
    for name, elements in sizes.items():
        for first in range(0, elements, piece):
            count = min(piece, elements - first)
            yield Place(name=name, first=first, count=count, last=first + count == elements)


def _rooms(models: int, piece: int) -> "Callable[[int], Room]":
    """A thread's buffers, viewed as pieces of any size: making views anew for every piece costs as much as a sum."""
    import torch

    buffers, raw = [torch.empty(piece) for _ in range(models)], torch.empty(piece * 8, dtype=torch.uint8)
    return cache(lambda count: Room(buffers, raw, count))


def read(
    tensor: Source, place: Place, number: int, room: Room, files: Mapping[Path, int], half: bool = False
) -> None:  # fmt: skip
    """A piece of a tensor as fp32, into the chunk of that number; `half`: of bf16 as it is."""
    chunk = room.chunks[number]
    for at, count, part, offset in tensor.parts(place.first, place.count):
        width = BYTES[part.dtype]
        start = part.start + offset * width
        if part.dtype == "F32" or half:
            read_into(files[part.file], room.inside[number][at * width : (at + count) * width], start, part)
        elif count == place.count:
            read_into(files[part.file], room.bytes[part.dtype], start, part)
            chunk.copy_(room.raw[part.dtype])
        else:
            read_into(files[part.file], room.bytes[part.dtype][: count * width], start, part)
            chunk[at : at + count].copy_(room.raw[part.dtype][:count])


@contextmanager
def _files(sources: Iterable[Sequence[Source]]) -> Iterator[dict[Path, int]]:
    """Every file of these tensors, open."""
    with ExitStack() as stack:
        files: dict[Path, int] = {}
        for path in {run.tensor.file for found in sources for tensor in found for run in tensor.runs}:
            files[path] = os.open(path, os.O_RDONLY)
            stack.callback(os.close, files[path])
        yield files


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Our threads are the parallel ones; torch's own would only get in their way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stream(
    models: Models,
    combine: "Callable[[list[torch.Tensor]], torch.Tensor]",
    out: Path,
    dtype: str | None,
    *,
    threads: int = 1,
    piece: int = PIECE,
    report: Report = lambda done, total: None,
) -> None:
    """Write to `out` the weights `combine([a, b, ...])`, piece by piece, laid out in files as the first model is.

    combine: gets flat fp32 chunks of the models in their order, which it may overwrite, and returns one. dtype: of the
    output in safetensors' words, or None for the first model's, tensor by tensor. report: (elements done, of how many).
    Tensors that are not floating point are the first model's. Memory: a few pieces for each thread.

    Raises:
        ValueError: a result that is not finite, or does not fit into the type of the output.
    """
    write(models, lambda place, chunks: combine(chunks), out, dtype, threads=threads, piece=piece, report=report)


def write(
    models: Models,
    combine: Combine,
    out: Path,
    dtype: str | None,
    *,
    halves: bool = False,
    rounding: Rounding = "nearest",
    seed: int = 0,
    threads: int = 1,
    piece: int = PIECE,
    report: Report = lambda done, total: None,
) -> None:
    """`stream` for a method that looks at where it is: `combine(place, chunks)`.

    halves: where all models and the output have bf16, rounded to nearest, it gets the bits of it and returns them.
    rounding, seed: to the type of the output.
    """
    like = {name: source(tensor) for name, tensor in next(iter(models.values())).items()}
    files: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in like.items():
        word = dtype if dtype and tensor.dtype in FLOATS else tensor.dtype
        files.setdefault(tensor.file, {})[name] = (word, tensor.shape)
    with Output(out, files) as output:
        for name, tensor in like.items():
            if tensor.dtype not in FLOATS:
                _copy(tensor, name, output)

        def work(place: Place, chunks: list[Chunk], room: Room) -> None:
            result = combine(place, chunks)
            output.put(place.name, place.first, _packed(result, place, output.dtype(place.name), rounding, seed, room))

        floats = [name for name, tensor in like.items() if tensor.dtype in FLOATS]
        written = {name for name in floats if output.dtype(name) == "BF16"} if rounding == "nearest" else set()
        kept = all_halves(models, written) if halves else set()
        walk(models, floats, work, halves=kept, threads=threads, piece=piece, report=report)


def all_halves(models: Models, names: Iterable[str]) -> set[str]:
    """Those of the names whose tensors are bf16 in every model."""
    return {
        name
        for name in names
        if all(run.tensor.dtype == "BF16" for tensors in models.values() for run in source(tensors[name]).runs)
    }


def _copy(tensor: Source, name: str, output: Output) -> None:
    for at, count, part, offset in tensor.parts(0, tensor.elements):
        width = BYTES[part.dtype]
        data = bytearray(count * width)
        with open(part.file, "rb", buffering=0) as file:
            read_into(file.fileno(), memoryview(data), part.start + offset * width, part)
        output.put(name, at, memoryview(data))


def _packed(result: Chunk, place: Place, word: str, rounding: Rounding, seed: int, room: Room) -> memoryview:
    """The bytes of a result in its type on disk.

    Hazard: looking at every value for one that is not finite takes longer than the merge; a sum of squares does not,
    and is small only where there is none.
    """
    import torch

    if not isinstance(result, torch.Tensor):
        from toolkit.merging.compiled import NOT_FINITE, largest

        if largest(result) >= NOT_FINITE:
            raise _not_finite(torch.from_numpy(result).view(torch.bfloat16), place, word)
        return memoryview(result.data.cast("B"))
    if rounding == "stochastic" and word in ("F16", "BF16"):
        bits = random_words(seed, place.name, place.first, place.count, "uint16")
        room.raw[word].copy_(stochastic(result, getattr(torch, TORCH[word]), bits))
    elif word != "F32":
        room.raw[word].copy_(result)
    packed = result.contiguous() if word == "F32" else room.raw[word]
    if not float(torch.dot(result, result)) < LARGE.get(word, 1e38) and not bool(torch.isfinite(packed).all()):
        raise _not_finite(packed, place, word)
    return packed.numpy().data.cast("B") if word == "F32" else room.bytes[word]


def _not_finite(packed: "torch.Tensor", place: Place, word: str) -> ValueError:
    at = place.first + int(packed.isfinite().logical_not().nonzero()[0])
    return ValueError(
        f"element {at:,} of the merged tensor {place.name!r} is not finite as {TORCH[word]}: a model has such a"
        " value there, or the result is out of range (a smaller scale or another dtype would keep it)"
    )
