"""Templates: how the fields of a row become a prompt and a completion. A kind of task has a file in configs/templates.

    can_we_infer:
      prompt: |-
        {{ premise }}
        Can we infer that "{{ hypothesis }}"? Yes, no, or maybe?
      choices: ["Yes", "Maybe", "No"]       # answer words, in the order of the data set's own

A prompt never ends in a space (tuned models answer such prompts with nothing): the completion begins with the space
that separates them, or follows a newline directly. Jinja runs sandboxed, and a field's text is never read as Jinja.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from toolkit.lookup import unknown
from toolkit.provenance import HOME
from toolkit.spec import FieldError, build

FOLDER = HOME / "configs" / "templates"
ALL = "all"
PAPER = ("instruct", "inputoutput")  # the formats of Amuro & Char beside `default`
LETTERS = "ABCDEFGH"
GOLD = "{{ gold }}"


@dataclass(frozen=True, kw_only=True)
class Template:
    """prompt, answer: Jinja over the row's fields, `choices`, `gold`, `gold_index` and `letters`.

    choices: answer words in the order of the row's choices; the answer is the right one of them. Without them the
    answers are the row's own choices. inverted: asks for what the task gives, such as the premise from the answer; its
    answer is text of its own.
    """

    prompt: str
    answer: str = GOLD
    choices: tuple[str, ...] = ()
    inverted: bool = False

    def __post_init__(self) -> None:
        if self.prompt.endswith(" ") or not self.prompt.strip():
            raise ValueError(
                f"the prompt {self.prompt[-40:]!r} {'ends in a space' if self.prompt.strip() else 'is empty'}: the "
                "completion begins with the space between them"
            )
        if self.choices and self.answer != GOLD:
            raise ValueError("a template has choices, of which the right one is the answer, or an answer of its own")
        if self.inverted and (self.choices or self.answer == GOLD):
            raise ValueError("an inverted template has an answer of its own, and no choices")


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a template makes of a row. gold: what an answer is compared with: the bare completion, or the row's own gold
    where the completion says more, as a worked answer does. choices, gold_index: empty and -1 where it is free text."""

    prompt: str
    completion: str
    gold: str
    choices: list[str]
    gold_index: int


@cache
def read(kind: str, folder: Path = FOLDER) -> dict[str, Template]:
    """Name -> template of configs/templates/`kind`.yaml.

    Raises:
        ValueError: no such file, or a template in it that is wrong.
    """
    path = folder / f"{kind}.yaml"
    if not path.is_file():
        raise ValueError(unknown("kind of templates", kind, (p.stem for p in folder.glob("*.yaml"))))
    found = {}
    for name, words in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        try:
            found[str(name)] = build(Template, words, "key of a template")
        except (FieldError, ValueError) as error:
            raise ValueError(f"{path}: template {name!r}: {error}") from None
    return found


def chosen(kind: str, names: Sequence[str]) -> dict[str, Template]:
    """The named templates of a kind; `all` stands for all of them.

    Raises:
        ValueError: an unknown name, or none.
    """
    offered = read(kind)
    for name in names:
        if name not in offered and name != ALL:
            raise ValueError(f"templates: {unknown('template', name, [*offered, ALL])}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"templates must name at least one and none twice, not {list(names)}")
    return offered if ALL in names else {name: offered[name] for name in names}


def paper(kind: str) -> dict[str, Template]:
    """The formats of Amuro & Char beside the default one, where a kind of task has them."""
    offered = read(kind)
    return {name: offered[name] for name in PAPER if name in offered}


def render(template: Template, row: Mapping[str, Any]) -> Rendered:
    """A row's prompt and completion; prompt + completion is the whole text.

    Raises:
        ValueError: a name in the template that the row does not have, or an answer that is empty.
    """
    words = [_fill(choice, row) for choice in template.choices[: len(row["choices"])]]
    free = template.answer != GOLD or row["gold_index"] < 0
    choices = [] if free else words or list(row["choices"])
    index = -1 if free else int(row["gold_index"])
    if words and len(words) < len(row["choices"]):
        raise ValueError(f"the template has {len(words)} choices, and the row {len(row['choices'])}: {row['choices']}")
    answer = (_fill(template.answer, row) if free else choices[index]).strip()
    if not answer:
        raise ValueError(f"the answer {template.answer!r} is empty for the row {dict(row)}")
    prompt = _fill(template.prompt, row).rstrip(" ")
    completion = answer if prompt.endswith("\n") else f" {answer}"
    gold = row["gold"] if free and not template.inverted else answer
    return Rendered(prompt=prompt, completion=completion, gold=gold, choices=choices, gold_index=index)


def _fill(source: str, row: Mapping[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        return _compiled(source).render(**row)
    except TemplateError as error:
        names = ", ".join(sorted(row))
        raise ValueError(f"the template {source!r} cannot be filled: {error}; a row has {names}") from None


@cache
def _compiled(source: str) -> Any:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals["letters"] = LETTERS
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ValueError(f"the template {source!r} is not Jinja: {error}") from None
