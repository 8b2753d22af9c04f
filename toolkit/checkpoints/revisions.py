"""Revisions of a model: the points of its training that were published, read off branch names and lists of URLs.

A revision is known by its stage, ingredient and step; where its files are (a branch of the Hub, a folder of unsharded
originals, or both) is a second matter. Names are matched and never made up: suites round their `-tokensNB` differently.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import total_ordering
from itertools import pairwise

MAIN = "main"
BRANCH = (
    r"(?:stage(?P<stage>\d)-)?(?:ingredient(?P<ingredient>[\d+]+)-)?step[-_]?(?P<step>\d+)"
    r"(?:-tokens(?P<billions>\d+)B|-(?P<bt>\d+)BT)?"
)
# The last folder of a URL; stage and ingredient stand here or in a folder above it.
FOLDER = re.compile(r"(?:(?:stage2-)?ingredient[\d+]+-)?step(?P<step>\d+)(?:-unsharded|(?:\+\d+)*-nooptim-reshard\d+)?")


@total_ordering
@dataclass(frozen=True, kw_only=True)
class Revision:
    """One point of a training run; `step` is None for `main`, which stands at the end.

    tokens: seen so far, None where nobody says. stage: 1 where a run has no stages. ingredient: which of several runs
    of a stage, "1", or "1+2+3" for an average of them. branch: on the Hub. url: the folder of unsharded originals.
    """

    step: int | None = None
    tokens: int | None = None
    stage: int = 1
    ingredient: str = ""
    branch: str = ""
    url: str = ""

    @property
    def point(self) -> tuple[bool, int, tuple[int, ...], int]:
        """What tells revisions apart and orders them."""
        parts = tuple(int(part) for part in self.ingredient.split("+") if part)
        return (self.step is None, self.stage, parts, self.step or 0)

    @property
    def name(self) -> str:
        """The branch, or what a branch would be called."""
        stage = f"stage{self.stage}-" if self.stage > 1 else ""
        ingredient = f"ingredient{self.ingredient}-" if self.ingredient else ""
        return self.branch or f"{stage}{ingredient}step{self.step}"

    def __lt__(self, other: "Revision") -> bool:
        return (self.point, self.branch, self.url) < (other.point, other.branch, other.url)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model whose training can be followed: where its revisions are, and how to read their names.

    repo: on the Hub, in Hugging Face format. pattern: of its branches, with the groups of `BRANCH`. lists: URLs of CSV
    files that list unsharded originals. tokens_per_step: batch x sequence length, in later stages too if `same_batch`;
    where it is not known, tokens are what the branch's name says, in whole billions. expected: the steps of stage 1
    that were announced; None infers them from the usual distance.
    """

    repo: str
    pattern: str = BRANCH
    lists: Sequence[str] = ()
    tokens_per_step: int | None = None
    same_batch: bool = True
    expected: Sequence[int] | None = None


def from_branches(model: Model, names: Iterable[str]) -> tuple[list[Revision], list[str]]:
    """The revisions among the branches of a repository, in order, and the branches that are none."""
    found, others = [], []
    for name in names:
        match = re.fullmatch(model.pattern, name)
        if name == MAIN:
            found.append(Revision(branch=MAIN))
        elif match is None:
            others.append(name)
        else:
            said = match.groupdict()
            stage, step = int(said.get("stage") or 1), int(said["step"])
            billions = said.get("billions") or said.get("bt")
            tokens = _tokens(model, stage, step) or (int(billions) * 10**9 if billions else None)
            ingredient = said.get("ingredient") or ""
            found.append(Revision(step=step, tokens=tokens, stage=stage, ingredient=ingredient, branch=name))
    return sorted(found), sorted(others)


def from_list(model: Model, text: str, source: str) -> list[Revision]:
    """The unsharded originals of a published list: CSV with the columns `Step` and `Checkpoint Directory`.

    A row whose URL is of another step than it says is left to the URL: published lists have such rows.

    Raises:
        ValueError: no such columns, or a URL that names no step; `source` says where the list is from.
    """
    rows = csv.DictReader(io.StringIO(text))
    if "Checkpoint Directory" not in (rows.fieldnames or ()):
        raise ValueError(f"{source} is no list of originals: it needs the columns Step and 'Checkpoint Directory'")
    found = {}
    for number, row in enumerate(rows, 2):
        url = (row["Checkpoint Directory"] or "").strip().rstrip("/")
        match = FOLDER.fullmatch(url.rsplit("/", 1)[-1])
        if not re.match(r"https?://", url) or match is None:
            raise ValueError(f"{source}:{number}: {url!r} is not the URL of a folder step<N>-unsharded")
        stage = re.search(r"stage(\d)", url)
        ingredient = re.search(r"ingredient([\d+]+)", url) or re.fullmatch(r"([\d+]+)", row.get("Ingredient") or "")
        made = Revision(
            step=int(match["step"]),
            tokens=_tokens(model, int(stage[1]) if stage else 1, int(match["step"])),
            stage=int(stage[1]) if stage else 1,
            ingredient=ingredient[1] if ingredient else "",
            url=url + "/",
        )
        found[made.point] = made
    return sorted(found.values())


def _tokens(model: Model, stage: int, step: int) -> int | None:
    """Tokens of a stage after the first count from where its steps do."""
    each = model.tokens_per_step if stage == 1 or model.same_batch else None
    return None if each is None else step * each


def join(branches: Iterable[Revision], originals: Iterable[Revision]) -> list[Revision]:
    """One revision for each point, with its branch, its original, or both."""
    found = {revision.point: revision for revision in branches}
    for original in originals:
        known = found.get(original.point)
        found[original.point] = replace(known, url=original.url) if known else original
    return sorted(found.values())


def missing(model: Model, revisions: Sequence[Revision]) -> list[int]:
    """Steps of stage 1 that were announced and are nowhere, or that the usual distance between steps would lead to."""
    steps = [r.step for r in revisions if r.step is not None and r.stage == 1]
    if model.expected is not None:
        return sorted(set(model.expected) - set(steps))
    gaps = Counter(b - a for a, b in pairwise(sorted(set(steps))))
    if not gaps:
        return []
    usual, times = gaps.most_common(1)[0]
    if times * 2 < gaps.total():  # there is nothing usual about it
        return []
    return sorted(set(range(-(-min(steps) // usual) * usual, max(steps), usual)) - set(steps))
