"""Tasks are found by name, joined with local data, and refused where their score would mean nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.task import Task

from tests.toolkit.generation.tiny import NAMES, Tiny, people, save
from toolkit.evaluation import names, tasks
from toolkit.evaluation.join import Given, Source
from toolkit.evaluation.names import OWN, own, shipped
from toolkit.evaluation.tasks import refuse_single_class


def load(name: str, data: Path | None, folder: Path, shots: int = 0, repo: str | None = None, **chosen: Any) -> Task:
    given = {"": Given(path=data, repo=repo)} if data is not None else {}
    return tasks.load([name], Source(data=given, **chosen), shots, 1234, folder).tasks[name]


def test_own_tasks_carry_the_name_of_their_file() -> None:
    assert {"bios_qa", "bios_qa_cloze", "piqa", "multiple_choice", "instructions", "instructions_likelihood"} <= set(
        own()
    )
    for path in OWN.glob("*.yaml"):
        assert re.search(rf"^(task|group): {path.stem}$", path.read_text(), re.M)


@pytest.mark.parametrize("name", ["sciq", "arc_easy", "gsm8k", "mmlu_anatomy", "hellaswag", "winogrande", "boolq"])
def test_shipped_tasks_are_the_ones_that_lm_eval_would_load(name: str) -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    path = shipped(name)
    assert path is not None and load_yaml(path, resolve_func=False)["task"] == name


def test_unknown_names_get_the_nearest(tiny: Tiny, tmp_path: Path) -> None:
    assert shipped("no_such_task_at_all") is None
    with pytest.raises(ValueError, match="unknown task 'bios_qaa'; did you mean 'bios_qa'.*piqa"):
        load("bios_qaa", tiny.people.path, tmp_path)
    with pytest.raises(ValueError, match="unknown task 'hellaswagg'; did you mean 'hellaswag'"):
        load("hellaswagg", None, tmp_path)


def test_own_tasks_need_data_and_built_in_ones_say_when_theirs_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bios_qa' scores the rows of the input 'data', and this stage has no such"):
        load("bios_qa", None, tmp_path)
    with pytest.raises(ValueError, match="the data of task 'sciq' cannot be read.*allenai/sciq"):
        load("sciq", None, tmp_path)
    with pytest.raises(ValueError, match="the data of task 'piqa' cannot be read.*baber/piqa"):
        load("piqa", None, tmp_path)


def test_a_downloaded_data_set_is_the_tasks_own_or_refused(tmp_path: Path) -> None:
    row = {"question": "Who?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "support": ""}
    folder = tmp_path / "sciq"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [json.dumps({**row, "correct_answer": f"{split} {i}"}) for i in range(4)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    task = load("sciq", folder, tmp_path / "joined", repo="allenai/sciq", shots=1)
    assert [doc["correct_answer"] for doc in task.eval_docs] == [f"test {i}" for i in range(4)]
    task = load("sciq", folder, tmp_path / "joined", repo="allenai/sciq", split="validation")
    assert task.eval_docs[0]["correct_answer"] == "validation 0"
    with pytest.raises(
        ValueError, match=r"'hellaswag' reads Rowan/hellaswag, and this stage has data \(a download of all"
    ):
        load("hellaswag", folder, tmp_path / "joined", repo="allenai/sciq")
    with pytest.raises(ValueError, match="'bios_qa' scores the rows .* no such input \\(it has data \\(a download of"):
        load("bios_qa", folder, tmp_path / "joined", repo="allenai/sciq")


def test_splits_and_columns_that_are_not_there(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bios_qa', data .*unknown split 'test'; valid: heldout, train"):
        load("bios_qa", tiny.people.path, tmp_path, split="test")
    with pytest.raises(ValueError, match="'multiple_choice' needs a column 'choices', and split 'heldout'"):
        load("multiple_choice", tiny.people.path, tmp_path, split="heldout")


def test_demonstrations_come_from_another_split(tiny: Tiny, tmp_path: Path) -> None:
    task = load("bios_qa", tiny.people.path, tmp_path, shots=3)
    known = {row["prompt"] for row in people(NAMES[:6])}
    for doc in task.eval_docs:
        context = task.fewshot_context(doc, 3)
        *shown, asked = context.split("\n\n")
        assert asked == doc["prompt"] and len(shown) == 3
        assert all(any(s.startswith(prompt + " ") and s.endswith(".") for prompt in known) for s in shown)


@pytest.mark.parametrize("splits", [{"shots_split": "heldout"}, {"split": "train"}])
def test_demonstrations_from_the_scored_split_are_refused(tiny: Tiny, tmp_path: Path, splits: dict[str, str]) -> None:
    with pytest.raises(
        ValueError, match="would take its demonstrations from .*, the split that is scored; set shots: 0"
    ):
        load("bios_qa", tiny.people.path, tmp_path, shots=1, **splits)
    assert load("bios_qa", tiny.people.path, tmp_path, shots=0, split="train")


def test_built_in_tasks_that_would_do_so_are_refused(tiny: Tiny, tmp_path: Path, monkeypatch: Any) -> None:
    def file(**more: Any) -> None:
        config = yaml.safe_load((tmp_path / "own" / "multiple_choice.yaml").read_text().replace("!function ", ""))
        config |= {"dataset_path": "json", "task": "mine", "custom_dataset": None, "fewshot_split": None} | more
        config["test_split"] = "validation"
        rows = tmp_path / "rows.jsonl"
        rows.write_text(
            "".join(f'{{"prompt": "p{i}", "choices": ["a", "b"], "gold_index": {i % 2}}}\n' for i in range(6))
        )
        config["dataset_kwargs"] = {"data_files": {"validation": str(rows)}, "cache_dir": str(tmp_path / "cache")}
        (root / "mine.yaml").write_text(yaml.safe_dump(config))

    root = tmp_path / "lm_eval" / "tasks" / "mine"
    root.mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "multiple_choice.yaml").write_text(own()["multiple_choice"].file.read_text())
    monkeypatch.setattr(names, "root", lambda: root.parent)
    file()
    assert load("mine", None, tmp_path / "state")
    with pytest.raises(ValueError, match="'mine' would take its demonstrations from 'validation'"):
        load("mine", None, tmp_path / "state", shots=2)
    file(num_fewshot=0, fewshot_config={"samples": [{"prompt": "q", "choices": ["a", "b"], "gold_index": 0}]})
    with pytest.raises(ValueError, match="'mine' is defined for 0 shots only, not 1"):
        load("mine", None, tmp_path / "state", shots=1)


def test_more_shots_than_rows(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'bios_qa': 13 shots, and 'train' has only 12 rows"):
        load("bios_qa", tiny.people.path, tmp_path, shots=13)


def test_a_single_gold_answer_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": " yes", "gold": "yes", "attribute": "x"} for i in range(5)]
    data = save(tmp_path / "same", heldout=rows, train=rows)
    with pytest.raises(ValueError, match="all 5 rows of 'bios_qa' have the same gold answer 'yes'"):
        load("bios_qa", data.path, tmp_path / "state")
    refuse_single_class("x", iter(["a"]))
    refuse_single_class("x", iter([]))
    refuse_single_class("x", iter(["a", "a", "b"]))


def test_the_right_choice_may_always_stand_in_one_place(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "choices": [f"a{i}", "b"], "gold_index": 0} for i in range(4)]
    data = save(tmp_path / "first", heldout=rows)
    assert load("multiple_choice", data.path, tmp_path / "state")


def test_nothing_is_written_into_the_data(tiny: Tiny, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in tiny.people.path.rglob("*")}
    load("bios_qa_cloze", tiny.people.path, tmp_path, shots=1)
    assert {p: p.stat().st_mtime_ns for p in tiny.people.path.rglob("*")} == before
