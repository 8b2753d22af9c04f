"""The recipes instruct_synthesis and augment, and the data set context_qa, with a synthesizer trained here."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.toolkit.generation.tiny import context, save, train_model
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.data.datasets import context_qa
from toolkit.data.splits import Splits, open_split
from toolkit.generation.recipes import augment, instruct_synthesis
from toolkit.generation.synthesis import Marks, Pair, chain, write
from toolkit.stage import Artifact

TEXTS = ["Ada is in Rome.", "Bo is in Oslo.", "Cy is in Lima.", "Dee is in Bonn."]
PAIRS = [[Pair(question=f"Where is {t.split()[0]}?", answer=t.split()[-1])] for t in TEXTS]
MARK = Marks(first="", bos="", eos="<|end|>")


@pytest.fixture(scope="module")
def synthesizer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """It knows pairs about three of the texts, read alone or after another; about Dee it says nothing that is a pair."""
    known = [write(pairs) for pairs in PAIRS[:3]] + ["Nothing."]
    rows = [(chain([], text, MARK), answer) for text, answer in zip(TEXTS, known, strict=True)]
    rows += [(chain([(TEXTS[0], PAIRS[0])], TEXTS[2], MARK), known[2])]
    rows += [(chain([(TEXTS[1], PAIRS[1])], TEXTS[3], MARK), known[3])]
    folder = tmp_path_factory.mktemp("synthesizer")
    train_model(folder, [{"prompt": prompt, "completion": completion} for prompt, completion in rows], steps=120)
    return Artifact(path=folder)


def synthesize(model: Artifact, folder: Path, texts: list[str], **fields: Any) -> tuple[Artifact, dict[str, Any]]:
    data = save(folder / "texts", train=[{"text": text} for text in texts])
    processes = fields.pop("processes", 1)
    (folder / "out").mkdir()
    spec = instruct_synthesis.Spec(**{"recipe": "instruct_synthesis", "max_new_tokens": 40, "max_length": 120} | fields)
    inputs = instruct_synthesis.Inputs(model=model, data=data)
    metrics = instruct_synthesis.run(spec, inputs, folder / "out", context(folder / "state", processes=processes))
    return Artifact(path=folder / "out"), metrics


@pytest.mark.parametrize("processes", [1, 2])
def test_texts_become_chains_with_pairs(synthesizer: Artifact, tmp_path: Path, processes: int) -> None:
    made, metrics = synthesize(synthesizer, tmp_path, TEXTS, processes=processes)
    rows = open_split(made.path, "train").to_list()
    assert metrics == {"texts": 4, "pairs": 3, "without_pairs": 1, "chains": 3, "too_long": 0}
    found = [(row["chain"], row["text"], list(zip(row["questions"], row["answers"], strict=True))) for row in rows]
    ada, bo, cy = ([(pair.question, pair.answer) for pair in pairs] for pairs in PAIRS[:3])
    assert found == [(0, TEXTS[1], bo), (1, TEXTS[0], ada), (1, TEXTS[2], cy), (2, TEXTS[3], [])]


def test_texts_that_cannot_be_read(synthesizer: Artifact, tmp_path: Path) -> None:
    long = "Ada is in Rome. " * 40
    _, metrics = synthesize(synthesizer, tmp_path, [long, TEXTS[0]], shots=1)
    assert metrics["too_long"] == 1 and metrics["without_pairs"] == 1 and metrics["pairs"] == 1
    with pytest.raises(ValueError, match="row 1 of split 'train' has no text in 'text': ' '"):
        synthesize(synthesizer, tmp_path / "empty", [TEXTS[0], " "])
    with pytest.raises(ValueError, match="max_length 40 leaves nothing beside max_new_tokens 40"):
        instruct_synthesis.Spec(recipe="instruct_synthesis", max_new_tokens=40, max_length=40)


def corpus(folder: Path, model: Artifact, made: Artifact | None, **fields: Any) -> tuple[list[dict], dict[str, Any]]:
    raw = save(folder / "raw", train=[{"text": f"Raw {i}."} for i in range(5)])
    general = save(folder / "general", train=[{"prompt": f"Q{i}?", "completion": f" A{i}"} for i in range(60)])
    inputs: dict[str, Any] = {"data": made, "raw": raw, "general": general, "tokenizer": model}
    inputs |= {name: None for name in fields.pop("without", ())}
    (folder / "out").mkdir(parents=True)
    spec = augment.Spec(recipe="augment", **fields)
    metrics = augment.run(spec, augment.Inputs(**inputs), folder / "out", context(folder / "state"))
    return open_split(folder / "out", "train").to_list(), metrics


def test_what_is_mixed_stands_beside_the_augmented_texts(synthesizer: Artifact, tmp_path: Path) -> None:
    made, _ = synthesize(synthesizer, tmp_path / "made", TEXTS)
    rows, metrics = corpus(tmp_path / "scratch", synthesizer, made, without=("general", "tokenizer"))
    assert metrics == {"documents_augmented": 3, "documents_raw": 5, "documents_general": 0}
    kinds = {kind: [row["text"] for row in rows if row["kind"] == kind] for kind in ("augmented", "raw")}
    assert sorted(kinds["raw"]) == [f"Raw {i}." for i in range(5)], "raw text is unchanged"
    assert all(any(text in document for document in kinds["augmented"]) for text in TEXTS)
    assert TEXTS[3] in kinds["augmented"], "a text without pairs stands as it is"
    joined = next(document for document in kinds["augmented"] if TEXTS[0] in document)
    assert TEXTS[2] in joined and "Where is Cy?" in joined
    other, _ = corpus(tmp_path / "seed", synthesizer, made, without=("general", "tokenizer"), seed=7)
    assert other != rows


def test_general_instructions_are_as_many_tokens(synthesizer: Artifact, tmp_path: Path) -> None:
    made, _ = synthesize(synthesizer, tmp_path / "made", TEXTS)
    rows, metrics = corpus(tmp_path / "continual", synthesizer, made, without=("raw",))
    tokenizer = load_tokenizer(synthesizer.path)
    sizes = {
        kind: sum(len(tokenizer(r["text"])["input_ids"]) for r in rows if r["kind"] == kind)
        for kind in ("augmented", "general")
    }
    assert sizes == {"augmented": metrics["tokens_rest"], "general": metrics["tokens_general"]}
    assert abs(sizes["general"] - sizes["augmented"]) <= 8, "to the nearest row"
    chat, _ = corpus(tmp_path / "chat", synthesizer, None, without=("raw",), general_template="chat")
    assert {row["text"] for row in chat} == {f"<|user|>Q{i}?<|assistant|><|user|>A{i}<|assistant|>" for i in range(60)}
    with pytest.raises(ValueError, match="asks for .* tokens of general instructions, and there are only"):
        corpus(tmp_path / "few", synthesizer, made, without=("raw",), general_ratio=50.0)
    with pytest.raises(ValueError, match="give the input 'tokenizer'"):
        corpus(tmp_path / "none", synthesizer, made, without=("tokenizer",))
    with pytest.raises(ValueError, match="one of the inputs"):
        corpus(tmp_path / "nothing", synthesizer, None, without=("raw", "general"))


def rows_of(folder: Path, model: Artifact, inputs: dict[str, Artifact], **fields: Any) -> tuple[list[dict], dict]:
    splits = Splits(folder / "out" / "data")
    spec = context_qa.Spec(dataset="context_qa", **fields)
    metrics = context_qa.fill(spec, context_qa.Inputs(model=model, **inputs), splits, context(folder / "state"))
    splits.finish()
    return open_split(folder / "out", "train").to_list(), metrics


def test_a_synthesizer_is_tuned_on_every_text_of_a_chain(synthesizer: Artifact, tmp_path: Path) -> None:
    lines = [
        {"context": text, "question": f"{pair.question}{more}", "answer": pair.answer}
        for more in ("", " Say it.")
        for text, (pair,) in zip(TEXTS, PAIRS, strict=True)
    ]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = {"files": Artifact(path=tmp_path / "qa.jsonl")}
    rows, metrics = rows_of(tmp_path / "files", synthesizer, files, shots=2)
    assert metrics == {"pairs": 8, "texts_without_pairs": 0} and sorted(row["text"] for row in rows) == TEXTS
    for i, row in enumerate(rows):
        assert row["completion"].count("<QUE>") == 2 and row["completion"].endswith("</END>")
        begun = rows[i - 1]["prompt"] + rows[i - 1]["completion"] + MARK.eos if i % 2 else ""
        assert row["prompt"] == begun + f" <CON> {row['text']} </CON>\n\n", "as generation reads: alone, or after one"
    people = [{"prompt": "Where is Bo?\nAnswer:", "completion": " Oslo.", "person": "Bo"}]
    data = {"data": save(tmp_path / "people", pretrain=[{"text": text} for text in TEXTS], train=people)}
    rows, metrics = rows_of(tmp_path / "data", synthesizer, data)
    assert metrics == {"pairs": 1, "texts_without_pairs": 3}
    assert rows[0]["prompt"] + rows[0]["completion"] == chain([], TEXTS[1], MARK) + write(PAIRS[1])
    with pytest.raises(ValueError, match="either the input 'files' or the input 'data'"):
        rows_of(tmp_path / "none", synthesizer, {})
    with pytest.raises(ValueError, match="1 texts have pairs, and shots is 2"):
        rows_of(tmp_path / "few", synthesizer, data, shots=2)
