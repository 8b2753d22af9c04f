"""Divide rows among splits at random, by exact shares, without holding them.

The rows are read twice: once to count them, once to add each to the split that was drawn for its number.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolkit.data.splits import Splits
from toolkit.stage import Context

if TYPE_CHECKING:
    import numpy as np

BATCH_ROWS = 1000
BATCH_CHARACTERS = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Division:
    """Row i goes to the split `names[which[i]]`."""

    names: tuple[str, ...]
    which: "np.ndarray"


def check_shares(**shares: float) -> None:
    """Shares of splits as a spec gives them; something must be left.

    Raises:
        ValueError: one is negative or they are 1 or more together.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name} is {share}; it must be at least 0 and below 1")
    if sum(shares.values()) >= 1:
        raise ValueError(f"{' and '.join(shares)} leave no rows for the other split; lower one of them")


def divide(count: int, rest: str, shares: Mapping[str, float], seed: int, what: str) -> Division:
    """Draw `round(count * share)` rows, at least one, for every split with a share above 0; `rest` gets the others.

    Raises:
        ValueError: there are too few rows; `what` says where they come from.
    """
    import numpy as np

    sizes = {name: max(round(count * share), 1) for name, share in shares.items() if share}
    which = np.zeros(count, dtype=np.uint8)
    if sum(sizes.values()) >= max(count, 1):
        wanted = ", ".join([rest, *sizes])
        raise ValueError(f"{what} gives {count} rows, too few for the splits {wanted}; set the other shares to 0")
    if sizes:
        order = np.random.default_rng(seed).permutation(count)
        start = 0
        for number, size in enumerate(sizes.values(), 1):
            which[order[start : start + size]] = number
            start += size
    return Division(names=(rest, *sizes), which=which)


def add_rows(splits: Splits, rows: Iterable[Mapping[str, Any]], division: Division, unit: str, ctx: Context) -> None:
    """Add every row to its split; all rows have the same columns. Order is kept within a split."""
    start, total = 0, len(division.which)
    for batch in _batches(rows):
        chosen = division.which[start : start + len(batch)].tolist()
        for number, name in enumerate(division.names):
            members = [row for row, k in zip(batch, chosen, strict=True) if k == number]
            if members:
                splits.add(name, {column: [row[column] for row in members] for column in members[0]})
        start += len(batch)
        ctx.progress(start, total, unit=unit)
    assert start == total, "the files changed between counting and reading"


def _batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(value) for value in row.values() if isinstance(value, str))
        if len(batch) >= BATCH_ROWS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
