"""One pass over several models at once: the same chunk of every model, a function of the chunks, the result to a file.

Models are paired by the names of their tensors, never by position: two models may order theirs differently.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.checkpoints.check import read_config
from toolkit.checkpoints.folders import vocabulary
from toolkit.checkpoints.tensors import CHUNK, FLOATS, TORCH, Tensor, chunks, read_folder, write_folder

if TYPE_CHECKING:
    import torch


def read_models(folders: Mapping[str, Path]) -> dict[str, dict[str, Tensor]]:
    """Role -> tensors by name, of models that fit each other tensor by tensor.

    Where embeddings are tied, a stored copy of them as the output head is left out: it is not a weight of its own.

    Raises:
        ValueError: some tie their embeddings and some do not, one lacks a tensor, another shape, another vocabulary.
    """
    tied = {role: bool(read_config(folder).get_text_config().tie_word_embeddings) for role, folder in folders.items()}
    if len(set(tied.values())) > 1:
        words = ", ".join(f"{role} {'ties' if tie else 'does not tie'} them" for role, tie in tied.items())
        raise ValueError(
            f"input and output embeddings: {words}; a merge of them would have no one meaning. Save the tied ones with"
            " their own lm_head.weight and tie_word_embeddings false, or merge models of one kind"
        )
    models = {}
    for role, folder in folders.items():
        tensors = read_folder(folder)
        if tied[role]:
            tensors.pop("lm_head.weight", None)
        models[role] = tensors
    _check_pairs(models)
    _check_vocabularies(folders)
    return models


def _check_pairs(models: Mapping[str, Mapping[str, Tensor]]) -> None:
    first = next(iter(models))
    for role, tensors in models.items():
        for name in sorted(models[first].keys() | tensors.keys()):
            ours, theirs = models[first].get(name), tensors.get(name)
            if ours is None or theirs is None:
                has, lacks = (first, role) if theirs is None else (role, first)
                raise ValueError(f"tensor {name!r} is in {has} and not in {lacks}: they are not of one architecture")
            if ours.shape != theirs.shape:
                raise ValueError(
                    f"tensor {name!r} has shape {ours.shape} in {first} and {theirs.shape} in {role}: they are not of"
                    " one architecture or vocabulary"
                )


def _check_vocabularies(folders: Mapping[str, Path]) -> None:
    first, *others = folders
    ours = vocabulary(folders[first])
    for role in others:
        theirs = vocabulary(folders[role])
        different = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
        if different:
            raise ValueError(
                f"{first} and {role} have tokenizers that number tokens differently ({len(different)} tokens, such as"
                f" {different[0]!r}: {ours[different[0]]} and {theirs[different[0]]}): their rows cannot be paired"
            )


def stream(
    models: Mapping[str, Mapping[str, Tensor]],
    combine: "Callable[[list[torch.Tensor]], torch.Tensor]",
    out: Path,
    dtype: str | None,
    *,
    chunk: int = CHUNK,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write to `out` the weights `combine([a, b, ...])`, chunk by chunk, laid out in files as the first model is.

    combine: gets fp32 chunks of the models in their order, which it may overwrite, and returns one. dtype: of the
    output in safetensors' words, or None for the first model's, tensor by tensor. report: (elements done, of how many).
    Tensors that are not floating point are the first model's. Memory: a few chunks.
    """
    import torch

    like = next(iter(models.values()))
    total = sum(tensor.elements for tensor in like.values())
    done = 0

    def parts(name: str) -> "Iterator[torch.Tensor]":
        nonlocal done
        tensor = like[name]
        target = getattr(torch, TORCH[dtype or tensor.dtype])
        for pieces in zip(*(chunks(tensors[name], chunk) for tensors in models.values()), strict=True):
            if tensor.dtype in FLOATS:
                yield combine([piece.to(torch.float32) for piece in pieces]).to(target)
            else:
                yield pieces[0]
            done += pieces[0].numel()
            report(done, total)

    write_folder(out, like, dtype, parts)
