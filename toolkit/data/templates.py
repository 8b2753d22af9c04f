"""Instruction rows as (prompt, completion) strings.

A prompt ends where the model takes over and never in a space (fine-tuned models answer such prompts with nothing);
prompt + completion is the whole text of a row.
"""

from collections.abc import Callable, Sequence
from typing import Literal

Template = Literal["alpaca", "plain"]


def alpaca(instruction: str, context: str, answer: str) -> tuple[str, str]:
    """Sections under `###` headings, after a line that says what the sections are (the layout of Stanford Alpaca)."""
    given = "The instruction comes with an input to work on. " if context else ""
    parts = [
        f"Here is an instruction that describes a task. {given}Write a response that completes the task.",
        f"### Instruction:\n{instruction}",
        *([f"### Input:\n{context}"] if context else []),
        "### Response:\n",
    ]
    return "\n\n".join(parts), answer


def plain(instruction: str, context: str, answer: str) -> tuple[str, str]:
    """The instruction, its input under it, and `Answer:`."""
    return "\n\n".join([instruction, *([context] if context else []), "Answer:"]), f" {answer}"


TEMPLATES: dict[str, Callable[[str, str, str], tuple[str, str]]] = {"alpaca": alpaca, "plain": plain}

SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


def conversation(turns: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """(role, content) turns, of which the last is the assistant's: all before it is the prompt."""
    *before, (role, answer) = turns
    assert role == "assistant", "the caller checks the roles"
    lines = [f"{SPEAKERS[role]}: {content}\n" for role, content in before]
    return "".join(lines) + "Assistant:", f" {answer}"
