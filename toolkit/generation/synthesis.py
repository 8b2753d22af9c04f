"""The words of instruction synthesis (Instruction Pre-Training, Cheng et al. 2024, arXiv 2406.14491): texts in,
questions and answers about them out.

A synthesizer reads ` <CON> TEXT </CON>`, a blank line, and writes `<QUE> question <ANS> answer </END>`, pairs joined by
blank lines. Texts with their pairs, one after the other, are examples for the next text. Each begins with BOS and ends
with EOS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER, END = "<QUE>", "<ANS>", "</END>"
WORD_TOKENS = 1.5  # tokens that a word is taken for where a chain's length is estimated


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A question and its answer, without the space around them."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Marks:
    """BOS as text, or "" where the tokenizer begins every text with it; BOS and EOS between two examples."""

    first: str
    bos: str
    eos: str


def marks(tokenizer: "PreTrainedTokenizerBase") -> Marks:
    """Those of a tokenizer, so that there is one BOS whichever way it comes.

    Raises:
        ValueError: no end-of-text token, which ends an example.
    """
    if tokenizer.eos_token is None:
        raise ValueError(
            "the tokenizer has no end-of-text token (eos_token), which ends a text with its pairs; set one"
        )
    bos = tokenizer.bos_token or ""
    by_itself = bool(bos) and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return Marks(first="" if by_itself else bos, bos=bos, eos=tokenizer.eos_token)


def read(text: str) -> str:
    """A text as the synthesizer reads it; the space before it is part of the format."""
    return f" <CON> {text} </CON>\n\n"


def write(pairs: Sequence[Pair]) -> str:
    """Pairs as the synthesizer writes them."""
    return "\n\n".join(f"{QUESTION} {pair.question} {ANSWER} {pair.answer} {END}" for pair in pairs)


def chain(examples: Sequence[tuple[str, Sequence[Pair]]], text: str, mark: Marks) -> str:
    """The prompt for a text after examples, the earliest first."""
    parts = [read(before) + write(pairs) + mark.eos + mark.bos for before, pairs in examples]
    return mark.first + "".join(parts) + read(text)


def words(prompt: str) -> float:
    """Tokens that a prompt is estimated to have: words between single spaces, times 1.5, as the published code does."""
    return len(prompt.split(" ")) * WORD_TOKENS


def parse(output: str) -> list[Pair]:
    """The pairs in what a synthesizer wrote; what is malformed is dropped.

    A pair that does not end is none; one has exactly one `<ANS>`, begins with `<QUE>`, and has an answer. Of questions
    that differ in case at most the first stays. As in the published code, but for a pair without a question, which that
    code keeps.
    """
    pairs: list[Pair] = []
    for part in output.split(END)[:-1]:
        question, *rest = part.split(ANSWER)
        question = question.strip()
        if len(rest) != 1 or not question.startswith(QUESTION) or not rest[0].strip():
            continue
        question = question.replace(QUESTION, "").strip()
        if question and question.lower() not in {pair.question.lower() for pair in pairs}:
            pairs.append(Pair(question=question, answer=rest[0].strip()))
    return pairs


@dataclass(kw_only=True)
class Entry:
    """A text, what was made of it, and the entry before it in its chain (None: a chain begins with it)."""

    text: str
    pairs: list[Pair]
    before: "Entry | None" = None


def examples(entry: Entry | None) -> list[tuple[str, list[Pair]]]:
    """What a text that follows `entry` reads first: the whole chain, or nothing where it has just been broken."""
    found: list[tuple[str, list[Pair]]] = []
    while entry is not None and entry.pairs:
        found.insert(0, (entry.text, entry.pairs))
        entry = entry.before
    return found


def rounds(count: int, shots: int) -> list[range]:
    """Texts of each round: chunks of ceil(count / shots); text i of a round follows text i of the round before."""
    size = -(-count // shots)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
