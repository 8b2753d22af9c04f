"""Which revisions of a model a study wants: `{steps: [...]}`, `{log_spaced: 12, main: true}`, `all`, `main`."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.checkpoints.revisions import MAIN, Revision
from toolkit.spec import build


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is asked for; several words add up.

    steps: exactly these. tokens: the revisions nearest to these counts. every: steps that are multiples of it.
    log_spaced: so many from the first step after 0 to the last, spaced evenly in the logarithm. main: the end of the
    training. all: every revision. stage, ingredient: the run that steps and tokens count in; with `all`, nothing else.
    without: steps or branches to leave out. pattern: a regular expression with the group `step` (and `stage`,
    `ingredient`) that branches match, instead of the family's. originals: for what has no branch on the Hub, unsharded
    originals, from the published lists (true) or a list of one's own.
    """

    steps: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    every: int | None = None
    log_spaced: int | None = None
    main: bool = False
    all: bool = False
    stage: int | None = None
    ingredient: int | str | None = None
    without: tuple[int | str, ...] = ()
    pattern: str | None = None
    originals: bool | str = False

    def __post_init__(self) -> None:
        if self.pattern is not None:
            check_pattern(self.pattern)
        for name, least in (("every", 1), ("log_spaced", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not (self.steps or self.tokens or self.every or self.log_spaced or self.main or self.all):
            raise ValueError("a selection names steps, tokens, every, log_spaced, main or all")


def check_pattern(pattern: str) -> None:
    """Raises ValueError for what is no regular expression with the group `step`."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    if "step" not in groups:
        raise ValueError(f"pattern {pattern!r} has no group (?P<step>...), which is where the step stands")


def read(words: Any) -> Selection:
    """A selection from the words of a study; `all` and `main` stand for themselves.

    Raises:
        ValueError: an unknown word, or a value of the wrong type.
    """
    if words in ("all", MAIN):
        words = {words: True}
    if not isinstance(words, dict):
        raise ValueError(f"a selection is `all`, `main` or words such as {{steps: [0, 1000]}}, not {words!r}")
    return build(Selection, words, "word of a selection")


def choose(selection: Selection, revisions: Sequence[Revision]) -> list[Revision]:
    """The selected revisions, in the order of training, each once.

    Raises:
        ValueError: a step that is not there (the nearest are named), a run that is not told apart, nothing left.
    """
    chosen: set[Revision] = set()
    if selection.all:
        chosen.update(r for r in revisions if _of(selection, r) and selection.stage in (None, r.stage))
    if selection.main:
        end = [r for r in revisions if r.step is None]
        if not end:
            raise ValueError("main: there is no branch main")
        chosen.update(end)
    if selection.steps or selection.tokens or selection.every or selection.log_spaced:
        run = _run(selection, revisions)
        chosen.update(_at(step, run) for step in selection.steps)
        chosen.update(_nearest(tokens, run) for tokens in selection.tokens)
        chosen.update(r for r in run if selection.every and (r.step or 0) % selection.every == 0)
        chosen.update(_log_spaced(selection.log_spaced, run) if selection.log_spaced else ())
    for word in selection.without:
        gone = {r for r in chosen if word in (r.step, r.name)}
        if not gone:
            raise ValueError(f"without: {word!r} is none of the {len(chosen)} selected revisions")
        chosen -= gone
    if not chosen:
        raise ValueError(f"selects none of the {len(revisions)} revisions")
    return sorted(chosen)


def labels(chosen: Sequence[Revision]) -> list[int | str]:
    """What the selected revisions are called on their axis: steps, `main`, and in later stages the branch's name."""
    first = (chosen[0].stage, chosen[0].ingredient)
    return [MAIN if r.step is None else r.step if (r.stage, r.ingredient) == first else r.name for r in chosen]


def _of(selection: Selection, revision: Revision) -> bool:
    return selection.ingredient is None or revision.ingredient == str(selection.ingredient)


def _run(selection: Selection, revisions: Sequence[Revision]) -> list[Revision]:
    """The one run, of one stage and ingredient, that steps count in."""
    stage = selection.stage or 1
    run = [r for r in revisions if r.step is not None and r.stage == stage and _of(selection, r)]
    several = sorted({r.ingredient for r in run})
    if len(several) > 1:
        raise ValueError(f"stage {stage} has the ingredients {', '.join(several)}: choose one with `ingredient`")
    if not run:
        there = {r.stage for r in revisions if r.step is not None}
        if stage not in there:
            raise ValueError(f"no revision is of stage {stage}; the stages are {', '.join(map(str, sorted(there)))}")
        parts = sorted({r.ingredient for r in revisions if r.stage == stage and r.ingredient})
        asked = f"stage {stage}, ingredient {selection.ingredient}"
        raise ValueError(f"no revision is of {asked}; the ingredients are {', '.join(parts) or 'none'}")
    return run


def _at(step: int, run: Sequence[Revision]) -> Revision:
    found = next((r for r in run if r.step == step), None)
    if found is None:
        near = sorted(sorted(run, key=lambda r: abs((r.step or 0) - step))[:4])
        raise ValueError(f"steps: there is no step {step}; the nearest are {', '.join(str(r.step) for r in near)}")
    return found


def _nearest(tokens: int, run: Sequence[Revision]) -> Revision:
    known = [r for r in run if r.tokens is not None]
    if not known:
        raise ValueError("tokens: nobody says how many tokens these revisions have seen; select by steps")
    return min(known, key=lambda r: abs((r.tokens or 0) - tokens))


def _log_spaced(count: int, run: Sequence[Revision]) -> list[Revision]:
    later = [r for r in run if r.step]
    if len(later) < count:
        raise ValueError(f"log_spaced: {count} of the {len(later)} revisions after step 0 cannot be chosen")
    low, high = (math.log(r.step or 1) for r in (later[0], later[-1]))
    chosen: list[Revision] = []
    for i in range(count):
        target = low + (high - low) * i / (count - 1)
        free = [r for r in later if r not in chosen]
        chosen.append(min(free, key=lambda r: abs(math.log(r.step or 1) - target)))
    return chosen
