"""Prompts: what the model reads, what is refused."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.toolkit.generation.tiny import Tiny, save
from toolkit.data.splits import open_split
from toolkit.generation.rows import Row, fit, gold_column, tokenize


@pytest.fixture
def tokenizer(tiny: Tiny) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(tiny.model.path))


def test_plain_is_the_prompt_and_chat_is_one_user_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenize(tokenizer, ["Where?"], "plain")[0].tokens) == "Where?"
    assert tokenizer.decode(tokenize(tokenizer, ["Where?"], "chat")[0].tokens) == "<|user|>Where?<|assistant|>"


def test_a_prompt_that_opens_with_bos_gets_no_second_one(tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.bos_token = "<|end|>"
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", bos)]
    )
    rows = tokenize(tokenizer, ["Who?", "<|end|>Who?", "Who?"], "plain")
    assert [row.id for row in rows] == [0, 1, 2]
    assert len({row.tokens for row in rows}) == 1 and rows[0].tokens.count(bos) == 1


def test_a_chat_template_that_adds_a_second_bos_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.bos_token = "<|user|>"
    assert tokenize(tokenizer, ["Who?"], "chat")[0].tokens[:1] == (tokenizer.bos_token_id,)
    with pytest.raises(
        ValueError, match=r"row 1 begins with <\|user\|> twice: .*take it out of the text or of the chat"
    ):
        tokenize(tokenizer, ["Who?", "<|user|>Who?"], "chat")


def test_chat_without_a_chat_template_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="needs a tokenizer with a chat template.*use 'plain'"):
        tokenize(tokenizer, ["Where?"], "chat")


def test_a_prompt_without_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="row 1 has a prompt without tokens"):
        tokenize(tokenizer, ["Where?", ""], "plain")


def test_overlong_prompts_are_refused_or_cut_on_the_left() -> None:
    rows = [Row(id=0, tokens=(1, 2, 3)), Row(id=1, tokens=(1, 2, 3, 4, 5, 6))]
    with pytest.raises(ValueError, match=r"1 prompts are longer than 4 tokens \(context 10 .*row 1 with 6"):
        fit(rows, 10, 6, "refuse")
    kept, cut = fit(rows, 10, 6, "truncate")
    assert [row.tokens for row in kept] == [(1, 2, 3), (3, 4, 5, 6)] and cut == 1
    with pytest.raises(ValueError, match="max_new_tokens 10 leaves no room"):
        fit(rows, 10, 10, "truncate")
    assert fit(rows, None, 10**9, "refuse") == (rows, 0)


def test_splits_and_columns_that_are_not_there(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'held_out'; did you mean 'heldout'"):
        open_split(tiny.people.path, "held_out", ["prompt"])
    with pytest.raises(ValueError, match="has no column 'completion'"):
        open_split(tiny.choices.path, "train", ["prompt", "completion"])
    with pytest.raises(ValueError, match="holds no data set"):
        open_split(tmp_path, "train", ["prompt"])
    assert len(open_split(tiny.people.path, "heldout", ["prompt"], limit=3)) == 3


def test_gold_is_preferred_to_completion(tiny: Tiny, tmp_path: Path) -> None:
    assert gold_column(open_split(tiny.people.path, "heldout", ["prompt"])) == "gold"
    other = save(tmp_path, a=[{"prompt": "p", "completion": "c"}], b=[{"prompt": "p"}])
    assert gold_column(open_split(other.path, "a", ["prompt"])) == "completion"
    with pytest.raises(ValueError, match="neither a 'gold' nor a 'completion'"):
        gold_column(open_split(other.path, "b", ["prompt"]))
