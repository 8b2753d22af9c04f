"""A text with questions and answers about it as text to pre-train on: in many layouts, so that no one is learned.

What is drawn, once for a chain of texts, is what Instruction Pre-Training (arXiv 2406.14491, appendix) draws: the
layout of pairs, of options and of reasons, and the way of the whole: mostly the text and then its pairs; now and then
as a conversation, as numbered questions with the answers after them (from two pairs on), or pairs before the text. The
layouts are Tidemark's.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from toolkit.generation.synthesis import Pair

REASONS = "\nLet's think step by step."  # how a synthesizer marks a question that is answered with reasons
THEREFORE = "\nTherefore, the answer is "
OPTIONS = "\nOptions:\n- "  # and one that has options, a line each


@dataclass(frozen=True, kw_only=True)
class Layout:
    """question and answer with a place for each; between them, and between two pairs."""

    question: str
    answer: str
    between: str
    apart: str


LAYOUTS = tuple(
    Layout(question=q, answer=a, between=b, apart=s)
    for q, a, b, s in (
        ("Question: {}", "Answer: {}", "\n", "\n\n"),
        ("Q: {}", "A: {}", "\n", "\n\n"),
        ("{}", "{}", "\n", "\n\n"),
        ("Problem: {}", "Solution: {}", "\n\n", "\n\n\n"),
        ("Input: {}", "Output: {}", "\n", "\n\n"),
        ("Please answer: {}", "{}", " ", "\n"),
        ("{} Reply:", "{}", " ", "\n\n"),
        ("Task: {}", "Response: {}", "\n", "\n----\n"),
        ("What would you say to this? {}", "I would say: {}", "\n", "\n\n"),
        ("**{}**", "{}", "\n\n", "\n\n"),
    )
)
SPEAKERS = (("User", "Assistant"), ("Reader", "Teacher"), ("Anna", "Ben"), ("Interviewer", "Expert"))
BULLETS = (("- ", "\n"), ("* ", "\n"), ("({n}) ", "\n"), ("{n}. ", "\n"), ("[{n}] ", " "))
OPTIONS_HEADS = ("\nOptions:\n", "\nChoose from:\n", "\nPossible answers:\n", " Pick one.\n")
REASONED = (
    "{why}. So the answer is {answer}",
    "{answer}. This is because: {why}",
    "Step by step: {why}. Thus {answer}",
)
HEADS = ("", "Read this:\n", "Article:\n", "Here is a text.\n\n", "### Text\n")
BRIDGES = ("\n\n", "\n\nQuestions about it:\n\n", "\n\n### Questions\n", "\nNow answer what follows.\n\n")
WAYS = (("plain", 80), ("dialogue", 5), ("numbered", 5), ("before", 5))
MANY = {"numbered"}  # ways that need two pairs


@dataclass(frozen=True, kw_only=True)
class Style:
    """What was drawn for one chain."""

    way: str
    layout: Layout
    bullet: tuple[str, str]
    options: str
    reasoned: str
    head: str
    bridge: str
    speakers: tuple[str, str]


def draw(seed: int, least_pairs: int) -> Style:
    """The style of a chain. least_pairs: of the text of the chain that has the fewest."""
    rng = random.Random(seed)
    ways = [(way, weight) for way, weight in WAYS if way not in MANY or least_pairs > 1]
    return Style(
        way=rng.choices([way for way, _ in ways], weights=[weight for _, weight in ways])[0],
        layout=rng.choice(LAYOUTS),
        bullet=rng.choice(BULLETS),
        options=rng.choice(OPTIONS_HEADS),
        reasoned=rng.choice(REASONED),
        head=rng.choice(HEADS),
        bridge=rng.choice(BRIDGES),
        speakers=rng.choice(SPEAKERS),
    )


def readable(pair: Pair, style: Style) -> Pair | None:
    """The pair in the style's words; None if it is marked as one with reasons or options and does not have them."""
    question, answer = pair.question, pair.answer
    if REASONS in question or THEREFORE in answer:
        why, *rest = answer.split(THEREFORE)
        why = why.strip().removesuffix(".")
        if not question.endswith(REASONS) or len(rest) != 1 or not why or not rest[0].strip():
            return None
        answer = style.reasoned.format(why=why, answer=rest[0].strip().removesuffix(".")) + "."
        question = question.removesuffix(REASONS).strip()
    if OPTIONS in question:
        question, *rest = question.split(OPTIONS)
        if len(rest) != 1 or not question.strip():
            return None
        listed = [option.strip() for option in rest[0].split("\n- ")]
        lines = [style.bullet[0].format(n=n) + option for n, option in enumerate(listed, 1)]
        question = question.strip() + style.options + style.bullet[1].join(lines)
    return Pair(question=question, answer=answer) if question else None


def compose(text: str, pairs: Sequence[Pair], style: Style) -> str:
    """One text with its pairs, which `readable` gave."""
    layout = style.layout
    if style.way == "dialogue":
        one, two = style.speakers
        layout = Layout(question=one + ": {}", answer=two + ": {}", between="\n", apart="\n")
    if style.way == "numbered":
        asked = [f"{n}. {pair.question}" for n, pair in enumerate(pairs, 1)]
        given = [f"{n}. {pair.answer}" for n, pair in enumerate(pairs, 1)]
        return style.head + text + style.bridge + "\n".join(asked) + "\n\nAnswers:\n" + "\n".join(given)
    body = layout.apart.join(
        _put(layout.question, p.question) + layout.between + _put(layout.answer, p.answer) for p in pairs
    )
    return body + "\n\n" + text if style.way == "before" else style.head + text + style.bridge + body


def _put(form: str, words: str) -> str:
    return form.replace("{}", words)


def augment(texts: Sequence[tuple[str, Sequence[Pair]]], seed: int) -> list[str]:
    """Documents of one chain: a document of all texts that have pairs, and each text that has none by itself.

    Raises nothing: a malformed pair is left out, and a text without a good one stands as it is.
    """
    style = draw(seed, min(len(pairs) for _, pairs in texts))
    read = [(text, [good for pair in pairs if (good := readable(pair, style))]) for text, pairs in texts]
    if style.way in MANY and min((len(pairs) for _, pairs in read if pairs), default=0) < 2:
        style = replace(style, way="plain")
    whole = [compose(text, pairs, style) for text, pairs in read if pairs]
    alone = [text for text, pairs in read if not pairs]
    return (["\n\n\n".join(whole)] if whole else []) + alone
