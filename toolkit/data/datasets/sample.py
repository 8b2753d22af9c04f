"""A seeded part of a data set that is prepared already: a fraction of a corpus (0.1 % in Inheritune, arXiv
2404.08634), or so many rows. Columns and the order of the rows stay; the other splits come along whole, or not at
all.
"""

from dataclasses import dataclass
from typing import Any

from toolkit.data.splits import Splits, open_data, open_split
from toolkit.stage import Artifact, Context

BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """split: that is sampled, under its name. fraction: of its rows, rounded; rows: instead, so many.

    others: take the other splits along.
    """

    dataset: str
    split: str = "train"
    fraction: float | None = None
    rows: int | None = None
    others: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.rows is None):
            raise ValueError(f"give either fraction or rows (fraction is {self.fraction!r}, rows is {self.rows!r})")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction!r}; it lies above 0 and is at most 1")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """data: a data set artifact."""

    data: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: `source_rows`, of the split before.

    Raises:
        ValueError: no such split, fewer rows than are asked for, or a fraction that leaves none.
    """
    import numpy as np

    whole = open_split(inputs.data.path, spec.split)
    wanted = spec.rows if spec.rows is not None else round(len(whole) * (spec.fraction or 0))
    if not 0 < wanted <= len(whole):
        raise ValueError(f"split {spec.split!r} of {inputs.data.path} has {len(whole)} rows; {wanted} cannot be taken")
    chosen = np.sort(np.random.default_rng(spec.seed).permutation(len(whole))[:wanted])
    taken = {spec.split: whole.select(chosen, keep_in_memory=True)}
    if spec.others:
        taken |= {name: rows for name, rows in open_data(inputs.data.path).items() if name != spec.split}
    for name, rows in taken.items():
        for i, table in enumerate(rows.with_format("arrow").iter(batch_size=BATCH)):
            splits.add(name, table)
            ctx.progress(min((i + 1) * BATCH, len(rows)), len(rows), unit="row")
    return {"source_rows": len(whole)}
