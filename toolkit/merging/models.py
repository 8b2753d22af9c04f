"""Models that are to be merged, tensor by tensor: paired by name, never by position.

A `Source` is a tensor of the pass, put together from ranges of tensors on disk. Where models store the same thing in
different ways (tied embeddings or not, rows of the vocabulary in another order, more or fewer of them), the ranges say
so, and the pass knows nothing of it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from toolkit.checkpoints.check import expected, read_config
from toolkit.checkpoints.tensors import Tensor, read_folder
from toolkit.merging.vocabulary import Alignment, align


@dataclass(frozen=True, kw_only=True)
class Run:
    """Elements [first, first + count) of a source are those of `tensor` from `offset` on."""

    first: int
    count: int
    tensor: Tensor
    offset: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """A tensor of a model as the pass sees it. dtype and file: those that the output goes by."""

    shape: tuple[int, ...]
    dtype: str
    file: str
    runs: tuple[Run, ...]

    @cached_property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return prod(self.shape)

    @cached_property
    def _starts(self) -> list[int]:
        return [run.first for run in self.runs]

    def parts(self, first: int, count: int) -> Iterator[tuple[int, int, Tensor, int]]:
        """The elements [first, first + count) as (number within them, how many, tensor on disk, offset in it)."""
        at, number = 0, bisect_right(self._starts, first) - 1
        while at < count:
            run = self.runs[number]
            inside = first + at - run.first
            taken = min(run.count - inside, count - at)
            yield at, taken, run.tensor, run.offset + inside
            at, number = at + taken, number + 1


def source(tensor: Source | Tensor) -> Source:
    """A tensor as it lies on disk."""
    if isinstance(tensor, Source):
        return tensor
    run = Run(first=0, count=tensor.elements, tensor=tensor, offset=0)
    return Source(shape=tensor.shape, dtype=tensor.dtype, file=tensor.file.name, runs=(run,))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """`tensors`: role -> name -> source, equal names and shapes in every role. `tied`: whether the output ties its
    embeddings. `vocabulary`: rows of the embeddings. `notes`: what was not alike and what was done about it."""

    tensors: dict[str, dict[str, Source]]
    tied: bool
    vocabulary: int
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A model's tensors by the names that transformers gives them; which of those are the embeddings."""

    folder: Path
    tensors: dict[str, Tensor]
    embedding: str
    head: str | None
    tied: bool
    rows: int


def read_models(folders: Mapping[str, Path], *, like: str = "", base: str = "") -> dict[str, dict[str, Source]]:
    """Role -> tensors by name, of models that fit each other tensor by tensor; see `pair`."""
    return pair(folders, like=like, base=base).tensors


def pair(folders: Mapping[str, Path], *, like: str = "", base: str = "") -> Paired:
    """Models that fit each other tensor by tensor, or are made to fit where that has one meaning.

    like: the role whose vocabulary the output has; the first by default. base: the role that the others come from,
    whose own tokens may be left out.

    - Embeddings tied in some and not in others: the output has a head of its own, and the tied ones lend theirs.
      Where all tie, a stored copy of the embeddings as the head is left out: it is not a weight of its own.
    - Vocabularies: rows are paired by their tokens (`toolkit.merging.vocabulary`).

    Raises:
        ValueError: a tensor that one lacks or that has another shape; tokens that would be lost.
    """
    like = like or next(iter(folders))
    models = {role: _read(folder) for role, folder in folders.items()}
    tied = all(model.tied for model in models.values())
    notes: dict[str, Any] = {}
    if not tied and any(model.tied for model in models.values()):
        lending = ", ".join(role for role, model in models.items() if model.tied)
        notes["untied"] = f"the output has a head of its own; {lending} tie it to the embeddings, which stand in for it"
    found = {role: _own(model, tied) for role, model in models.items()}
    alignments, remarks = align(folders, {role: model.rows for role, model in models.items()}, like, base)
    if remarks:
        notes["vocabulary"] = remarks
    for role, alignment in alignments.items():
        for name in (models[role].embedding, models[role].head):
            if name in found[role] and name in found[like]:
                found[role][name] = _aligned(name, found[role][name], source(found[like][name]), alignment, role, like)
    tensors = {role: {name: source(tensor) for name, tensor in ours.items()} for role, ours in found.items()}
    check_pairs(tensors)
    order = {role: {name: ours[name] for name in next(iter(tensors.values()))} for role, ours in tensors.items()}
    return Paired(tensors=order, tied=tied, vocabulary=models[like].rows, notes=notes)


def _read(folder: Path) -> _Model:
    """Buffers that older versions stored (rotary frequencies, say) are no weights, and left out."""
    import re

    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(folder)
    shapes, _, ignored, renamed = expected(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    tensors = {}
    for name, tensor in read_folder(folder).items():
        known = name if name in shapes else renamed(name)
        if known in shapes or not any(re.search(pattern, name) for pattern in ignored):
            tensors[known] = tensor
    tied = bool(config.get_text_config().tie_word_embeddings)
    return _Model(
        folder=folder, tensors=tensors, embedding=first[id(embedding)],
        head=None if head is None else names[id(head.weight)], tied=tied, rows=int(embedding.shape[0]),
    )  # fmt: skip


def _own(model: _Model, tied: bool) -> dict[str, Tensor | Source]:
    """The weights that the model has in this merge: a head that is tied is none, or the embeddings under its name."""
    tensors: dict[str, Tensor | Source] = dict(model.tensors)
    if model.tied and model.head and model.head != model.embedding:
        tensors.pop(model.head, None)
        if not tied:
            tensors[model.head] = model.tensors[model.embedding]
    return tensors


def _aligned(
    name: str, tensor: Tensor | Source, reference: Source, alignment: Alignment, role: str, like: str
) -> Source:
    """The rows of `tensor` in the order of the output's vocabulary; those that it lacks are the reference's."""
    own = source(tensor)
    if own.shape[1:] != reference.shape[1:]:
        raise ValueError(_shapes(name, like, reference.shape, role, own.shape))
    width, runs = prod(own.shape[1:]), []
    for first, count, start in alignment:
        given, at = (own, start) if start is not None else (reference, first)
        for inside, taken, part, offset in given.parts(at * width, count * width):
            runs.append(Run(first=first * width + inside, count=taken, tensor=part, offset=offset))
    return Source(shape=reference.shape, dtype=own.dtype, file=own.file, runs=tuple(runs))


def check_pairs(models: Mapping[str, Mapping[str, Source]]) -> None:
    """Raises:
    ValueError: a tensor that one lacks or that has another shape.
    """
    first = next(iter(models))
    for role, tensors in models.items():
        for name in sorted(models[first].keys() | tensors.keys()):
            ours, theirs = models[first].get(name), tensors.get(name)
            if ours is None or theirs is None:
                has, lacks = (first, role) if theirs is None else (role, first)
                raise ValueError(f"tensor {name!r} is in {has} and not in {lacks}: they are not of one architecture")
            if ours.shape != theirs.shape:
                raise ValueError(_shapes(name, first, ours.shape, role, theirs.shape))


def _shapes(name: str, first: str, ours: tuple[int, ...], role: str, theirs: tuple[int, ...]) -> str:
    return (
        f"tensor {name!r} has shape {ours} in {first} and {theirs} in {role}: they are not of one architecture (only"
        " rows of the vocabulary can be made to fit)"
    )
