"""What has a loss, decoded: the completion and its end token and nothing else, for every template and chat format, with
tokenizers that merge over the boundary, that put a space before a text, that begin with BOS."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.toolkit.data.hub_layouts import LAYOUTS, labelled
from tests.toolkit.training.small import Small, context, dataset
from toolkit.data import bpe, formats
from toolkit.data.sources import Source
from toolkit.data.tasks import _complete, describe
from toolkit.lookup import find
from toolkit.training.turns import IGNORED, renderer, tokenise

TASKS = [name for name in LAYOUTS if name != "wikipedia"]
CHATS = {
    "plain": bpe.CHAT,
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "bos and trimmed": "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}",
    "without an end": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}
KINDS = ["words", "over the boundary", "spaces before"]


@cache
def tokenizer(kind: str) -> Any:
    """Three kinds, each with BOS: merges within words; merges over spaces and newlines; a space put before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    made = Tokenizer(models.BPE())
    if kind == "spaces before":
        marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]  # as Llama 2 has it
        made.normalizer = normalizers.Sequence(marks)
        parts = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(parts)
        alphabet = sorted({chr(i) for i in range(32, 127)} | {"\n", "\u2581", "\u2019"})
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "words")
        made.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = [rendered.prompt + rendered.completion for task in TASKS for _, rendered in pairs(task)]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=special[3:], clean_up_tokenization_spaces=False,
    )  # fmt: skip


@cache
def pairs(task: str) -> list[tuple[str, formats.Rendered]]:
    """(template, rendered row) of every template of a task, over rows in the layout of the Hub."""
    module, found = find("toolkit.data.datasets", task, "dataset"), []
    make, labels = LAYOUTS[task][2]["train"]
    for values in labelled(make, 6, labels):
        row = _complete(module.row(Source(place=task, values=values)))
        if row is not None:
            templates = formats.read(describe(task).templates)
            found += [(name, formats.render(template, row)) for name, template in templates.items()]
    return found


def encoded(task: str, kind: str, template: str) -> Iterator[tuple[formats.Rendered, list[int], list[int]]]:
    rows = [rendered for _, rendered in pairs(task)]
    batch = {"prompt": [row.prompt for row in rows], "completion": [row.completion for row in rows]}
    for row, (prompt, completion) in zip(rows, renderer(tokenizer(kind), template)(batch), strict=True):
        yield row, prompt, completion


def test_the_second_tokenizer_does_merge_over_the_boundary() -> None:
    tok = tokenizer("over the boundary")
    merged = sum(
        tok(row.prompt + row.completion)["input_ids"][: len(prompt)] != prompt
        for task in TASKS
        for row, prompt, _ in encoded(task, "over the boundary", "plain")
    )
    assert merged > 50


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", TASKS)
def test_every_template(task: str, kind: str) -> None:
    tok, eos = tokenizer(kind), tokenizer(kind).eos_token_id
    seen = set()
    for (name, _), (row, prompt, completion) in zip(pairs(task), encoded(task, kind, "plain"), strict=True):
        seen.add(name)
        assert prompt == tok(row.prompt)["input_ids"], "generation sees these ids"
        assert completion[-1] == eos and eos not in completion[:-1]
        assert tok.decode(prompt, skip_special_tokens=True) == row.prompt
        whole = tok.decode([*prompt, *completion[:-1]], skip_special_tokens=True)
        assert whole.removeprefix(row.prompt) == row.completion, f"{name}: {whole!r}"
        if kind != "spaces before":
            assert tok.decode(completion) == row.completion + "</s>"
    assert seen == set(formats.read(describe(task).templates))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chat", CHATS)
def test_every_chat_format(chat: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer(kind)
    monkeypatch.setattr(tok, "chat_template", CHATS[chat], raising=False)
    end = "<|im_end|></s>" if chat == "chatml" else "</s>"
    for task in ("mnli", "gsm8k", "tulu", "alpaca"):
        for row, prompt, completion in encoded(task, kind, "chat"):
            turns = [{"role": "user", "content": row.prompt}]
            head = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert prompt == tok(head, add_special_tokens=False)["input_ids"]
            assert prompt.count(tok.bos_token_id) == (chat == "bos and trimmed")
            said = tok.decode([*prompt, *completion]).removeprefix(tok.decode(prompt))
            assert said.strip() == row.completion.strip() + end and completion[-1] == tok.eos_token_id


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_a_second_bos_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer("words")
    monkeypatch.setattr(tok, "chat_template", "{{ bos_token }}" + CHATS["bos and trimmed"], raising=False)
    who = "prompt" if template == "plain" else "chat template"
    with pytest.raises(ValueError, match=f"begins with two <s>, one of the tokenizer and one of the {who}"):
        renderer(tok, template)({"prompt": ["<s>Who?" if template == "plain" else "Who?"], "completion": [" I."]})


def test_a_prompt_that_ends_in_a_space_is_refused() -> None:
    with pytest.raises(ValueError, match="the prompt 'Who\\? ' ends in a space"):
        renderer(tokenizer("words"), "plain")({"prompt": ["Who? "], "completion": ["I."]})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_is_counted_and_has_a_loss_on_what_is_left(kind: str, tmp_path: Path) -> None:
    """A row that does not fit loses its end, the end token first, and the record says how many did."""
    rows = [rendered for _, rendered in pairs("gsm8k")]
    data = Dataset.from_dict({"prompt": [r.prompt for r in rows], "completion": [r.completion for r in rows]})
    tok = tokenizer(kind)
    full = renderer(tok, "plain")(data[:])
    most = sorted(len(p) + len(c) for p, c in full)[len(full) // 2]
    found, counts = tokenise(data, tok, "plain", most, context(tmp_path).state)
    long = [len(p) + len(c) > most for p, c in full]
    assert counts["truncated"] == sum(long) and counts["dropped"] == sum(len(p) >= most for p, _ in full)
    assert 0 < sum(long) < len(rows) and counts["rows"] == len(found) == len(rows) - counts["dropped"]
    kept = [pair for pair in full if len(pair[0]) < most]
    assert list(found["input_ids"]) == [(p + c)[:most] for p, c in kept]
    for (prompt, completion), labels in zip(kept, found["labels"], strict=True):
        assert [label for label in labels if label != IGNORED] == completion[: most - len(prompt)]


def test_more_than_the_models_context_is_refused(small: Small, tmp_path: Path) -> None:
    data = dataset(tmp_path / "d", {"prompt": ["Where was Anna born?"] * 4, "completion": [" Berlin" * 90] * 4})
    with pytest.raises(ValueError, match=r"the longest row has \d+ tokens and the model 64 positions: set max_length"):
        small.tune(tmp_path / "t", inputs={"data": data}, max_length=512)
