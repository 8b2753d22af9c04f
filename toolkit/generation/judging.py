"""What a judge model is asked about an instruction, and how its answer is read: quality, difficulty and kind of task.

The scales, the kinds and the form of the answer (JSON, whose opening brace the judge is given, read up to its last
closing one) are those of Magpie's tagging (arXiv 2406.08464, appendix); the words are Tidemark's.
"""

import json
from dataclasses import dataclass

QUALITIES = ("very poor", "poor", "average", "good", "excellent")
DIFFICULTIES = ("very easy", "easy", "medium", "hard", "very hard")
TASKS = (
    "Information seeking", "Reasoning", "Planning", "Editing", "Coding & Debugging", "Math", "Role playing",
    "Data analysis", "Creative writing", "Advice seeking", "Brainstorming", "Others",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tag:
    """question: put before the instruction. fields: of the judge's JSON, with the columns that they become; a field in
    `lists` is a list of strings."""

    question: str
    fields: dict[str, str]
    lists: tuple[str, ...] = ()


TAGS = {
    "quality": Tag(
        question="Rate how clear, specific and coherent the user's request below is. The ratings are: very poor (vague"
        " or incoherent, essentials are missing), poor (unclear in important details), average (moderately clear, may"
        " need more information), good (clear and specific enough to be answered), excellent (clear, specific and"
        " complete). Assess its strengths and weaknesses first, then rate it.",
        fields={"explanation": "quality_explanation", "input_quality": "input_quality"},
    ),
    "difficulty": Tag(
        question="Say what the user's request below is after, what one has to know to answer it, and then how difficult"
        f" it is: {', '.join(DIFFICULTIES)}.",
        fields={"intent": "intent", "knowledge": "knowledge", "difficulty": "difficulty"},
    ),
    "category": Tag(
        question="Choose the kind of task that the user's request below is, and any other kinds that apply, from this"
        f" list: {', '.join(TASKS)}.",
        fields={"primary_tag": "task_category", "other_tags": "other_task_category"},
        lists=("other_tags",),
    ),
}
OPENING = "{"  # put at the beginning of the judge's answer
CLOSING = "}"  # ends it


def ask(tag: str, instruction: str) -> str:
    """The user's turn that a judge answers."""
    words = TAGS[tag]
    form = {name: ["..."] if name in words.lists else "..." for name in words.fields}
    return (
        f"{words.question}\n\nThe request:\n```\n{instruction}\n```\n\n"
        f"Answer in JSON of this form, and nothing else:\n```\n{json.dumps(form, indent=4)}\n```"
    )


def columns(tag: str) -> list[str]:
    """What a tag adds to a row."""
    return list(TAGS[tag].fields.values())


def parse(tag: str, text: str) -> dict[str, str | list[str] | None]:
    """Column -> value, from what the judge wrote after the opening brace; all None if that is no JSON with the fields.

    Magpie's code keeps a value of any type; here one that is no string (in a list: not all are) counts as none.
    """
    whole = OPENING + "\n" + text.strip()
    try:
        told = json.loads(whole[: whole.rfind(CLOSING) + 1])
        found = {column: told[name] for name, column in TAGS[tag].fields.items()}
    except (ValueError, KeyError, TypeError):
        return dict.fromkeys(columns(tag))
    lists = [TAGS[tag].fields[name] for name in TAGS[tag].lists]
    return {column: value if _is(value, column in lists) else None for column, value in found.items()}


def _is(value: object, listed: bool) -> bool:
    if listed:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, str)
