"""Tokenizers: exact size, ids that survive saving next to any model's config, masks of what the assistant says."""

import shutil

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from jobs import prepare
from jobs import tokenizer as job
from toolkit.checkpoints.folders import PROBES
from toolkit.data.datasets import bios
from toolkit.stage import Artifact, Context


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    out = tmp_path_factory.mktemp("people")
    spec = bios.Spec(dataset="bios", people=60, seed=2)
    prepare.run(spec, bios.Inputs(), out, Context(state=tmp_path_factory.mktemp("state")))
    return Artifact(path=out)


@pytest.fixture
def train(people, tmp_path_factory):
    def run(**values):
        out = tmp_path_factory.mktemp("tokenizer")
        spec = job.Spec(**{"split": "pretrain", "vocab_size": 500, **values})
        metrics = job.run(spec, job.Inputs(data=people), out, Context(state=tmp_path_factory.mktemp("state")))
        return out, PreTrainedTokenizerFast.from_pretrained(str(out)), metrics

    return run


def test_size_and_special_tokens_are_as_asked(train):
    _, tokenizer, metrics = train(extra=("<|x|>",))
    assert len(tokenizer) == metrics["vocab_size"] == 500 and metrics["documents"] == 60
    assert [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id] == [0, 1, 0]
    assert tokenizer.bos_token is None and tokenizer("a<|x|>b")["input_ids"].count(2) == 1
    assert metrics["bytes_per_token"] > 2


@pytest.mark.parametrize("split_digits", [False, True])
def test_text_of_any_kind_survives(train, split_digits):
    _, tokenizer, _ = train(split_digits=split_digits)
    for text in (*PROBES, "\x00\r\n\u2028", "<|endoftext|", "  ", "\U0001f468\u200d\U0001f469"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("in 1987 and 2024")["input_ids"])
    assert all(len(t) == 1 for t in tokens if t.isdigit()) or not split_digits
    assert split_digits or any(len(t.strip("Ġ")) > 1 for t in tokens if t.strip("Ġ").isdigit())


@pytest.mark.parametrize("family", ["olmo", "olmo2", "olmo3", "llama", "gemma2", "mistral", "gpt_neox"])
def test_ids_are_the_same_next_to_the_config_of_every_family(train, tmp_path, family):
    """transformers chooses the class of a tokenizer by the config beside it, and may give it another pre-tokenizer."""
    folder, tokenizer, _ = train()
    shutil.copytree(folder, tmp_path / "model")
    AutoConfig.for_model(family, vocab_size=500, eos_token_id=0, pad_token_id=1).save_pretrained(tmp_path / "model")
    auto = AutoTokenizer.from_pretrained(str(tmp_path / "model"), local_files_only=True)
    auto.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(str(tmp_path / "again"), local_files_only=True)
    for probe in PROBES:
        assert auto(probe)["input_ids"] == again(probe)["input_ids"] == tokenizer(probe)["input_ids"]
    assert (auto.eos_token_id, auto.pad_token_id, auto.bos_token_id) == (0, 1, None)


def test_bos_begins_every_text_once(train):
    _, tokenizer, _ = train(bos="<|bos|>")
    assert tokenizer.bos_token_id == 2
    assert tokenizer("Anna")["input_ids"][0] == 2 and tokenizer("Anna")["input_ids"].count(2) == 1
    assert tokenizer("Anna", add_special_tokens=False)["input_ids"].count(2) == 0


def test_the_chat_template_marks_what_the_assistant_says(train):
    _, tokenizer, _ = train()
    turns = [("system", "Be brief."), ("user", "Who?"), ("assistant", "Me."), ("user", "Sure?"), ("assistant", "Yes.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    text = "System: Be brief.\nUser: Who?\nAssistant: Me.<|endoftext|>\nUser: Sure?\nAssistant:"
    assert tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True) == text
    found = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    said = [i for i, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == " Me.<|endoftext|> Yes.<|endoftext|>"
    assert train(chat_template="none")[1].chat_template is None


def test_training_again_gives_the_same_files(train):
    first, again = train()[0], train()[0]
    names = sorted(p.name for p in first.iterdir())
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(names)
    assert names == sorted(p.name for p in again.iterdir())
    assert all((first / n).read_bytes() == (again / n).read_bytes() for n in names)


def test_a_size_that_the_text_cannot_fill_is_refused_with_the_largest_that_it_can(train):
    with pytest.raises(ValueError, match=r"vocab_size is 60000, and the text allows at most (\d+)") as caught:
        train(vocab_size=60000)
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert len(train(vocab_size=most)[1]) == most
    with pytest.raises(ValueError, match=f"at most {most}"):
        train(vocab_size=most + 1)
    assert len(train(vocab_size=most + 1, min_frequency=1)[1]) == most + 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 257}, "vocab_size is 257; the least is 258: 256 bytes and 2 special tokens"),
        ({"pad": "<|endoftext|>"}, "must be different"),
        ({"extra": ("",)}, "not empty"),
        ({"min_frequency": 0}, "min_frequency is 0"),
        ({"split": "pretrian"}, "unknown split 'pretrian'; did you mean 'pretrain'"),
        ({"split": "train"}, "has no column 'text'; it has prompt, completion"),
    ],
)
def test_bad_values_are_named(train, values, message):
    with pytest.raises(ValueError, match=message):
        train(**values)


def test_a_supervised_column_can_be_learned_from(train):
    assert len(train(split="train", field="prompt")[1]) == 500
