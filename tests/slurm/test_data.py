"""`tidemark data`: the list is that of the modules; what is shown is what a training run would get."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from slurm import data
from tests.toolkit.training.small import tokenizer
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.training.turns import renderer

ROOT = Path(__file__).parents[2]
ROWS = [{"goal": f"Open jar {i}", "sol1": "Turn the lid", "sol2": "Shout at it", "label": i % 2} for i in range(6)]
LINE = re.compile(r"^ *(\d+) +(\d+) +(.+?) +(loss|·)\s*$", re.M)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "piqa").mkdir()
    (folder / "piqa" / "valid.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    tokenizer(folder / "tokenizer", chat=True)
    return folder


ENV = {"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def test_list_names_them_all(folder: Path) -> None:
    command = [sys.executable, "-m", "slurm.cli", "data", "list", "--json"]
    done = subprocess.run(command, capture_output=True, check=True, env={**ENV, "PYTHONPATH": str(ROOT)})
    found = json.loads(done.stdout)
    assert len(found) >= 24 and found["qqp"]["unlabelled"] == ["test"] and found["gsm8k"]["rows"]["test"] == 1319


def test_list_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    data.list_(as_json=False)
    told = capsys.readouterr().out
    assert "allenai/tulu-v2-sft-mixture" in told and "worked: 4" in told


def shown(capsys: pytest.CaptureFixture[str], folder: Path, dataset: str = "piqa", **words: Any) -> str:
    """What the command prints, called as typer calls it."""
    given = {"files": folder / "piqa", "tokenizer": folder / "tokenizer", **words}
    data.show(dataset, **given)
    return capsys.readouterr().out


@pytest.mark.parametrize("chat", [False, True])
def test_show_prints_the_tokens_and_the_mask_of_training(
    folder: Path, capsys: pytest.CaptureFixture[str], chat: bool
) -> None:
    told = shown(capsys, folder, template="lettered", chat=chat, whole=True)
    tok = load_tokenizer(folder / "tokenizer")
    text = "Goal: Open jar 0\nA. Turn the lid\nB. Shout at it\nWhich way works? Answer with a letter:"
    ((prompt, completion),) = renderer(tok, "chat" if chat else "plain")({"prompt": [text], "completion": [" A"]})
    lines = LINE.findall(told)
    assert [int(token) for _, token, _, _ in lines] == prompt + completion
    assert [loss for *_, loss in lines] == ["·"] * len(prompt) + ["loss"] * len(completion)
    assert told.count("'<eos>'") == 1 and f"{len(prompt)} tokens of prompt" in told


def test_show_says_what_is_cut_and_refuses_what_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "max_length 8 tokens: it is dropped" in shown(capsys, folder, max_length=8)
    assert "more ..." in shown(capsys, folder, template="lettered")
    with pytest.raises(ValueError, match="unknown template 'letterd'; did you mean 'lettered'"):
        shown(capsys, folder, template="letterd")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        shown(capsys, folder, split="test")
    with pytest.raises(ValueError, match="instructions: say with --files"):
        shown(capsys, folder, "instructions", files=None)


def test_show_without_files_makes_rows_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, folder, "mnli", template="can_we_infer", files=None, split="validation_matched")
    assert "made-up rows in the fields of mnli; --files shows its own" in told
    assert "template 'can_we_infer', gold 'Yes'" in told and LINE.findall(told)[-1][3] == "loss"


def test_show_files_of_no_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Count to {i}.", "output": f"{i}"} for i in range(20)]
    (folder / "own.json").write_text(json.dumps(rows))
    told = shown(capsys, folder, "instructions", files=folder / "own.json", template="plain", rows=2)
    assert "row 1" in told and told.count("'<eos>'") == 2


def test_show_a_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = "{job: prepare, inputs: {files: {path: piqa}}, spec: {dataset: piqa, templates: [which_works]}}"
    (folder / "s.yaml").write_text(f"name: s\nstages:\n  goals: {stage}\n")
    words = {"files": None, "stage": "goals", "root": folder / "runs"}
    with pytest.raises(ValueError, match="goals is not made yet: `tidemark launch"):
        shown(capsys, folder, str(folder / "s.yaml"), **words)
    command = [sys.executable, "-m", "slurm.cli", "launch", "s.yaml"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env={**ENV, "PYTHONPATH": str(ROOT)})
    assert "template 'which_works'" in shown(capsys, folder, str(folder / "s.yaml"), **words)
