"""Which rows of a training set have text of an evaluation set in them, by word n-grams (arXiv 2005.14165, appendix C).

Texts are compared as words: lower case, letters and digits only. A row is contaminated if it shares one n-gram with the
set. An n-gram that more than `COMMON` rows of the set have is its form (a template, a heading) and not its content, and
does not count. A row of the set with fewer than n words cannot be told from chance, and is counted as too short.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict

WORD = re.compile(r"[^\W_]+")
COMMON = 10
TEXT = (("text",), ("prompt", "completion"), ("prompt", "chosen", "rejected"))  # the columns that are a row's text


@dataclass(kw_only=True)
class Evaluated:
    """One evaluation set. grams: digest -> rows that have it; hit: the rows of it that were found in training rows."""

    n: int
    rows: int = 0
    too_short: int = 0
    grams: dict[bytes, list[int]] = field(default_factory=dict)
    hit: set[int] = field(default_factory=set)

    def found_in(self, digests: Iterable[bytes]) -> bool:
        """Whether a training row with these n-grams is contaminated; remembers by which rows."""
        shared = [row for digest in digests for row in self.grams.get(digest, ())]
        self.hit.update(shared)
        return bool(shared)


def read(texts: Iterable[str], n: int) -> Evaluated:
    """An evaluation set from the texts of its rows."""
    found, seen = Evaluated(n=n), Counter[bytes]()
    for row, text in enumerate(texts):
        digests = set(ngrams(text, n))
        found.rows += 1
        found.too_short += not digests
        for digest in digests:
            seen[digest] += 1
            if seen[digest] <= COMMON:
                found.grams.setdefault(digest, []).append(row)
    for digest, count in seen.items():
        if count > COMMON:
            del found.grams[digest]
    return found


def ngrams(text: str, n: int) -> Iterator[bytes]:
    """Digests of the n-grams of a text, in its order."""
    words = WORD.findall(text.lower())
    for i in range(len(words) - n + 1):
        yield blake2b(" ".join(words[i : i + n]).encode(), digest_size=8).digest()


def text_columns(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The columns that make the text of a row.

    Raises:
        ValueError: there are none of the known ones.
    """
    there = set(names)
    for columns in TEXT:
        if there >= set(columns):
            return columns
    wanted = " or ".join("+".join(columns) for columns in TEXT)
    raise ValueError(
        f"{where} has no text to compare: it needs the columns {wanted}, and has {', '.join(sorted(there))}"
    )


def texts(data: "DatasetDict", where: str, splits: Iterable[str]) -> Iterator[str]:
    """The texts of the rows of splits."""
    for split in splits:
        columns = text_columns(data[split].column_names, f"split {split!r} of {where}")
        for batch in data[split].select_columns(list(columns)).iter(batch_size=1000):
            yield from ("".join(parts) for parts in zip(*(batch[name] for name in columns), strict=True))
