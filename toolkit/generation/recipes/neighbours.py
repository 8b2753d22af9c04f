"""How near the instructions of a data set are to each other: the same rows with the columns `min_neighbor_distance`,
`repeat_count` and `min_similar_id` (the first row among a row and its near duplicates; empty where it has none).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import torch

    from toolkit.generation.rows import Row
    from toolkit.generation.spread import Work


@dataclass(frozen=True, kw_only=True)
class Spec:
    """vectors: `encoder` takes the input `model`, a sentence encoder; `ngrams` does without one, and compares spelling
    instead of meaning. distance: below it two rows are near duplicates. max_length: tokens of a text that are encoded.
    """

    recipe: str
    split: str = "train"
    vectors: Literal["encoder", "ngrams"] = "encoder"
    distance: float = 0.05
    max_length: int = 384

    def __post_init__(self) -> None:
        if not 0 < self.distance < 4:
            raise ValueError(f"distance is {self.distance}; squared distances of unit vectors lie between 0 and 4")
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: rows with `prompt`. model: an encoder's folder, such as sentence-transformers/all-mpnet-base-v2."""

    data: Artifact
    model: Artifact | None = None


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Of one row."""

    id: int
    tokens: int
    values: tuple[float, ...]


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data`; metrics: rows, and repeated: those that are not the first of their near duplicates."""
    import torch

    from toolkit.data.splits import open_split
    from toolkit.generation import near
    from toolkit.generation.columns import add_columns

    rows = open_split(inputs.data.path, spec.split, ["prompt"])
    texts = rows["prompt"][:]
    if spec.vectors == "encoder":
        if inputs.model is None:
            raise ValueError(
                "vectors is encoder and the input 'model' is not there: give a sentence encoder's folder, for example a"
                " download of sentence-transformers/all-mpnet-base-v2, or say vectors: ngrams to compare spelling"
            )
        vectors = _encoded(spec, inputs.model.path, texts, ctx)
    else:
        if inputs.model is not None:
            raise ValueError("vectors is ngrams, which needs no 'model': leave the input out, or say vectors: encoder")
        vectors = near.gram_vectors(texts)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    least, count, first = near.neighbours(vectors.to(device), spec.distance)
    found = {
        "min_neighbor_distance": (least, "float"), "repeat_count": (count, "int"), "min_similar_id": (first, "int"),
    }  # fmt: skip
    add_columns(out, spec.split, rows, found)  # type: ignore[arg-type]
    return {"rows": len(rows), "repeated": sum(f is not None and f != i for i, f in enumerate(first))}


def _encoded(spec: Spec, folder: Path, texts: list[str], ctx: Context) -> "torch.Tensor":
    import torch

    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.generation import near
    from toolkit.generation.rows import Row
    from toolkit.generation.spread import Part, spread

    near.check_pooling(folder)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer(texts, truncation=True, max_length=spec.max_length)["input_ids"]
    rows = [Row(id=i, tokens=tuple(tokens)) for i, tokens in enumerate(ids)]
    part = Part(
        name="vectors", rows=rows, kind=Vector, build=lambda rank: _encoder(folder, rank, ctx),
        budget=ctx.resources.batch_tokens >> ctx.resources.halvings, new_tokens=1,
    )  # fmt: skip
    return torch.tensor([vector.values for vector in spread(part, ctx)])


def _encoder(folder: Path, rank: int, ctx: Context) -> "Work[Vector]":
    import torch

    from toolkit.generation import near
    from toolkit.generation.engine import pad
    from toolkit.generation.models import device_of, load

    model, tokenizer = load(folder, "fp32", ctx.resources.threads, rank, "AutoModel")
    encoder: Any = model

    @torch.inference_mode()
    def work(batch: "list[Row]") -> list[Vector]:
        # On the right: encoders count positions from the left edge, and a mask does not move them.
        ids, mask = (
            tensor.flip(-1) for tensor in pad([_reversed(row) for row in batch], tokenizer.pad_token_id or 0)
        )  # fmt: skip
        mask = mask.to(device_of(model))
        hidden = encoder(input_ids=ids.to(mask.device), attention_mask=mask).last_hidden_state
        vectors = near.mean_vectors(hidden, mask).cpu().tolist()
        return [Vector(id=r.id, tokens=len(r.tokens), values=tuple(v)) for r, v in zip(batch, vectors, strict=True)]

    return work


def _reversed(row: "Row") -> "Row":
    from toolkit.generation.rows import Row

    return Row(id=row.id, tokens=row.tokens[::-1])
