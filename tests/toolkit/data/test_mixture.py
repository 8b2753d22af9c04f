"""Mixtures: shares of a budget, the same rows for the same seed, and no row with text of an evaluation set in it."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import prepare
from tests.toolkit.data.conftest import run_job
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.data.contamination import COMMON, ngrams, read
from toolkit.data.datasets import mixture, packed
from toolkit.data.splits import Splits, open_data
from toolkit.spec import build
from toolkit.stage import Artifact, Context

SIZES = {"web": (400, 30), "wiki": (300, 60), "code": (200, 20)}  # rows, words a row


def text(rng: random.Random, words: int) -> str:
    return " ".join("".join(rng.choices("abcdefghij", k=4)) for _ in range(words)) + "."


def rows_of(artifact: Artifact, split: str = "train") -> list[dict[str, Any]]:
    return list(open_data(artifact.path)[split])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    rng, found = random.Random(0), {}
    for name, (rows, words) in SIZES.items():
        folder = tmp_path_factory.mktemp(name)
        splits = Splits(folder / "data")
        splits.add("train", {"text": [text(rng, words) for _ in range(rows)]})
        splits.finish()
        found[name] = Artifact(path=folder)
    return found


@pytest.fixture(scope="module")
def tokenizer(sources: dict[str, Artifact], make_tokenizer: Callable[..., Artifact]) -> Artifact:
    return make_tokenizer(sources["web"].path, split="train", vocab_size=400)


@pytest.fixture
def mix(tmp_path: Path) -> Callable[..., Artifact]:
    made = Counter[str]()

    def run(data: dict[str, Artifact], against: dict[str, Artifact] | None = None, **fields: Any) -> Artifact:
        made["mix"] += 1
        folder = tmp_path / str(made["mix"])
        (folder / "out").mkdir(parents=True)
        given = mixture.Inputs(data=data, against=against or {}, tokenizer=fields.pop("tokenizer", None))
        spec = build(mixture.Spec, {"dataset": "mixture", **fields})
        metrics = prepare.run(spec, given, folder / "out", Context(state=folder))
        return Artifact(path=folder / "out", record={"metrics": metrics})

    return run


def test_shares_of_a_budget_of_tokens(
    sources: dict[str, Artifact], tokenizer: Artifact, mix: Callable[..., Artifact]
) -> None:
    weights = {"web": 3, "wiki": 1.5, "code": 0.5}
    found = mix(sources, tokenizer=tokenizer, weights=weights, tokens="20k")
    tok, metrics = load_tokenizer(tokenizer.path), found.record["metrics"]
    counts = Counter[str]()
    for row in rows_of(found):
        counts[row["source"]] += len(tok(row["text"], add_special_tokens=False)["input_ids"]) + 1
    longest = max(len(tok(row["text"])["input_ids"]) + 1 for row in rows_of(found))
    for name, weight in weights.items():
        assert counts[name] == metrics[f"tokens_of_{name}"]
        assert 0 <= counts[name] - 20_000 * weight / 5 < longest, name
        mine = [row["text"] for row in rows_of(found) if row["source"] == name]
        assert len(set(mine)) == len(mine) == metrics[f"rows_of_{name}"]
        assert set(mine) <= set(open_data(sources[name].path)["train"]["text"])
    order = [row["source"] for row in rows_of(found)]
    assert order != sorted(order), "sources are mixed, not one after the other"


def test_the_seed_decides_and_the_other_sources_do_not(
    sources: dict[str, Artifact], mix: Callable[..., Artifact]
) -> None:
    one, two, other = (rows_of(mix(sources, weights={"web": 1, "code": 1}, rows=60, seed=s)) for s in (4, 4, 5))
    assert one == two != other
    alone = rows_of(mix(sources, weights={"code": 1}, rows=30, seed=4))
    assert {row["text"] for row in one if row["source"] == "code"} == {row["text"] for row in alone}


def test_a_source_that_is_too_small_is_read_again_only_if_it_may(
    sources: dict[str, Artifact], mix: Callable[..., Artifact]
) -> None:
    with pytest.raises(ValueError, match="source 'code' has 200 rows in 1 passes, and its share is 250: raise passes"):
        mix(sources, weights={"code": 1}, rows=250)
    twice = mix(sources, weights={"code": 1}, rows=250, passes=2)
    counts = Counter(row["text"] for row in rows_of(twice))
    assert set(counts.values()) == {1, 2} and len(counts) == 200
    assert twice.record["metrics"]["passes_of_code"] == 1.25


def planted(sources: dict[str, Artifact], folder: Path) -> tuple[dict[str, Artifact], Artifact, int]:
    """The sources, with rows that quote an evaluation set in another writing; that set; how many quote it."""
    rng = random.Random(7)
    heading = "Please read this short text with care and then say in a few words what it is all about:"
    questions = [f"{heading} {text(rng, 25)}" for _ in range(30)]
    splits = Splits(folder / "quiz" / "data")
    splits.add("train", {"prompt": ["not scored"] * 2, "completion": [" no", " yes"]})
    splits.add("test", {"prompt": [*questions, "Short?"], "completion": [" yes"] * 31})
    splits.finish()
    clean = list(open_data(sources["web"].path)["train"]["text"])
    quoting = [f"as they say: {q.split(':')[1].upper().replace(' ', '  ')} and so on" for q in questions[:9]]
    same_form = [f"{heading} {text(rng, 25)}" for _ in range(20)]
    splits = Splits(folder / "web" / "data")
    splits.add("train", {"text": [*clean, *quoting, *same_form]})
    splits.finish()
    return {**sources, "web": Artifact(path=folder / "web")}, Artifact(path=folder / "quiz"), len(quoting)


def test_rows_that_quote_an_evaluation_set_are_left_out_and_reported(
    sources: dict[str, Artifact], mix: Callable[..., Artifact], tmp_path: Path
) -> None:
    data, quiz, quoting = planted(sources, tmp_path)
    total = len(open_data(data["web"].path)["train"])
    found = mix(data, {"quiz": quiz}, weights={"web": 1}, rows=total - quoting, scored=["test"])
    metrics = found.record["metrics"]
    assert metrics["contaminated_by_quiz"] == metrics["dropped"] == quoting
    assert metrics["found_of_quiz"] == pytest.approx(9 / 31) and metrics["too_short_of_quiz"] == 1
    assert metrics["ngram"] == 13 and not [row for row in rows_of(found) if "as they say" in row["text"]]
    assert sum("Please read" in row["text"] for row in rows_of(found)) == 20, "a common form is no contamination"
    whole = mix(data, {"quiz": quiz, "wiki": sources["wiki"]}, weights={"web": 1}, rows=total - quoting)
    assert whole.record["metrics"]["too_short_of_quiz"] == 3 and whole.record["metrics"]["contaminated_by_wiki"] == 0
    with pytest.raises(ValueError, match="scored: .*unknown split 'tset'"):
        mix(data, {"quiz": quiz}, weights={"web": 1}, rows=9, scored=["tset"])
    with pytest.raises(ValueError, match=f"{quoting} of its rows left out, and its share is {total}"):
        mix(data, {"quiz": quiz}, weights={"web": 1}, rows=total)


def test_contamination_against_a_search_word_by_word() -> None:
    """The reference compares lists of words, n by n, with no digests."""
    rng = random.Random(3)

    def words(count: int) -> list[str]:
        return rng.choices(["a", "b", "c"], k=count)

    kept, others = [words(rng.randint(3, 9)) for _ in range(12)], [words(rng.randint(3, 30)) for _ in range(60)]
    for n in (4, 5, 6):
        evaluated = read((", ".join(row) for row in kept), n)
        windows = [{tuple(row[i : i + n]) for i in range(len(row) - n + 1)} for row in kept]
        common = {gram for gram, count in Counter(g for window in windows for g in window).items() if count > COMMON}
        hit = set()
        for row in others:
            mine = {tuple(row[i : i + n]) for i in range(len(row) - n + 1)} - common
            expected = {k for k, window in enumerate(windows) if window & mine}
            assert evaluated.found_in(ngrams(" ".join(row).upper(), n)) == bool(expected)
            hit |= expected
        assert evaluated.hit == hit and evaluated.too_short == sum(len(row) < n for row in kept)


def test_held_out_tasks_are_not_trained_on(sources: dict[str, Artifact], mix: Callable[..., Artifact]) -> None:
    nli = Artifact(path=sources["web"].path, record={"spec": {"dataset": "mnli"}})
    with pytest.raises(ValueError, match="source 'nli' is of the tasks 'nli', which are held out"):
        mix({"nli": nli}, weights={"nli": 1}, rows=10, heldout=["nli", "rte"])
    assert len(rows_of(mix({"nli": nli}, weights={"nli": 1}, rows=10, heldout=["rte"]))) == 10
    with pytest.raises(ValueError, match="source 'web' is a folder, of no kind of tasks"):
        mix(sources, weights={"web": 1}, rows=10, heldout=["nli"])


def test_what_does_not_go_together_is_refused(
    sources: dict[str, Artifact], tokenizer: Artifact, mix: Callable[..., Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="weights: unknown source 'wbe'; did you mean 'web'"):
        mix(sources, weights={"wbe": 1}, rows=5)
    with pytest.raises(ValueError, match="give either tokens or rows"):
        mix(sources, weights={"web": 1})
    with pytest.raises(ValueError, match="weights must be above 0"):
        mix(sources, weights={"web": 0}, rows=5)
    with pytest.raises(ValueError, match="a budget of rows needs none"):
        mix(sources, weights={"web": 1}, rows=5, tokenizer=tokenizer)
    _, quiz, _ = planted(sources, tmp_path)
    with pytest.raises(ValueError, match=r"these differ: web: text; quiz: prompt\+completion"):
        mix({**sources, "quiz": quiz}, weights={"web": 1, "quiz": 1}, rows=4)


def test_a_mixture_is_packed_with_every_document_in_its_bounds(
    sources: dict[str, Artifact], tokenizer: Artifact, mix: Callable[..., Artifact], tmp_path: Path
) -> None:
    mixed = mix(sources, tokenizer=tokenizer, weights={"web": 1, "wiki": 1}, tokens=6000)
    spec = build(
        packed.Spec, {"dataset": "packed", "split": "train", "sequence_length": 64, "document_boundaries": True}
    )
    done = run_job(prepare, spec, packed.Inputs, {"data": mixed.path, "tokenizer": tokenizer.path}, tmp_path)
    tok, metrics = load_tokenizer(tokenizer.path), mixed.record["metrics"]
    blocks = rows_of(done)
    whole = [token for block in blocks for token in block["input_ids"]]
    expected = [
        token
        for row in rows_of(mixed)
        for token in [*tok(row["text"], add_special_tokens=False)["input_ids"], tok.eos_token_id]
    ]
    assert len(expected) == metrics["tokens_of_web"] + metrics["tokens_of_wiki"] and whole == expected[: len(whole)]
    for block in blocks:
        for place, (token, position) in enumerate(zip(block["input_ids"], block["position_ids"], strict=True)):
            begins = place == 0 or block["input_ids"][place - 1] == tok.eos_token_id
            assert position == 0 if begins else position == block["position_ids"][place - 1] + 1, json.dumps(block)
