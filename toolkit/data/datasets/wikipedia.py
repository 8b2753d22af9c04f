"""Articles to pre-train on: Wikipedia from the Hub, or parquet or JSON files whose rows have a `text` (and `title`).

Splits `train` and `validation` with the columns `text` and `title`. Plain text files are `text`'s business.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from toolkit.data.divide import add_rows, check_shares, divide
from toolkit.data.sources import find_splits, rows
from toolkit.data.splits import Splits
from toolkit.data.tasks import About
from toolkit.stage import Artifact, Context

ABOUT = About(
    source="Wikimedia, dump of 1 November 2023, English",
    licence="CC BY-SA 4.0, GFDL",
    metric="bits per byte",
    templates="",
    repo="wikimedia/wikipedia",
    files=("20231101.en/*.parquet",),
    config="20231101.en",
    rows={"train": 6407814},
)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """rows: a sample of so many articles, by `seed`; None takes all. headed: begin the text with its title, on a line.

    validation_fraction: share of them that goes to `validation`. files: pattern of the files to read.
    """

    dataset: str
    rows: int | None = None
    headed: bool = False
    validation_fraction: float = 0.0
    files: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_shares(validation_fraction=self.validation_fraction)
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: the download, or a folder or file of yours."""

    files: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: `documents`, articles taken; `source_rows`, all, blank ones too. Reads the files more than once."""
    import numpy as np

    path = inputs.files.path
    members = list(chain.from_iterable(find_splits(path, ABOUT.config, spec.files).values()))
    source, total = sum(1 for _ in rows(members)), sum(1 for _ in _articles(spec, members))
    wanted = total if spec.rows is None else spec.rows
    if wanted > total:
        raise ValueError(f"{path} has {total} articles, fewer than the {wanted} of `rows`")
    taken = set(np.random.default_rng(spec.seed).permutation(total)[:wanted].tolist())
    articles = (article for i, article in enumerate(_articles(spec, members)) if i in taken)
    division = divide(wanted, "train", {"validation": spec.validation_fraction}, spec.seed, str(path))
    add_rows(splits, articles, division, "document", ctx)
    return {"source_rows": source, "documents": wanted}


def _articles(spec: Spec, members: list[Path]) -> Iterator[dict[str, str]]:
    for source in rows(members):
        title = source.text("title") if "title" in source.values else ""
        if text := source.text("text"):
            yield {"text": f"{title}\n\n{text}" if spec.headed and title else text, "title": title}
