"""Packing against a plain reference in Python, supervised rows against TRL itself."""

import shutil
from itertools import chain

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import AutoConfig, PreTrainedTokenizerFast

from tests.toolkit.data.conftest import content
from toolkit.data import packing, splits
from toolkit.data.datasets.packed import Spec

LENGTH = 32


@pytest.fixture(scope="session")
def text(make, wikitext):
    return make("text", {"files": wikitext}, documents="paragraph", validation_fraction=0.1)


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer, text):
    return make_tokenizer(text.path, split="train", vocab_size=400)


@pytest.fixture(scope="session")
def people(make):
    return make("bios", {}, people=60, seed=1)


def load(artifact, split="train"):
    return load_from_disk(str(artifact.path / "data"))[split]


def reference(artifact, tokenizer, split="train", order=None):
    """Each document's ids and EOS, one list a document."""
    loaded = PreTrainedTokenizerFast.from_pretrained(str(tokenizer.path))
    texts = load(artifact, split)["text"][:]
    texts = texts if order is None else [texts[i] for i in order]
    return [loaded(t, split_special_tokens=True)["input_ids"] + [loaded.eos_token_id] for t in texts]


@pytest.fixture
def small_batches(monkeypatch):
    """Batches, record batches and shards so small that every border falls within the test's text."""
    monkeypatch.setattr(packing, "BATCH_BYTES", 700)
    monkeypatch.setattr(packing, "BATCH_ROWS", 7)
    monkeypatch.setattr(splits, "FLUSH_ROWS", 5)
    monkeypatch.setattr(splits, "SHARD_BYTES", 2000)


def test_blocks_are_the_documents_in_order_with_eos_between(make, text, tokenizer, small_batches):
    inputs = {"data": text.path, "tokenizer": tokenizer.path}
    artifact = make("packed", inputs, split="train", validation="validation", sequence_length=LENGTH)
    for split, prefix in (("train", ""), ("validation", "validation_")):
        ids = list(chain.from_iterable(reference(text, tokenizer, split)))
        rows, metrics = load(artifact, split), artifact.record["metrics"]
        assert set(map(len, rows["input_ids"])) == {LENGTH} and rows.features["input_ids"].feature.dtype == "int32"
        assert list(chain.from_iterable(rows["input_ids"])) == ids[: len(rows) * LENGTH]
        assert metrics[f"{prefix}tokens"] == len(rows) * LENGTH
        assert metrics[f"{prefix}tokens_dropped"] == len(ids) - len(rows) * LENGTH < LENGTH
        assert metrics[f"{prefix}documents"] == len(load(text, split))
    assert artifact.record["metrics"]["vocab_size"] == 400
    assert len(load(artifact).cache_files) > 3


def test_sizes_of_batches_do_not_change_the_rows(make, text, tokenizer, request):
    inputs = {"data": text.path, "tokenizer": tokenizer.path}
    values = {"split": "train", "sequence_length": LENGTH, "shuffle_seed": 3, "document_boundaries": True}
    first, again = (make("packed", inputs, **values) for _ in range(2))
    assert content(first) == content(again)
    request.getfixturevalue("small_batches")
    small = make("packed", inputs, **values)
    assert load(small)[:] == load(first)[:] and small.record["metrics"] == first.record["metrics"]


def test_positions_restart_with_documents_and_blocks(make, text, tokenizer, small_batches):
    inputs = {"data": text.path, "tokenizer": tokenizer.path}
    artifact = make("packed", inputs, split="train", sequence_length=LENGTH, document_boundaries=True)
    starts = []
    for document in reference(text, tokenizer):
        starts += [True] + [False] * (len(document) - 1)
    for i, found in enumerate(load(artifact)["position_ids"]):
        expected: list[int] = []
        for start in starts[i * LENGTH : (i + 1) * LENGTH]:
            expected.append(0 if start or not expected else expected[-1] + 1)
        assert found == expected


def test_a_budget_takes_a_seeded_choice_of_documents(make, text, tokenizer, small_batches):
    inputs = {"data": text.path, "tokenizer": tokenizer.path}
    values = {"split": "train", "sequence_length": LENGTH, "tokens": 1000}
    first, again, other = (make("packed", inputs, shuffle_seed=seed, **values) for seed in (0, 0, 1))
    assert first.record["metrics"]["tokens"] == 992 and len(load(first)) == 31
    assert content(first) == content(again)
    assert load(first)[:] != load(other)[:]
    plain = list(chain.from_iterable(reference(text, tokenizer)))[:992]
    assert list(chain.from_iterable(load(make("packed", inputs, **values))["input_ids"])) == plain
    found = list(chain.from_iterable(load(first)["input_ids"]))
    whole = {tuple(document) for document in reference(text, tokenizer)}
    assert tuple(found[: found.index(0) + 1]) in whole  # it begins with a whole document, which EOS (id 0) ends


def test_special_tokens_in_the_text_are_text_unless_asked_for(make, make_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one<|endoftext|>two " * 50)
    data = make("text", {"files": tmp_path / "a.txt"})
    tokenizer = make_tokenizer(data.path, split="train", vocab_size=270, bos="<|bos|>")
    inputs = {"data": data.path, "tokenizer": tokenizer.path}
    counts = {}
    for parse in (False, True):
        rows = load(make("packed", inputs, split="train", sequence_length=2, bos=True, parse_special=parse))
        ids = list(chain.from_iterable(rows["input_ids"]))
        assert ids[0] == 2  # eos, pad, bos
        counts[parse] = ids.count(0)
    assert counts[False] <= 1 and counts[True] >= 50


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'"),
        ({"field": "body"}, "has no column 'body'; it has text"),
        ({"tokens": 10**9}, "has only \\d+ tokens, which is less than tokens 1000000000"),
        ({"sequence_length": 10**8}, "less than one block of sequence_length 100000000"),
        ({"bos": True}, "has no bos_token"),
    ],
)
def test_wrong_requests_are_explained(make, text, tokenizer, values, message):
    inputs = {"data": text.path, "tokenizer": tokenizer.path}
    with pytest.raises(ValueError, match=message):
        make("packed", inputs, **{"split": "train", "sequence_length": LENGTH, **values})


def test_wrong_artifacts_are_refused(make, text, tokenizer, tmp_path):
    values = {"split": "train", "sequence_length": LENGTH}
    with pytest.raises(ValueError, match="holds no data set"):
        make("packed", {"data": tmp_path, "tokenizer": tokenizer.path}, **values)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        make("packed", {"data": text.path, "tokenizer": text.path}, **values)


def test_a_tokenizer_that_transformers_would_read_in_another_way_is_refused(make, text, tokenizer, tmp_path):
    shutil.copytree(tokenizer.path, tmp_path / "model")
    inputs = {"data": text.path, "tokenizer": tmp_path / "model"}
    AutoConfig.for_model("olmo2", vocab_size=400).save_pretrained(tmp_path / "model")
    make("packed", inputs, split="train", sequence_length=LENGTH)
    AutoConfig.for_model("qwen2", vocab_size=400).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="as Qwen2Tokenizer, which gives other ids than the tokenizer.json"):
        make("packed", inputs, split="train", sequence_length=LENGTH)


@pytest.mark.parametrize(
    ("column", "message"),
    [(pa.array(["a", None]), "rows without a text"), (pa.array([1, 2]), "column 'text' of split train is no text")],
)
def test_columns_without_text_are_refused(make, tokenizer, tmp_path, column, message):
    DatasetDict({"train": Dataset(pa.table({"text": column}), split="train")}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(ValueError, match=message):
        make("packed", {"data": tmp_path, "tokenizer": tokenizer.path}, split="train", sequence_length=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sequence_length": 1}, "sequence_length is 1"),
        ({"tokens": 3}, "tokens is 3, less than one block"),
        ({"validation": "train"}, "both 'train'"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Spec(**{"dataset": "packed", "split": "train", "sequence_length": 8, **values})
