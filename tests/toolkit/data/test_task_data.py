"""Task data sets in the layout that they have on the Hub, fetched from a stand-in of it at a pinned commit: what the rows
say, which splits there are, and labels that were never published."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import download
from tests.hub.standin import Standin
from tests.toolkit.data.conftest import SHARED
from tests.toolkit.data.hub_layouts import LAYOUTS, hub_files, parquet
from toolkit.checkpoints import pin
from toolkit.checkpoints.web import of_root
from toolkit.data import formats
from toolkit.data.splits import open_data
from toolkit.data.tasks import Spec, describe
from toolkit.lookup import find, names
from toolkit.spec import build
from toolkit.stage import Artifact, Context

TASKS = [name for name in LAYOUTS if name != "wikipedia"]


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a data set as the job download leaves it: what its ABOUT says, at the commit that was looked up."""
    folders: dict[str, Path] = {}

    def fetch(dataset: str) -> Path:
        if dataset not in folders:
            with pytest.MonkeyPatch.context() as patch, Standin() as standin:
                patch.setenv("HF_ENDPOINT", standin.url)
                folders[dataset] = _download(dataset, standin, tmp_path_factory.mktemp(dataset))
        return folders[dataset]

    return fetch


def _download(dataset: str, standin: Standin, root: Path) -> Path:
    about = describe(dataset)
    if about.revision != "main":
        standin.push(about.repo, "main", {f"{dataset}.py": b"raise SystemExit"}, kind="dataset")
    commit = standin.push(about.repo, about.revision, hub_files(dataset), kind="dataset")
    words = {"repo": about.repo, "kind": "dataset", "revision": about.revision, "files": list(about.files)}
    locked = pin.stage(of_root(root), {"spec": words, "axes": {}}, root)["spec"]
    assert locked["revision"] == commit
    out, state = root / "out", root / "work" / "cell" / "state"
    out.mkdir()
    state.mkdir(parents=True)
    download.run(build(download.Spec, locked), download.Inputs(), out, Context(state=state))
    return out


@pytest.fixture(scope="module")
def rows(fetched: Callable[[str], Path], make: Callable[..., Artifact]) -> Callable[..., Any]:
    """The splits that prepare makes of a download, with the metrics as `metrics`."""

    def prepare(dataset: str, **spec: Any) -> Any:
        artifact = make(dataset, {"files": fetched(dataset)}, **spec)
        data = open_data(artifact.path)
        data.metrics = artifact.record["metrics"]
        return data

    return prepare


def test_there_is_a_layout_for_every_task_data_set() -> None:
    modules = {name: find("toolkit.data.datasets", name, "dataset") for name in names("toolkit.data.datasets")}
    assert {name for name, module in modules.items() if hasattr(module, "ABOUT")} == set(LAYOUTS)


@pytest.mark.parametrize("dataset", TASKS)
def test_rows_as_published_become_rows_to_train_on_and_to_score(rows: Callable[..., Any], dataset: str) -> None:
    data, about = rows(dataset), describe(dataset)
    published = LAYOUTS[dataset][2]
    assert set(data) == set(published) - set(about.unlabelled) == set(about.rows)
    for name, split in data.items():
        assert len(split) == 24 - data.metrics[f"unlabelled_{name}"] == data.metrics[f"rows_{name}"]
        assert data.metrics[f"published_rows_{name}"] == about.rows[name]
        for row in split:
            for kind in ("", *(f"_{other}" for other in formats.paper(about.templates))):
                prompt, completion = row[f"prompt{kind}"], row[f"completion{kind}"]
                assert prompt and not prompt.endswith(" ") and completion.strip(), row
                assert completion.startswith(" ") != prompt.endswith("\n")
            assert row["template"] == "default" and row["gold"] == row["gold"].strip() != ""
            if row["choices"]:
                assert row["gold"] == row["choices"][row["gold_index"]]
        assert len({row["gold"] for row in split}) > 1


def test_the_papers_formats(rows: Callable[..., Any]) -> None:
    """As arXiv 2408.06663 feeds them (open_instruct/format_generalization.py there), but for the space at the end."""
    mnli = rows("mnli")["validation_matched"][1]
    one, two = mnli["premise"], mnli["hypothesis"]
    assert mnli["prompt"] == f"### Input_1: {one}\n ### Input_2: {two}\n ### Inference:"
    assert mnli["prompt_instruct"] == f"Consider the following texts: Text 1: {one} Text 2: {two} The relation is"
    assert mnli["prompt_inputoutput"] == f"{one} {two}" and mnli["completion"] == " neutral"
    paws = rows("paws")["test"][1]
    assert paws["prompt"].endswith("\n ### Paraphrase Classification:") and paws["completion_instruct"] == " yes"
    siqa = rows("socialiqa")["validation"][0]
    a, b, c = siqa["answers"]
    assert siqa["prompt"] == (
        f"### Input: {siqa['context']}\n ### Answer: Answer A: {a} Answer B: {b} Answer C: {c}\n ### Question:"
    )
    assert siqa["completion"] == f" {siqa['asked']}" and siqa["gold"] == siqa["asked"]
    assert siqa["prompt_instruct"] == (
        f"Given the context: {siqa['context']} And the answer: Answer A: {a} Answer B: {b} Answer C: {c} "
        "Generate a suitable question:"
    )
    tweet = rows("tweetqa")["train"][3]
    assert tweet["prompt"] == f"### Input: {tweet['context']}\n ### Answer: {tweet['answer']}\n ### Question:"


def test_labels_that_mean_something_else(rows: Callable[..., Any]) -> None:
    """RTE's second label is no label of MNLI; STS-B is yes above 3.5 and not at it; GSM8K's numbers have commas."""
    for row in rows("rte")["validation"]:
        others = ["not_entailment", "neutral", "contradiction"]
        assert row["accepted"] == (["entailment"] if row["gold"] == "entailment" else others)
    stsb = rows("stsb")["train"]
    assert {(row["score"], row["gold"]) for row in stsb} == {(0.5, "no"), (3.5, "no"), (3.6, "yes"), (5.0, "yes")}
    sums = rows("gsm8k")["test"][3]
    assert sums["gold"] == "3000" and "<<" not in sums["completion"] and sums["completion"].endswith("\n#### 3000")
    assert all(row["choices"] == sorted(row["choices"]) for row in rows("sciq")["test"])
    assert rows("hellaswag")["validation"][1]["context"].endswith(" The man")
    assert rows("tulu")["train"][0]["completion"] == " No."


@pytest.mark.parametrize("dataset", ["qqp", "stsb", "rte", "hellaswag", "tweetqa", "piqa"])
def test_labels_that_were_not_published_are_refused(rows: Callable[..., Any], dataset: str) -> None:
    with pytest.raises(
        ValueError, match=rf"none of the 24 rows of split 'test' of {dataset} has a gold answer: its lab"
    ):
        rows(dataset, splits=["test"])


def test_rows_without_a_label_are_left_out_and_counted(rows: Callable[..., Any]) -> None:
    data = rows("mnli", rows={"train": 10}, seed=3)
    assert data.metrics["unlabelled_train"] == 6 and data.metrics["source_rows_train"] == 24
    assert set(data["train"]["gold"]) == {"entailment", "neutral", "contradiction"} and len(data["train"]) == 10


def test_gold_of_a_single_class_is_refused(make: Callable[..., Artifact], tmp_path: Path) -> None:
    pairs = [{"sentence1": f"{i}", "sentence2": f"{i + 1}", "label": 1} for i in range(8)]
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(parquet(pairs))
    with pytest.raises(ValueError, match="all 8 rows of split 'test' of paws have the same gold answer"):
        make("paws", {"files": tmp_path})


def test_a_sample_is_seeded_and_demonstrations_are_other_rows(rows: Callable[..., Any]) -> None:
    one, two = (rows("gpt3nli", rows={"train": 12}, shots=6, seed=seed) for seed in (5, 5))
    other = rows("gpt3nli", rows={"train": 12}, shots=6, seed=6)
    assert one["train"]["guid" if "guid" in one["train"].column_names else "premise"] == two["train"]["premise"]
    assert one["train"]["premise"] != other["train"]["premise"]
    assert {len(one["train"]), len(one["shots"])} == {12, 6}
    assert not set(one["train"]["premise"]) & set(one["shots"]["premise"])
    # a split's sample does not depend on which other splits are taken
    alone = rows("paws", splits=["test"], rows={"test": 9})
    assert alone["test"]["prompt"] == rows("paws", rows={"test": 9, "train": 5})["test"]["prompt"]
    with pytest.raises(
        ValueError, match="split 'train' of gpt3nli has 24 labelled rows, too few for 20 beside 6 shots"
    ):
        rows("gpt3nli", rows={"train": 20}, shots=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"templates": ["can_we_infre"]}, "templates: unknown template 'can_we_infre'; did you mean 'can_we_infer'"),
        ({"rows": {"train": 0}}, "a sample has at least 1 row"),
        ({"splits": ["train"], "rows": {"tset": 4}}, "rows: unknown split 'tset'"),
        ({"templates": []}, "templates must name at least one"),
    ],
)
def test_a_wrong_spec_is_refused_when_it_is_planned(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Spec, {"dataset": "mnli", **fields})


def test_files_that_do_not_fit_are_named(make: Callable[..., Artifact], tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "train.jsonl").write_text('{"premise": "x", "hypothesis": "y", "label": "maybe"}\n')
    with pytest.raises(ValueError, match="notes.jsonl: its name does not tell its split"):
        make("mnli", {"files": tmp_path})
    with pytest.raises(ValueError, match=r"train.jsonl:1: unknown label 'maybe';? .*valid: 0, 1, 2, contradiction"):
        make("mnli", {"files": tmp_path}, files="train.jsonl")
    with pytest.raises(ValueError, match=r"notes.jsonl:1: there is no field 'premise'; the row has a"):
        make("mnli", {"files": tmp_path / "notes.jsonl"})
    with pytest.raises(ValueError, match="unknown split 'test'; valid: train|unknown split 'test'; did you mean"):
        make("mnli", {"files": tmp_path}, files="train.jsonl", splits=["test"])
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train-00000-of-00001.parquet").write_bytes(parquet([{"premise": "x"}]))
    with pytest.raises(ValueError, match="split 'train' is in several folders of .*: one, two"):
        make("mnli", {"files": tmp_path}, files="*/*.parquet")


def test_wikipedia(make: Callable[..., Artifact], fetched: Callable[[str], Path]) -> None:
    whole = make("wikipedia", {"files": fetched("wikipedia")}, headed=True, validation_fraction=0.25)
    assert {name: len(rows) for name, rows in open_data(whole.path).items()} == {"train": 18, "validation": 6}
    assert open_data(whole.path)["train"][0]["text"].startswith("Title ")
    part = make("wikipedia", {"files": fetched("wikipedia")}, rows=5, seed=1)
    assert len(open_data(part.path)["train"]) == 5 and part.record["metrics"]["source_rows"] == 24


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_made_up_rows_stand_in_for_every_data_set(make: Callable[..., Artifact], dataset: str) -> None:
    split = next(iter(describe(dataset).rows))
    toys = make("toys", {}, like=dataset, sizes={split: 12})
    data = open_data(make(dataset, {"files": toys.path}).path)["train" if dataset == "wikipedia" else split]
    assert len(data) == 12
    if dataset != "wikipedia":
        assert all(row["prompt"] and row["completion"].strip() for row in data) and len(set(data["gold"])) > 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_real_local_files(make: Callable[..., Artifact]) -> None:
    gsm8k = make("gsm8k", {"files": SHARED / "gsm8k_test.jsonl"})
    first = open_data(gsm8k.path)["test"][0]
    assert first["gold"] == "18" and gsm8k.record["metrics"]["source_rows_test"] == describe("gsm8k").rows["test"]
    piqa = make("piqa", {"files": SHARED}, files="piqa_valid.jsonl")
    labels = [int(line) for line in (SHARED / "piqa_valid_labels.lst").read_text().split()]
    assert open_data(piqa.path)["validation"]["gold_index"] == labels
    alpaca = make("alpaca", {"files": SHARED / "instructions_rasbt.json"}, rows={"train": 100})
    source = {
        (row["instruction"].strip(), row["output"].strip())
        for row in json.loads((SHARED / "instructions_rasbt.json").read_text())
    }
    found = open_data(alpaca.path)["train"]
    assert len(found) == 100 and {(row["instruction"], row["output"]) for row in found} <= source


def test_preferences(make: Callable[..., Artifact], tmp_path: Path) -> None:
    pairs = [
        {"instruction": f"Do {i}.", "input": "", "chosen": f"yes {i}", "rejected": f"no, never {i}"} for i in range(20)
    ]
    (tmp_path / "p.json").write_text(json.dumps(pairs))
    artifact = make("preferences", {"files": tmp_path}, template="plain", heldout_fraction=0.2)
    data = open_data(artifact.path)
    assert {name: len(rows) for name, rows in data.items()} == {"train": 16, "heldout": 4}
    row = data["train"][0]
    assert row["prompt"].endswith("\n\nAnswer:") and row["chosen"].startswith(" yes") and row["rejected"][0] == " "
    assert artifact.record["metrics"]["length_ratio"] == pytest.approx(2 / 3)
    (tmp_path / "p.json").write_text(json.dumps([*pairs, {"prompt": "x", "chosen": "same ", "rejected": "same"}]))
    with pytest.raises(ValueError, match=r"p.json\[20\]: the answers are equal, so that nothing is preferred"):
        make("preferences", {"files": tmp_path})
    kept = make("preferences", {"files": tmp_path}, drop_equal=True)
    assert kept.record["metrics"]["rows_dropped"] == 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_real_preferences(make: Callable[..., Artifact]) -> None:
    artifact = make("preferences", {"files": SHARED / "preferences_rasbt.json"}, drop_equal=True)
    rows = json.loads((SHARED / "preferences_rasbt.json").read_text())
    equal = sum(row["chosen"].strip() == row["rejected"].strip() for row in rows)
    assert artifact.record["metrics"]["rows_dropped"] == equal and artifact.record["metrics"]["rows_read"] == len(rows)
    assert sum(len(rows) for rows in open_data(artifact.path).values()) == len(rows) - equal


def test_a_seeded_fraction_of_a_corpus(make: Callable[..., Artifact], fetched: Callable[[str], Path]) -> None:
    corpus = make("wikipedia", {"files": fetched("wikipedia")}, validation_fraction=0.25)
    parts = [make("sample", {"data": corpus.path}, fraction=0.2, seed=seed) for seed in (0, 0, 1)]
    texts = [open_data(part.path)["train"]["text"] for part in parts]
    assert len(texts[0]) == 4 and texts[0] == texts[1] != texts[2]
    assert len(open_data(parts[0].path)["validation"]) == 6 and parts[0].record["metrics"]["source_rows"] == 18
    order = list(open_data(corpus.path)["train"]["text"])
    assert [order.index(text) for text in texts[0]] == sorted(order.index(text) for text in texts[0])
    with pytest.raises(ValueError, match="has 18 rows; 0 cannot be taken"):
        make("sample", {"data": corpus.path}, fraction=0.001)
