"""Near duplicates among texts: each as a vector of length one, and for each the others that are close to it.

The distance is the squared Euclidean one, 2 - 2 cos: what an index of FAISS (IndexFlatL2) gives for such vectors, and
what the distance 0.05 of Magpie (arXiv 2406.08464) is meant in.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import torch

BLOCK = 1024  # rows compared with all others at once
GRAM, SIZE = 3, 4096  # characters of a piece, and numbers of a vector, without an encoder


def gram_vectors(texts: Sequence[str]) -> torch.Tensor:
    """Counts of pieces of three characters, hashed into 4,096 numbers and scaled to length one: float32 [texts, 4096].

    Near in spelling, that is, and not in meaning.
    """
    vectors = torch.zeros(len(texts), SIZE)
    for i, text in enumerate(texts):
        padded = f"  {' '.join(text.lower().split())} "
        for at in range(len(padded) - GRAM + 1):
            vectors[i, crc32(padded[at : at + GRAM].encode()) % SIZE] += 1
    return torch.nn.functional.normalize(vectors, dim=-1)


def check_pooling(folder: Path) -> None:
    """A sentence encoder's folder may say how token vectors become one; here it is their mean.

    Raises:
        ValueError: it says something else.
    """
    path = folder / "1_Pooling" / "config.json"
    words = json.loads(path.read_text()) if path.is_file() else {"pooling_mode_mean_tokens": True}
    if not words.get("pooling_mode_mean_tokens"):
        raise ValueError(f"{path} asks for another pooling than the mean of the tokens; give an encoder that has it")


def mean_vectors(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Means over the tokens that `mask` [rows, tokens] has, scaled to length one. hidden: [rows, tokens, size]."""
    weights = mask[..., None].to(hidden.dtype)
    return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)


def neighbours(
    vectors: torch.Tensor, distance: float
) -> tuple[list[float | None], list[int], list[int | None]]:  # fmt: skip
    """For each row: the distance of the nearest other, how many others are nearer than `distance`, and the first row of
    them and itself (None where there is no such other). Every pair is compared; Magpie's code looks at the nearest 500.
    """
    least: list[float | None] = []
    count: list[int] = []
    first: list[int | None] = []
    everyone = torch.arange(len(vectors), device=vectors.device)
    for start in range(0, len(vectors), BLOCK):
        own = everyone[start : start + BLOCK]
        apart = 2 - 2 * vectors[own] @ vectors.T
        apart[own - start, own] = torch.inf
        near = apart < distance
        least += [value if value < torch.inf else None for value in apart.min(-1).values.clamp(min=0).tolist()]
        count += near.sum(-1).tolist()
        earliest = torch.minimum(near.int().argmax(-1), own)
        first += [e if n else None for e, n in zip(earliest.tolist(), near.any(-1).tolist(), strict=True)]
    return least, count, first
