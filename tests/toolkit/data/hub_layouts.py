"""Small made-up files in the layout that each task data set has on the Hub: paths, columns and types as published.

Labels are numbers where the Hub has class labels, and the splits whose labels were not published have -1 (or nothing).
"""

import io
from collections.abc import Sequence
from typing import Any

WORDS = (
    "amber birch cedar delta ember flint grove heron inlet juniper kestrel larch maple nettle otter pine quartz".split()
)
Rows = list[dict[str, Any]]


def phrase(i: int, length: int = 6) -> str:
    return " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(length)).capitalize() + f" {i}."


def labelled(make: Any, count: int, labels: Sequence[Any]) -> Rows:
    return [make(i, labels[i % len(labels)]) for i in range(count)]


def glue_pair(first: str, second: str) -> Any:
    return lambda i, label: {first: phrase(i), second: phrase(i + 1), "label": label, "idx": i}


def mnli(i: int, label: int) -> dict[str, Any]:
    return {"premise": phrase(i), "hypothesis": phrase(i + 1), "label": label, "idx": i}


def gpt3nli(i: int, label: int) -> dict[str, Any]:
    return {"text_a": phrase(i), "text_b": phrase(i + 1), "label": label, "guid": i}


def paws(i: int, label: int) -> dict[str, Any]:
    return {"id": i, "sentence1": phrase(i), "sentence2": phrase(i + 1), "label": label}


def summary(document: str, short: str, *more: str) -> Any:
    return lambda i, _: {document: phrase(i, 40), short: phrase(i, 8), **{name: str(i) for name in more}}


def siqa(i: int, label: str) -> dict[str, Any]:
    answers = {f"answer{letter}": phrase(i + k, 3) for k, letter in enumerate("ABC")}
    return {"context": phrase(i), "question": f"What of {i}?", **answers, "label": label}


def sciq(i: int, _: Any) -> dict[str, Any]:
    wrong = {f"distractor{k}": f"wrong{k} {i}" for k in (3, 1, 2)}
    return {
        "question": f"Which is {i}?",
        **wrong,
        "correct_answer": f"{'zebra' if i % 2 else 'ant'} {i}",
        "support": phrase(i) if i % 3 else "",
    }


def tweet(i: int, answers: list[str]) -> dict[str, Any]:
    return {"Question": f"who is {i}?", "Answer": [f"{a} {i}" for a in answers], "Tweet": phrase(i), "qid": f"{i:032x}"}


def science(stem: str, **more: Any) -> Any:
    def make(i: int, key: str) -> dict[str, Any]:
        names = ["1", "2", "3", "4"] if key.isdigit() else ["A", "B", "C", "D"]
        choices = {"text": [f"answer {name} of {i}" for name in names], "label": names}
        return {"id": f"Q{i}", stem: phrase(i), "choices": choices, "answerKey": key, **more}

    return make


def swag(i: int, label: str) -> dict[str, Any]:
    return {
        "ind": i, "activity_label": "Cutting [title] wood", "ctx_a": phrase(i), "ctx_b": "THE man" if i % 2 else "",
        "ctx": "", "endings": [f"ends [step] {k}  in {i}." for k in range(4)], "source_id": "x", "split": "train",
        "split_type": "indomain", "label": label,
    }  # fmt: skip


def piqa(i: int, label: int) -> dict[str, Any]:
    return {"goal": phrase(i), "sol1": phrase(i + 1), "sol2": phrase(i + 2), "label": label}


def winogrande(i: int, answer: str) -> dict[str, Any]:
    return {"sentence": f"The {i} did not fit in the box because _ was large.", "option1": "one", "option2": "box",
            "answer": answer}  # fmt: skip


def boolq(i: int, answer: bool) -> dict[str, Any]:
    return {"question": f"is this {i}", "answer": answer, "passage": phrase(i, 20)}


def gsm8k(i: int, _: Any) -> dict[str, Any]:
    return {"question": phrase(i), "answer": f"Half is {i}/2=<<{i}/2={i / 2}>>{i / 2}.\nSo it is.\n#### {i},000"}


def alpaca(i: int, _: Any) -> dict[str, Any]:
    row = {"instruction": phrase(i), "input": phrase(i + 1) if i % 2 else "", "output": phrase(i + 2) if i else ""}
    return {**row, "text": "below"}


def tulu(i: int, _: Any) -> dict[str, Any]:
    turns = [("user", phrase(i)), ("assistant", phrase(i + 1))]
    turns = (
        turns if i % 3 else [("system", "Be short."), *turns, ("user", "And?"), ("assistant", "No."), ("user", "Ok.")]
    )
    return {"dataset": "flan_v2", "id": f"f{i}", "messages": [{"role": r, "content": c} for r, c in turns]}


def wiki(i: int, _: Any) -> dict[str, Any]:
    return {"id": str(i), "url": f"https://x.org/{i}", "title": f"Title {i}", "text": phrase(i, 50)}


NLI, TWO = (0, 1, 2), (0, 1)
MAIN, CONVERTED = "{config}/{split}-00000-of-00001.parquet", "{config}/{split}/0000.parquet"
# data set -> layout of the paths, config, split -> (maker of a row, labels)
LAYOUTS: dict[str, tuple[str, str, dict[str, tuple[Any, Sequence[Any]]]]] = {
    "mnli": (
        MAIN, "mnli",
        {"train": (mnli, (0, 1, 2, -1)), "validation_matched": (mnli, NLI), "validation_mismatched": (mnli, NLI),
         "test_matched": (mnli, (-1,)), "test_mismatched": (mnli, (-1,))},
    ),
    "rte": (MAIN, "rte", {s: (glue_pair("sentence1", "sentence2"), labels)
                          for s, labels in {"train": TWO, "validation": TWO, "test": (-1,)}.items()}),
    "gpt3nli": (MAIN, "data", {"train": (gpt3nli, NLI)}),
    "paws": (MAIN, "labeled_final", {s: (paws, TWO) for s in ("train", "validation", "test")}),
    "qqp": (MAIN, "qqp", {s: (glue_pair("question1", "question2"), labels)
                          for s, labels in {"train": TWO, "validation": TWO, "test": (-1,)}.items()}),
    "stsb": (MAIN, "stsb", {s: (glue_pair("sentence1", "sentence2"), labels)
                            for s, labels in {"train": (0.5, 3.5, 3.6, 5.0), "validation": (1.0, 4.2), "test": (-1.0,)}.items()}),
    "xsum": (CONVERTED, "default", {s: (summary("document", "summary", "id"), (0,)) for s in ("train", "validation", "test")}),
    "xlsum": (CONVERTED, "english", {s: (summary("text", "summary", "id", "url", "title"), (0,)) for s in ("train", "validation", "test")}),
    "cnn": (MAIN, "3.0.0", {s: (summary("article", "highlights", "id"), (0,)) for s in ("train", "validation", "test")}),
    "socialiqa": (CONVERTED, "default", {s: (siqa, ("1", "2", "3")) for s in ("train", "validation")}),
    "sciq_questions": (MAIN, "data", {s: (sciq, (0,)) for s in ("train", "validation", "test")}),
    "sciq": (MAIN, "data", {s: (sciq, (0,)) for s in ("train", "validation", "test")}),
    "tweetqa": (CONVERTED, "default", {"train": (tweet, (["a"],)), "validation": (tweet, (["a", "b"],)), "test": (tweet, ([],))}),
    "arc_easy": (MAIN, "ARC-Easy", {s: (science("question"), ("A", "3", "D")) for s in ("train", "validation", "test")}),
    "arc_challenge": (MAIN, "ARC-Challenge", {s: (science("question"), ("B", "1")) for s in ("train", "validation", "test")}),
    "openbookqa": (MAIN, "main", {s: (science("question_stem"), ("A", "C")) for s in ("train", "validation", "test")}),
    "hellaswag": (MAIN, "data", {"train": (swag, ("0", "3")), "validation": (swag, ("1", "2")), "test": (swag, ("",))}),
    "piqa": (MAIN, "data", {"train": (piqa, TWO), "validation": (piqa, TWO), "test": (piqa, (-1,))}),
    "winogrande": (CONVERTED, "winogrande_xl", {"train": (winogrande, "12"), "validation": (winogrande, "21"), "test": (winogrande, ("",))}),
    "boolq": (MAIN, "data", {s: (boolq, (True, False)) for s in ("train", "validation")}),
    "gsm8k": (MAIN, "main", {s: (gsm8k, (0,)) for s in ("train", "test")}),
    "alpaca": ("data/{split}-00000-of-00001-a09b74b3ef9c3b56.parquet", "", {"train": (alpaca, (0,))}),
    "tulu": ("data/{split}-{part:05d}-of-00003.parquet", "", {"train": (tulu, (0,))}),
    "wikipedia": ("20231101.en/{split}-{part:05d}-of-00041.parquet", "", {"train": (wiki, (0,))}),
}  # fmt: skip


def parquet(rows: Rows) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def hub_files(dataset: str, rows: int = 24) -> dict[str, bytes]:
    """Path -> content, with the configurations beside it that the repository has for other data sets."""
    pattern, config, splits = LAYOUTS[dataset]
    parts = 2 if "{part" in pattern else 1
    files = {"README.md": b"# a data set"}
    for split, (make, labels) in splits.items():
        made = labelled(make, rows, labels)
        for part in range(parts):
            path = pattern.format(config=config, split=split, part=part)
            files[path] = parquet(made[part::parts])
            if config not in ("", "data", "default"):
                other = pattern.format(config=f"other-{config}", split=split, part=part)
                files[other] = parquet([{"something": "else"}])
    return files
