"""`tidemark revisions`, `lock` and `prefetch` against the stand-in: real commands, real workers, no network at the end."""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.commands import CUT_OFF, ROOT, Desk, tiny_model
from tests.hub.standin import TOKEN, Fault, Standin

STEPS = (0, 100, 1000, 2000, 4000)
REPO = "allenai/OLMo-2-0425-1B"
CHECKPOINT: dict[str, Any] = {"job": "download", "spec": {"repo": "olmo2-1b"}}
LOCKED = "`tidemark lock STUDY` looks it up"


def branch(step: int) -> str:
    return f"stage1-step{step}-tokens{-(-step * 2_097_152 // 10**9)}B"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """Step -> files."""
    folder = tmp_path_factory.mktemp("models")
    return {step: tiny_model(folder / str(step), step) for step in STEPS}


@pytest.fixture
def desk(hub: Standin, models: dict[int, dict[str, bytes]], tmp_path: Path) -> Iterator[Desk]:
    """A published run: five steps, two ingredients of stage 2, main."""
    for step, files in models.items():
        hub.push(REPO, branch(step), {**files, "optimizer.pt": bytes(20_000)})
    hub.push(REPO, "stage2-ingredient1-step500-tokens2B", {**models[0], "README.md": b"1"})
    hub.push(REPO, "stage2-ingredient2-step500-tokens2B", {**models[0], "README.md": b"2"})
    hub.push(REPO, "main", {**models[4000], "README.md": b"main"})
    hub.push(REPO, "convert-parquet", {"README.md": b"x"})
    yield Desk(tmp_path, hub)


def stages(select: Any, **more: Any) -> dict[str, Any]:
    return {"checkpoint": {**CHECKPOINT, "axes": {"step": {"select": select}}}, **more}


def steps(desk: Desk) -> list[Any]:
    """The values of the axis step, as the study is planned."""
    lock = json.loads((desk.folder / "study.lock").read_text())
    return [label for label, _ in lock["stages"]["checkpoint"]["axes"]["step"]]


def test_revisions_lists_what_is_there_and_what_is_not(desk: Desk, tmp_path: Path) -> None:
    said = desk.said("revisions", "olmo2-1b")
    assert "stage1-step1000-tokens3B" in said and "2.1B" in said
    assert f"8 revisions of {REPO}" in said and "1 branches are none: convert-parquet" in said
    (tmp_path / "list.csv").write_text(
        "Step,Checkpoint Directory\n2000,https://h/ai2-llm/x/step2000-unsharded/\n3000,https://h/ai2-llm/x/step3000-unsharded/\n"
    )
    found = desk.json("revisions", REPO, "--originals", tmp_path / "list.csv")
    places = {(r["stage"], r["step"]): (bool(r["branch"]), bool(r["url"])) for r in found["revisions"] if r["step"]}
    assert places[1, 2000] == (True, True) and places[1, 3000] == (False, True) and places[1, 100] == (True, False)
    assert found["revisions"][1]["commit"] == desk.hub.repositories["model", REPO].branches[branch(100)]
    desk.hub.push("org/x", "step5", {"README.md": b"x"})
    desk.hub.push("org/x", "ckpt_7", {"README.md": b"x"})
    assert "no list of originals of org/x is known" in desk.said(
        "revisions", "org/x", "--originals", "published", code=1
    )
    assert "1 branches are none: step5" in desk.said("revisions", "org/x", "--pattern", r"ckpt_(?P<step>\d+)")
    assert "has no group (?P<step>...)" in desk.said("revisions", "org/x", "--pattern", "step", code=1)
    assert "unknown model 'olmo2-1c'; did you mean 'olmo2-1b'" in desk.said("revisions", "olmo2-1c", code=1)


@pytest.mark.parametrize(
    ("select", "labels"),
    [({"every": 2000, "main": True}, [0, 2000, 4000, "main"]), ({"stage": 2, "ingredient": 2, "every": 1}, [500])],
)
def test_a_selection_is_locked_and_planned_without_a_network(desk: Desk, select: Any, labels: list[Any]) -> None:
    desk.write(stages(select))
    assert LOCKED in desk.said("plan", desk.study, code=1, before=CUT_OFF)
    said = desk.said("lock", desk.study)
    assert f"{len(labels)} to fetch" in said and "transformers reads them (olmo2)" in said
    assert steps(desk) == labels
    plan = desk.json("plan", desk.study)
    assert plan[0]["states"] == {"never-run": len(labels)} and plan[0]["axes"] == ["step"]


def test_a_branch_that_moves_changes_nothing_until_it_is_asked_to(desk: Desk, models: dict[int, Any]) -> None:
    desk.write(
        {**stages({"steps": [0, 100]}), "fixed": {**CHECKPOINT, "spec": {"repo": REPO, "revision": branch(100)}}}
    )
    desk.said("lock", desk.study)
    before = (desk.folder / "study.lock").read_text()
    assert before.count(desk.hub.repositories["model", REPO].branches[branch(100)]) == 2
    moved = desk.hub.push(REPO, branch(100), {**models[100], "README.md": b"moved"})
    requests = len(desk.hub.log)
    assert "checkpoint: as it was locked" in desk.said("lock", desk.study)
    assert len(desk.hub.log) == requests and (desk.folder / "study.lock").read_text() == before
    said = desk.said("lock", desk.study, "--update")
    assert "checkpoint: moved since it was locked: 100" in said and "fixed: moved since it was locked: spec" in said
    assert (desk.folder / "study.lock").read_text().count(moved) == 2


def test_branches_may_be_the_values_of_an_axis(desk: Desk) -> None:
    """As a list, as labels with fields, and as labels that are numbers, which JSON would make texts of."""
    old, new = branch(0), branch(1000)
    desk.study.write_text(
        "name: study\nstages:\n"
        f"  listed: {{job: download, spec: {{repo: {REPO}}}, axes: {{revision: [{old}, {new}]}}}}\n"
        f"  labelled: {{job: download, axes: {{at: {{start: {{repo: olmo2-1b, revision: {old}}}, end: {{repo: {REPO}}}}}}}}}\n"
        f"  numbered: {{job: download, spec: {{repo: {REPO}}}, axes: {{step: {{0: {{revision: {old}}}, 7: {{revision: {new}}}}}}}}}\n"
        "  copy: {job: convert, inputs: {source: {stage: numbered, step: 7}}}\n"
    )
    assert LOCKED in desk.said("plan", desk.study, code=1)
    desk.said("lock", desk.study)
    commits = desk.hub.repositories["model", REPO].branches
    lock = json.loads((desk.folder / "study.lock").read_text())["stages"]
    assert [fields["revision"] for _, fields in lock["listed"]["axes"]["revision"]] == [commits[old], commits[new]]
    assert [fields["revision"] for _, fields in lock["labelled"]["axes"]["at"]] == [commits[old], commits["main"]]
    assert [label for label, _ in lock["numbered"]["axes"]["step"]] == [0, 7]
    plan = {stage["stage"]: stage["states"] for stage in desk.json("plan", desk.study)}
    assert plan == {name: {"never-run": 2} for name in ("listed", "labelled", "numbered")} | {"copy": {"never-run": 1}}


def test_words_that_were_changed_since_are_refused(desk: Desk) -> None:
    desk.write({**stages({"steps": [0]}), "fixed": CHECKPOINT})
    desk.said("lock", desk.study)
    desk.said("plan", desk.study)
    said = desk.said("plan", desk.study, "--set", "checkpoint.step.select.steps=[0, 100]", code=1)
    assert "checkpoint.axes.step" in said and LOCKED in said
    said = desk.said("plan", desk.study, "--set", f"fixed.revision={branch(0)}", code=1)
    assert f"revision '{branch(0)}' of olmo2-1b is no commit" in said and LOCKED in said
    (desk.folder / "study.lock").write_text("{}")
    assert "study.lock is not a lock" in desk.said("plan", desk.study, code=1)


def test_a_wrong_selection_is_a_sentence_with_its_place(desk: Desk) -> None:
    for select, message in (
        ({"steps": [150]}, "steps: there is no step 150; the nearest are 0, 100, 1000, 2000"),
        ({"steps": [0], "originals": "none.csv"}, "there is no list of originals"),
    ):
        desk.write(stages(select))
        said = desk.said("lock", desk.study, code=1)
        assert message in said and "study.yaml:4: checkpoint: " in said
        assert not (desk.folder / "study.lock").exists()


def test_the_same_weights_under_two_names_are_refused_before_bytes_move(desk: Desk, models: dict[int, Any]) -> None:
    desk.hub.push(REPO, branch(3000), models[2000])
    desk.write(stages("all"))
    said = desk.said("lock", desk.study, code=1)
    assert (
        "the same weights under several names: 0, stage2-ingredient1-step500-tokens2B, stage2-ingredient2-step500-tokens2B; 2000, 3000;"
        in said
    )
    assert "4000, main" not in said, "main is the end of the run"
    assert desk.hub.sent("model.safetensors|blob") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config.json": b'{"model_type": "hf_olmo"}'}, ": 1000/config.json cannot be read: The checkpoint"),
        ({"tokenizer_config.json": None}, ": 1000 holds no tokenizer"),
        ({"model.safetensors": None}, f"{REPO}@"),
    ],
)
def test_what_transformers_cannot_read_is_refused_before_bytes_move(
    desk: Desk, models: dict[int, Any], change: dict[str, bytes | None], message: str
) -> None:
    files = {path: data for path, data in {**models[1000], **change}.items() if data is not None}
    desk.hub.push(REPO, branch(1000), files)
    desk.write(stages({"steps": [100, 1000]}))
    assert message in desk.said("lock", desk.study, code=1)
    assert desk.hub.sent("model.safetensors|blob") < 20_000, "at most a tokenizer"


def test_gated_repositories_and_tokens(desk: Desk, models: dict[int, Any]) -> None:
    commit = desk.hub.push("org/gated", "main", models[0], gated=True)
    desk.write({"base": {"job": "download", "spec": {"repo": "org/gated", "revision": commit}}})
    said = desk.said("prefetch", desk.study, code=3)
    assert "BAD_INPUT: org/gated is gated: open" in said and "log in with `hf auth login`, or set HF_TOKEN" in said
    assert "1 of 1" in desk.said("prefetch", desk.study, HF_TOKEN=TOKEN)
    held = subprocess.run(
        ["grep", "-rl", "-e", TOKEN, "-e", "X-Signature", str(desk.root)], capture_output=True, text=True
    )
    assert held.stdout == "", "neither a token nor a signed address is in a record or a log"


STUDY = stages(
    {"steps": [0, 1000], "main": True},
    copy={"job": "convert", "inputs": {"source": "checkpoint"}},
    rows={"job": "download", "spec": {"repo": "org/rows", "kind": "dataset", "files": ["data/*.parquet"]}},
    data={"job": "prepare", "inputs": {"files": "rows"}, "spec": {"dataset": "disk"}},
    sciq={"job": "download", "spec": {"repo": "allenai/sciq", "kind": "dataset"}},
    scores={
        "job": "evaluate",
        "inputs": {"model": {"stage": "checkpoint", "step": "main"}, "data": "sciq"},
        "spec": {"tasks": ["sciq"]},
    },
)
SCIQ = {"question": "Who?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "support": "It is d."}


@pytest.fixture
def rows(hub: Standin, tmp_path: Path) -> Path:
    from datasets import Dataset

    path = tmp_path / "train.parquet"
    Dataset.from_dict({"text": ["first", "second"]}).to_parquet(path)
    hub.push("org/rows", "main", {"data/train.parquet": path.read_bytes(), "README.md": b"x"}, kind="dataset")
    questions = "".join(json.dumps({**SCIQ, "correct_answer": answer}) + "\n" for answer in "de").encode()
    hub.push("allenai/sciq", "main", {f"{n}.jsonl": questions for n in ("train", "validation", "test")}, kind="dataset")
    return path


@pytest.mark.skipif(not CUT_OFF, reason="a network namespace of one's own needs root")
def test_after_prefetch_a_study_needs_no_network_at_all(desk: Desk, rows: Path, models: dict[int, Any]) -> None:
    desk.write(STUDY)
    desk.said("lock", desk.study)
    desk.hub.push("org/rows", "main", {"data/train.parquet": b"moved"}, kind="dataset")  # the commit counts, not this
    assert "5 of 5 models and data sets are there" in desk.said("prefetch", desk.study)
    requests = len(desk.hub.log)
    assert "nothing to fetch: all 5" in desk.said("prefetch", desk.study, before=CUT_OFF)
    assert "10 done" in desk.said("launch", desk.study, before=CUT_OFF)
    assert len(desk.hub.log) == requests
    first = next(record for record in desk.records() if record["provenance"]["coords"] == {"step": 1000})
    folder = next(desk.root.glob(f"artifacts/download/*-{first['fingerprint'][:12]}"))
    assert {n: (folder / n).read_bytes() for n in first["files"]} == models[1000]
    from toolkit.data.splits import open_data

    data = open_data(next((desk.root / "artifacts" / "prepare").iterdir()))
    assert list(data["train"]["text"]) == ["first", "second"]
    assert desk.records("evaluate")[0]["metrics"]["items"] == 2, "lm-eval read the pinned data set"
    said = desk.said("table", desk.study, "--rows", "step", "--cols", "stage", "--values", "state")
    assert "| main" in said and "| 1000" in said
    desk.said("report", desk.study)
    assert "0 damaged" in desk.said("verify")


def test_a_data_set_is_served_at_its_commit_or_refused(desk: Desk, rows: Path) -> None:
    desk.write({"rows": STUDY["rows"], "data": STUDY["data"]})
    desk.said("lock", desk.study)
    repository = desk.hub.repositories["dataset", "org/rows"]
    pinned = repository.branches["main"]
    desk.hub.push("org/rows", "main", {"data/train.parquet": b"another"}, kind="dataset")
    del repository.commits[pinned]
    assert "org/rows has no such revision" in desk.said("prefetch", desk.study, code=1)
    assert desk.records() == []


def test_a_killed_prefetch_goes_on_where_it_was(desk: Desk) -> None:
    size = 3_000_000
    content = {"data/a.bin": random.Random(0).randbytes(size), "data/b.bin": random.Random(1).randbytes(size)}
    commit = desk.hub.push("org/big", "main", content, kind="dataset")
    desk.write({"big": {"job": "download", "spec": {"repo": "org/big", "kind": "dataset", "revision": commit}}})
    desk.hub.pace = 0.01
    running = subprocess.Popen(
        desk.words("prefetch", desk.study), env=desk.env, cwd=desk.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while desk.hub.sent("blob") < size:
        time.sleep(0.01)
    group = os.getpgid(running.pid)
    os.killpg(group, 9)
    running.wait()
    desk.hub.pace = 0
    assert "1 of 1" in desk.said("prefetch", desk.study)
    made = desk.records()[0]
    assert {name: entry["size"] for name, entry in made["files"].items()} == {name: size for name in content}
    folder = next((desk.root / "artifacts" / "download").iterdir())
    assert {name: (folder / name).read_bytes() for name in content} == content
    assert desk.hub.sent("blob") < 2.2 * size


def test_no_room_is_told_before_bytes_move(tmp_path: Path) -> None:
    from toolkit.checkpoints.preflight import check_room

    check_room(tmp_path, 1000, 10)
    with pytest.raises(ValueError, match="1,000,000,000.0 GB are to be fetched and .* has room for"):
        check_room(tmp_path, 10**18, 10)
    with pytest.raises(ValueError, match="files are to be made"):
        check_room(tmp_path, 1000, 10**15)


def test_originals_are_selected_pinned_and_refused_when_they_change(desk: Desk) -> None:
    assert desk.hub.originals is not None
    lines = ["Step,Checkpoint Directory"]
    for step in (1000, 3000):
        folder = desk.hub.originals / "ai2-llm" / f"step{step}-unsharded"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("model: {}")
        (folder / "model.pt").write_bytes(bytes([step % 251]) * 30_000)
        lines.append(f"{step},{desk.hub.storage}/ai2-llm/step{step}-unsharded/")
    (desk.folder / "list.csv").write_text("\n".join(lines))
    desk.write(stages({"steps": [1000, 3000], "originals": "list.csv"}))
    desk.said("lock", desk.study)
    assert steps(desk) == [1000, 3000]
    fields = [
        fields
        for _, fields in json.loads((desk.folder / "study.lock").read_text())["stages"]["checkpoint"]["axes"]["step"]
    ]
    assert fields[0]["repo"] == REPO and fields[1]["original"].endswith("step3000-unsharded/"), "the Hub's format first"
    weights = desk.hub.originals / "ai2-llm" / "step3000-unsharded" / "model.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    assert "is not what was locked: its ETag is" in desk.said("prefetch", desk.study, code=1)
    weights.write_bytes(whole)
    desk.said("prefetch", desk.study)
    original = next(record for record in desk.records() if "original" in record["spec"])
    assert set(original["files"]) == {"config.yaml", "model.pt"}


def test_launch_fetches_as_well_and_a_node_without_network_says_what_to_do(desk: Desk) -> None:
    desk.write(stages({"steps": [0]}))
    desk.said("lock", desk.study)
    desk.hub.faults = lambda request: Fault(status=503) if request.number % 3 == 0 else None
    assert "1 done" in desk.said("launch", desk.study)


def test_the_study_of_the_checkout_plans_once_it_is_locked(desk: Desk, rows: Path, models: dict[int, Any]) -> None:
    text = (ROOT / "configs/studies/olmo2-1b.yaml").read_text()
    for step in (1, 10, 30_000, 40_000, 50_000):  # enough for eight
        weights = random.Random(step).randbytes(20_000)
        desk.hub.push(REPO, branch(step), {**models[0], "model.safetensors": weights})
    desk.hub.push("yahma/alpaca-cleaned", "main", {"alpaca_data_cleaned.json": b"[]"}, kind="dataset")
    desk.study.write_text(text)
    said = desk.said("lock", desk.study)
    assert "published: 9 to fetch" in said and "sciq: 1 to fetch" in said
    states = {stage["stage"]: stage["states"]["never-run"] for stage in desk.json("plan", desk.study)}
    assert states == {
        "published": 9, "checkpoint": 9, "alpaca": 1, "sciq": 1, "triples": 1, "tuned": 9, "likelihood": 18, "science": 36
    }  # fmt: skip
