"""The commands as a user and a script meet them: what they print, how they exit, what they import."""

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.lab import HOME, QUIET, Lab

COMMANDS = (
    "plan", "launch", "status", "why", "logs", "cancel", "table", "report", "compare", "check", "figure", "usage",
    "verify", "adopt", "clean", "doctor", "revisions", "lock", "prefetch",
)  # fmt: skip
CHAIN: dict[str, Any] = {
    "first": {"job": "probe", "axes": {"seed": [1, 2]}},
    "second": {"job": "probe", "inputs": {"one": "first"}},
}
BIOS = {"people": {"job": "prepare", "spec": {"dataset": "bios", "people": 4}}}


def artifact(lab: Lab, stage: str) -> Path:
    return next(
        path.parent for path in lab.root.glob("artifacts/*/*/artifact.json")
        if json.loads(path.read_text())["provenance"].get("stage") == stage
    )  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(lab: Lab, command: str) -> None:
    said = lab.said(command, "--help")
    assert f"Example: tidemark {command}" in said
    assert "--root" in said and "TIDEMARK_ROOT" in said


def test_help_lists_the_commands_and_a_typo_is_told(lab: Lab) -> None:
    said = lab.said("--help")
    assert all(f" {command} " in said for command in COMMANDS)
    assert "No such command 'lanch'" in lab.said("lanch", code=2)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """The script that a shell sources, and what it is then told for `tidemark la<TAB>`."""
    tidemark = str(Path(sys.executable).with_name("tidemark"))
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([tidemark, "--show-completion", shell], env=env, capture_output=True, text=True, check=True)
    assert "_TIDEMARK_COMPLETE" in done.stdout
    if shell == "bash":
        env |= {"_TIDEMARK_COMPLETE": "complete_bash", "COMP_WORDS": "tidemark la", "COMP_CWORD": "1"}
        done = subprocess.run([tidemark], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["launch"]


def test_what_is_light_imports_nothing_heavy(lab: Lab) -> None:
    """After each command, in its own process: which modules it loaded."""
    study = lab.study(BIOS)
    lab.run("launch", study)
    look = (
        "import sys; from slurm import cli; sys.argv[1:] = {words!r}\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('loaded', *sorted({{'torch', 'transformers', 'datasets', 'deepspeed', 'trl'}} & set(sys.modules)))"
    )
    env = {**os.environ, **QUIET, "PYTHONPATH": str(lab.house), "TIDEMARK_ROOT": str(lab.root)}
    for words in (["--help"], ["plan", study], ["status", study], ["status", study, "--json"], ["table", study],
                  ["report", study], ["usage", study], ["plan", study, "--cost", "--cluster", "h100x8"],
                  ["why", study, "people"], ["logs", study, "people"], ["verify"],
                  ["launch", study]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", look.format(words=words)], env=env, cwd=lab.folder, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].split() == ["loaded"], words


def test_plan_tells_new_cached_and_drifted_and_why(lab: Lab) -> None:
    study = lab.study(CHAIN)
    fresh = {stage["stage"]: stage for stage in lab.json("plan", study)}
    assert fresh["second"]["states"] == {"never-run": 2} and fresh["second"]["inputs"] == ["first"]
    assert (fresh["first"]["axes"], fresh["second"]["axes"]) == (["seed"], ["seed"])
    lab.run("launch", study)
    assert [stage["states"] for stage in lab.json("plan", study)] == [{"done": 2}, {"done": 2}]
    assert [stage["differences"] for stage in lab.json("plan", study)] == [{}, {}]

    changed = lab.json("plan", study, "--set", "second.do=refuse")
    assert changed[1]["states"] == {"never-run": 2} and changed[1]["differences"] == {"do: - -> refuse": 2}
    more = lab.json("plan", study, "--set", "first.seed=[1, 2, 3]")
    assert more[0]["states"] == {"done": 2, "never-run": 1}
    said = lab.said("plan", study, "--set", "first.do=refuse")
    assert "do: - -> refuse first (2 cells)" in said and "input one: another first second (2 cells)" in said

    path = artifact(lab, "first") / "artifact.json"  # as another version of the code would have left it
    record = json.loads(path.read_text())
    record["provenance"]["identity"]["code"] = "0123456789ab"
    record["provenance"]["identity"]["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    first, second = lab.json("plan", study)
    assert (first["drifted"], second["drifted"]) == (1, 0)
    lines = list(first["differences"])
    assert any(line.startswith("code: 0123456789ab -> ") for line in lines)
    assert any(line.startswith("packages.torch: 1.0 -> ") for line in lines)
    words = lab.run("plan", study).stdout.splitlines()
    assert words[0].split()[:6] == ["stage", "job", "cells", "new", "cached", "drifted"]
    assert words[1].split()[:6] == ["first", "probe", "2", "·", "1", "1"]


def test_plan_graph_is_xml_with_every_stage(lab: Lab) -> None:
    file = lab.folder / "graph.svg"
    lab.run("plan", lab.study({**CHAIN, "odd<&>name": {"job": "probe"}}), "--graph", file)
    tree = ET.parse(file).getroot()
    assert tree.tag == "{http://www.w3.org/2000/svg}svg"
    texts = " ".join("".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text"))
    assert all(name in texts for name in ("first", "second", "odd<&>name"))


def test_a_wrong_study_is_a_sentence_and_exit_1(lab: Lab) -> None:
    study = lab.study({"rows": {"job": "prepar", "spec": {}}})
    said = lab.said("plan", study, code=1)
    assert "unknown job 'prepar'; did you mean 'prepare'?" in said and f"{study}:" in said
    assert "Traceback" not in said
    assert "no study file" in lab.said("status", lab.folder / "nothing.yaml", code=1)
    good = lab.study(CHAIN)
    assert "--set frist.seed=[1]: unknown stage 'frist'" in lab.said("plan", good, "--set", "frist.seed=[1]", code=1)
    assert "'second' is 2 cells; choose one: second[seed=1], second[seed=2]" in lab.said("why", good, "second", code=1)
    assert "did you mean 'second[seed=1]'" in lab.said("why", good, "second[sed=1]", code=1)
    assert "was never run" in lab.said("logs", good, "second[seed=1]", code=1)
    assert "nothing is in its way" in lab.said("why", good, "first[seed=1]")
    assert "waits for first[seed=2]" in lab.said("why", good, "second[seed=2]")


def test_a_cell_is_found_by_name_and_by_digits(lab: Lab) -> None:
    study = lab.study(CHAIN)
    lab.run("launch", study)
    said = lab.said("why", study, "second[ seed=2 ]")
    assert "second[seed=2] is done" in said
    print_ = json.loads((artifact(lab, "second") / "artifact.json").read_text())["fingerprint"]
    assert " is done" in lab.said("why", study, print_[:8])
    assert "the probe is told to do nothing" in lab.said("logs", study, print_[:8])


def test_logs_follow_an_attempt_and_the_next(lab: Lab) -> None:
    study = lab.study({"slow": {"job": "probe", "spec": {"do": "wait"}}})
    launch = lab.start("launch", study)
    child = lab.child("slow")
    logs = lab.start("logs", study, "slow", "-f")
    assert "told to wait" in str(logs.stdout and logs.stdout.readline())
    os.kill(child, 9)
    lab.child("slow", attempt=2)
    assert "told to wait" in str(logs.stdout and logs.stdout.readline()), "the second attempt has a log of its own"
    lab.release()
    assert launch.wait(60) == 0
    logs.kill()


def test_verify_sees_what_changed_on_disk(lab: Lab) -> None:
    study = lab.study(CHAIN)
    lab.run("launch", study)
    assert "4 artifacts, 0 damaged" in lab.said("verify")
    folder = artifact(lab, "second")
    note = folder / "note.txt"
    text = note.read_text()
    for damage, quick, problem in (
        ("x" + text[1:], False, "note.txt: digest xxh3:"),
        (text[:-1], True, f"note.txt: {len(text) - 1} bytes, recorded {len(text)}"),
    ):
        note.chmod(0o644)
        note.write_text(damage)
        said = lab.said("verify", study, code=3)
        assert f"{folder.relative_to(lab.root)}: {problem}" in said
        assert "4 artifacts, 1 damaged" in said and "move each damaged folder away and launch again" in said
        assert lab.run("verify", "--quick", code=3 if quick else 0)
    note.write_text(text)
    (folder / "extra.txt").write_text("more")
    assert "extra.txt: not in the record" in lab.said("verify", code=3)
    told = json.loads(lab.run("verify", study, "--json", code=3).stdout)
    assert told == {
        "artifacts": 4,
        "dropped": 0,
        "damaged": {str(folder.relative_to(lab.root)): ["extra.txt: not in the record"]},
    }
    (folder / "extra.txt").unlink()
    record = folder / "artifact.json"
    record.write_text(record.read_text().replace('"seed"', '"sead"'))
    assert "artifact.json: changed since it was written" in lab.said("verify", code=3)
    record.write_text("{")
    assert "artifact.json cannot be read" in lab.said("verify", code=3)
    assert "damaged" in lab.said("plan", study)
    folder.rename(folder.with_name(folder.name + ".damaged"))  # the remedy that the message names
    lab.run("launch", study)
    assert lab.json("status", study)["stages"]["second"]["done"] == 2
    assert "4 artifacts, 0 damaged" in lab.said("verify", study)


def test_a_damaged_input_fails_what_reads_it_as_upstream(lab: Lab) -> None:
    study = lab.study(CHAIN)
    lab.run("launch", study, "--set", "second.do=refuse", code=3)
    path = artifact(lab, "first") / "artifact.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    said = lab.run("launch", study, code=3).stdout
    assert "UPSTREAM" in said and "has format 99: update this Tidemark" in said


def test_adopt_records_files_where_they_are(lab: Lab) -> None:
    model = lab.folder / "My Model (v2)"
    model.mkdir()
    (model / "weights.bin").write_bytes(b"\1" * 1000)
    first = lab.run("adopt", model).stdout.split()
    assert first == lab.run("adopt", model).stdout.split(), "twice is once"
    folder = Path(first[0])
    assert folder.parent == lab.root / "artifacts" / "folder" and folder.name.startswith("My-Model-v2-")
    assert [path.name for path in folder.iterdir()] == ["artifact.json"], "nothing is copied"
    study = lab.study({"weights": {"path": str(model)}, "use": {"job": "probe", "inputs": {"one": "weights"}}})
    assert lab.json("plan", study)[0]["states"] == {"done": 1}
    lab.run("launch", study)
    (model / "weights.bin").write_bytes(b"\2" * 1000)
    assert "weights.bin: digest" in lab.said("verify", code=3)
    assert [stage["states"] for stage in lab.json("plan", study)] == [{"never-run": 1}, {"never-run": 1}]
    assert "there is no" in lab.said("adopt", lab.folder / "My Modle", code=1)


def test_clean_lists_and_asks_and_keeps_what_is_needed(lab: Lab) -> None:
    study = lab.study({**CHAIN, "bad": {"job": "probe", "spec": {"do": "refuse"}}})
    lab.run("launch", study, code=3)
    lab.run("launch", study, "--set", "second.do=refuse", code=3)
    old = {path.parent for path in lab.root.glob("artifacts/*/*/artifact.json")}
    trash = lab.root / "work" / ".trash-1"
    trash.mkdir()
    (trash / "big").write_bytes(b"\0" * 3_000_000)

    said = lab.said("clean", answer="n\n")
    assert "3.0 MB work/.trash-1" in said and "in 1 folders" in said and "free it?" in said
    assert trash.exists(), "the answer was no"
    lab.run("clean", answer="y\n")
    assert not trash.exists()
    failed = [path for path in (lab.root / "work").iterdir()]
    assert failed, "logs of what failed and the state to resume from are kept"

    listed = lab.run("clean", "--unused", "--yes").stdout
    gone = {path for path in old if not path.exists()}
    assert {path.name for path in gone} == {line.split("/")[-1] for line in listed.splitlines()[:-1]}
    kept = [json.loads((path / "artifact.json").read_text())["provenance"]["stage"] for path in old - gone]
    assert sorted(kept) == ["first", "first"], "what the latest launch names"
    assert "in 0 folders" in lab.said("clean", "--unused")
    assert "0 damaged" in lab.said("verify")


def test_clean_keeps_what_a_needed_artifact_was_made_from(lab: Lab) -> None:
    """Another study names some of the same cells; its launch had nothing to run, and is known all the same."""
    lab.run("launch", lab.study(CHAIN))
    lab.run("launch", lab.study({"first": {"job": "probe", "axes": {"seed": [1]}}, "second": CHAIN["second"]}, "other"))
    lab.run("launch", lab.study({"another": {"job": "probe", "spec": {"seed": 9}}}))  # `lab` moved on
    lab.run("clean", "--unused", "--yes")
    left = [json.loads(path.read_text()) for path in lab.root.glob("artifacts/*/*/artifact.json")]
    assert sorted((r["provenance"]["stage"], r["spec"].get("seed")) for r in left) == [
        ("another", 9), ("first", 1), ("second", None)
    ]  # fmt: skip


def test_table_and_report(lab: Lab) -> None:
    study = lab.study({**CHAIN, "bad": {"job": "probe", "spec": {"do": "refuse"}, "inputs": {"one": "first"}}})
    missing = lab.run("table", study, "--format", "csv").stdout.splitlines()
    assert len(missing) == 7 and all("never-run" in line for line in missing[1:]), "a cell that was not run is a row"
    lab.run("launch", study, code=3)
    csv = lab.run("table", study, "--format", "csv", "--where", "stage=bad").stdout.splitlines()
    assert len(csv) == 3 and all('"failed","BAD_INPUT"' in line for line in csv[1:])
    pivot = lab.run("table", study, "--rows", "seed", "--cols", "stage", "--values", "state").stdout
    assert [cell.strip() for cell in pivot.splitlines()[2].split("|")[1:-1]] == ["1", "done", "done", "failed"]
    assert "\\begin{tabular}" in lab.run("table", study, "--format", "latex").stdout
    assert "-o TABLE.parquet" in lab.said("table", study, "--format", "parquet", code=1)
    file = lab.folder / "rows.parquet"
    lab.run("table", study, "--format", "parquet", "-o", file)
    import pyarrow.parquet as pq

    assert {"stage", "seed", "metric", "value", "state", "fingerprint"} <= set(pq.read_schema(file).names)
    page = lab.folder / "report.html"
    assert f"report: {page}" in lab.run("report", study, "-o", page).stdout.replace("\n", "")
    text = page.read_text()
    assert "the probe refuses" in text and "BAD_INPUT" in text and "<script src" not in text
    assert f"report: {lab.root / 'lab.html'}" in lab.run("report", study).stdout


def test_status_watch_redraws_a_terminal_until_ctrl_c(lab: Lab) -> None:
    study = lab.study({"slow": {"job": "probe", "spec": {"do": "wait"}}})
    assert "--watch redraws a terminal, and this is none" in lab.said("status", study, "--watch", code=1)
    launch = lab.start("launch", study)
    lab.child("slow")
    controller, terminal = os.openpty()
    watch = lab.start("status", study, "--watch", stdout=terminal)
    os.close(terminal)
    shown = ""
    while not ("slow" in shown and "3/10" in shown):
        shown += os.read(controller, 4096).decode(errors="replace")
    lab.release()
    while "3/10" in shown or "━" not in shown:  # what is running goes away while it watches
        shown = os.read(controller, 65536).decode(errors="replace")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(20) == 130
    os.close(controller)
    assert launch.wait(60) == 0


def test_studies_of_the_checkout_plan(tmp_path: Path) -> None:
    tidemark = str(Path(sys.executable).with_name("tidemark"))
    done = subprocess.run(
        [tidemark, "plan", str(HOME / "configs/studies/quickstart.yaml"), "--root", str(tmp_path), "--json"],
        env={**os.environ, **QUIET}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert [stage["stage"] for stage in json.loads(done.stdout)][:3] == ["people", "tokenizer", "tokens"]
