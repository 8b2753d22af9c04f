"""Instruction synthesis against the published code's behaviour on fixed outputs, case by case.

Read in microsoft/LMOps, instruction_pretrain/utils/read_compre.py: parse_comprehension, get_dataset,
process_syn_raw_text. What each case gives there is written here as it came out.
"""

import math
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.toolkit.generation.tiny import Tiny
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.generation.recipes.instruct_synthesis import chains, prompts_of
from toolkit.generation.rows import Row
from toolkit.generation.synthesis import Entry, Marks, Pair, chain, marks, parse, read, rounds, words, write

ONE = "<QUE> Who? <ANS> Ada. </END>"
MARK = Marks(first="<s>", bos="<s>", eos="</s>")

PARSED = {
    "one pair": (ONE, [("Who?", "Ada.")]),
    "two, a blank line between": (ONE + "\n\n<QUE> Where? <ANS> Rome. </END>", [("Who?", "Ada."), ("Where?", "Rome.")]),
    "nothing between": (ONE + "<QUE> Where?<ANS>Rome.</END>", [("Who?", "Ada."), ("Where?", "Rome.")]),
    "the last does not end": (ONE + "\n\n<QUE> Where? <ANS> Ro", [("Who?", "Ada.")]),
    "nothing ends": ("<QUE> Who? <ANS> Ada.", []),
    "empty": ("", []),
    "only the end": ("</END>", []),
    "words after the last end": (ONE + " And so on", [("Who?", "Ada.")]),
    "space after the last end": (ONE + "\n", [("Who?", "Ada.")]),
    "no <ANS>": ("<QUE> Who? Ada. </END>" + ONE, [("Who?", "Ada.")]),
    "two <ANS>": ("<QUE> Who? <ANS> Ada <ANS> Bo </END>" + ONE, [("Who?", "Ada.")]),
    "no <QUE>": ("Who? <ANS> Ada. </END>", []),
    "words before <QUE>": ("Well: <QUE> Who? <ANS> Ada. </END>", []),
    "a second <QUE> is taken out": ("<QUE> <QUE> Who? <ANS> Ada. </END>", [("Who?", "Ada.")]),
    "no answer": ("<QUE> Who? <ANS>  </END>" + ONE, [("Who?", "Ada.")]),
    "the same question in capitals": (ONE + "<QUE> WHO? <ANS> Bo. </END>", [("Who?", "Ada.")]),
    "the same answer": (ONE + "<QUE> And who? <ANS> Ada. </END>", [("Who?", "Ada."), ("And who?", "Ada.")]),
    "lines in an answer": ("<QUE> Who?\n- A\n- B <ANS> A\nor B </END>", [("Who?\n- A\n- B", "A\nor B")]),
    # Here the published code keeps ("", "Ada."): a question without a word is no question.
    "no question": ("<QUE> <ANS> Ada. </END>", []),
}


@pytest.mark.parametrize("output, pairs", PARSED.values(), ids=PARSED)
def test_parse(output: str, pairs: list[tuple[str, str]]) -> None:
    assert [(pair.question, pair.answer) for pair in parse(output)] == pairs


def test_what_is_written_is_read_again_and_the_format_is_the_published_one() -> None:
    pairs = [Pair(question="Who?", answer="Ada."), Pair(question="Where?", answer="Rome.")]
    assert parse(write(pairs)) == pairs
    assert write(pairs) == "<QUE> Who? <ANS> Ada. </END>\n\n<QUE> Where? <ANS> Rome. </END>"
    assert MARK.first + read("A text.") == chain([], "A text.", MARK) == "<s> <CON> A text. </CON>\n\n"
    assert chain([("Old.", pairs[:1])], "New.", MARK) == (
        "<s> <CON> Old. </CON>\n\n<QUE> Who? <ANS> Ada. </END></s><s> <CON> New. </CON>\n\n"
    )
    assert words(chain([], "A text.", MARK)) == 1.5 * 5


@pytest.mark.parametrize(
    "count, shots, chunks",
    [(4, 2, [2, 2]), (5, 2, [3, 2]), (6, 3, [2, 2, 2]), (7, 3, [3, 3, 1]), (2, 3, [1, 1]), (10, 4, [3, 3, 3, 1])],
)
def test_rounds_are_chunks_of_the_size_rounded_up(count: int, shots: int, chunks: list[int]) -> None:
    """The last may be small; for (10, 4) the published code fails, having one text to hang two chains on."""
    assert [len(chunk) for chunk in rounds(count, shots)] == chunks


def row(prompt: str) -> Row | None:
    return Row(id=0, tokens=tuple(prompt.encode())) if len(prompt) < 400 else None


def play(texts: list[list[str]], outputs: dict[str, str], most: int = 1000) -> tuple[list[Entry], dict[str, str]]:
    """The rounds with fixed outputs: all entries, and text -> the prompt that it was asked with."""
    entries: list[Entry] = []
    last: list[Entry] = []
    asked = {}
    for chunk in texts:
        made, prompts = prompts_of(chunk, last, most, MARK, row)
        for prompt in prompts:
            entry = made[prompt.id]
            asked[entry.text] = bytes(prompt.tokens).decode()
            entry.pairs = parse(outputs[entry.text])
        entries, last = entries + made, made
    return entries, asked


def test_a_round_reads_the_rounds_before_it() -> None:
    good = {name: f"<QUE> {name}? <ANS> {name}. </END>" for name in "abcdef"}
    entries, asked = play([["a", "b"], ["c", "d"], ["e", "f"]], good)
    assert asked["e"] == (
        "<s> <CON> a </CON>\n\n<QUE> a? <ANS> a. </END></s>"
        "<s> <CON> c </CON>\n\n<QUE> c? <ANS> c. </END></s><s> <CON> e </CON>\n\n"
    )
    assert [[entry.text for entry in found] for found in chains(entries)] == [["a", "c", "e"], ["b", "d", "f"]]


def test_a_round_without_a_pair_breaks_the_chain() -> None:
    outputs = {name: ONE for name in "abcd"} | {"b": "nothing"}
    entries, asked = play([["a"], ["b"], ["c"], ["d"]], outputs)
    assert asked["b"].startswith("<s> <CON> a"), "it was asked with what came before"
    assert asked["c"] == "<s> <CON> c </CON>\n\n" and asked["d"].startswith("<s> <CON> c")
    assert [[entry.text for entry in found] for found in chains(entries)] == [["a"], ["b"], ["c", "d"]]


def test_a_chain_that_would_be_too_long_begins_anew() -> None:
    """By the estimate: words between single spaces times 1.5, at most (<=) max_length less max_new_tokens."""
    outputs = dict.fromkeys(["a", "b", "c"], ONE)
    size = math.ceil(words(chain([("a", parse(ONE))], "b", MARK)))
    assert play([["a"], ["b"]], outputs, size)[1]["b"].startswith("<s> <CON> a")
    entries, asked = play([["a"], ["b"], ["c"]], outputs, size - 1)
    assert asked["b"] == "<s> <CON> b </CON>\n\n" and asked["c"] == "<s> <CON> c </CON>\n\n"
    assert len(chains(entries)) == 3


def test_what_exceeds_the_synthesizers_context_is_read_alone_or_not_at_all() -> None:
    """The published code hands such a prompt to vLLM, whose error then loses the whole round."""
    long, longer = "word " * 60, "word " * 90
    entries, asked = play([["a" * 200, longer], [long]], {"a" * 200: ONE, long: ONE})
    assert asked[long] == chain([], long, MARK) and longer not in asked
    assert [[entry.text for entry in found] for found in chains(entries)] == [["a" * 200], [longer], [long]]


def test_fewer_texts_in_the_last_round_leave_the_other_chains_as_they_are() -> None:
    entries, _ = play([["a", "b"], ["c"]], dict.fromkeys("abc", ONE))
    assert [[entry.text for entry in found] for found in chains(entries)] == [["b"], ["a", "c"]]


def test_one_bos_whether_the_tokenizer_adds_it_or_not(tiny: Tiny, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    from toolkit.generation.rows import encode

    tokenizer = load_tokenizer(tiny.model.path)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert marks(tokenizer) == Marks(first="", bos="", eos="<|end|>")
    tokenizer.bos_token = "<|user|>"
    assert marks(tokenizer).first == "<|user|>"
    literal = encode(tokenizer, [chain([], "A text.", marks(tokenizer))])[0].tokens
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", tokenizer.bos_token_id)]
    )
    assert marks(tokenizer).first == ""
    added = encode(tokenizer, [chain([], "A text.", marks(tokenizer))])[0].tokens
    assert added == literal and added.count(tokenizer.bos_token_id) == 1
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end-of-text token"):
        marks(tokenizer)
