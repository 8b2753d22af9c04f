"""What a worker takes, in which order, in which process, and what it says when a stage ends badly."""

import json
import os
import signal
from pathlib import Path

from tests.slurm.lab import Lab, alive, children, until
from toolkit.manifest.log import encode


def probe(do: str = "", **more: object) -> dict[str, object]:
    return {"job": "probe", "spec": {"do": do} if do else {}, **more}


def records(lab: Lab) -> dict[str, dict[str, object]]:
    """Stage -> record of its (one) cell."""
    found = [json.loads(path.read_text()) for path in lab.root.glob("artifacts/probe/*/artifact.json")]
    return {record["provenance"]["stage"]: record for record in found}


def test_longest_chain_first_and_then_what_reads_the_last_output(lab: Lab) -> None:
    stages = {
        "alone": probe(axes={"seed": [50, 51]}),
        "top": probe(spec={"seed": 1}),
        "middle": probe(inputs={"one": "top"}),
        "end": probe(inputs={"one": "middle"}),
        "pair": probe(axes={"seed": [2, 3, 4]}),
        "read": probe(inputs={"one": "pair"}),
    }
    lab.run("launch", lab.study(stages))
    assert lab.told("started") == [
        "top",  # three cells hang on it
        "middle", "pair[seed=2]", "pair[seed=3]", "pair[seed=4]",  # two; `middle` reads what was just made
        "read[seed=4]",  # last cells all: what the last output is for comes first
        "alone[seed=50]", "alone[seed=51]", "end", "read[seed=2]", "read[seed=3]",
    ]  # fmt: skip


def test_the_parent_imports_once_and_children_find_it(lab: Lab) -> None:
    study = lab.study({"first": probe(spec={"seed": 1}), "second": probe(spec={"seed": 2})})
    lab.run("launch", study)
    made = records(lab)
    worker = lab.worker()
    for stage in ("first", "second"):
        assert made[stage]["metrics"].items() >= {"imported": True, "parent": worker, "resumed": False}.items()


def test_failures_are_typed_and_retried_as_their_policy_says(lab: Lab) -> None:
    expected = {  # reason, attempts, message
        "broken": ("raise", "BUG", 2, "RuntimeError: the probe broke"),
        "crashed": ("crash", "BUG", 2, "crashed with SIGSEGV"),
        "killed": ("die", "LOST", 4, "killed by SIGKILL (by a person, or for lack of memory)"),
        "left": ("leave", "LOST", 4, "exited with status 7 and no report"),
        "hungry": ("need memory", "OOM", 3, "MemoryError: no room for the probe"),
        "refused": ("refuse", "BAD_INPUT", 1, "the probe refuses"),
    }
    stages = {stage: probe(do) for stage, (do, *_) in expected.items()}
    stages["lucky"] = probe("die once")
    stages["after"] = probe(inputs={"one": "lucky", "two": "broken"})
    stages["later"] = probe(inputs={"one": "after"})
    study = lab.study(stages)
    done = lab.run("launch", study, code=3)
    assert "6 cells failed" in done.stderr and "2 blocked" in done.stdout

    told = lab.json("status", study)
    assert [(row["cell"], row["reason"], row["attempt"], row["message"]) for row in told["failed"]] == [
        (stage, *rest) for stage, (_, *rest) in expected.items()
    ]
    assert [(row["cell"], row["message"]) for row in told["blocked"]] == [
        ("after", "broken failed (BUG)"),
        ("later", "broken failed (BUG)"),
    ]
    assert told["stages"]["lucky"] == {"done": 1, "running": 0, "failed": 0, "blocked": 0, "never-run": 0}
    assert not list(lab.root.glob("work/*/out.*")), "what failed attempts wrote is gone"

    why = lab.said("why", study, "broken")
    assert "broken is failed" in why and "BUG in attempt 2: RuntimeError: the probe broke" in why
    assert "remedy: The stage raised an error of its own" in why
    assert 'raise RuntimeError("the probe broke")' in why, "the end of its log has the traceback"
    assert "later is blocked" in lab.said("why", study, "later")
    assert "the probe is told to raise" in lab.said("logs", study, "broken")

    lab.run("launch", study, code=3)  # asked again, tried again
    assert {row["cell"]: row["attempt"] for row in lab.json("status", study)["failed"]}["refused"] == 2


def test_a_broken_line_of_json_is_bad_input_with_file_and_line(lab: Lab) -> None:
    rows = [{"instruction": "Say a.", "input": "", "output": "a"}] * 2
    file = lab.folder / "notes.jsonl"
    file.write_text("\n".join([*map(json.dumps, rows), '{"instruction": "Say b.", "output": ']) + "\n")
    stages = {
        "notes": {"path": str(file)},
        "rows": {"job": "prepare", "inputs": {"files": "notes"}, "spec": {"dataset": "instructions"}},
        "words": {
            "job": "tokenizer",
            "inputs": {"data": "rows"},
            "spec": {"split": "train", "field": "prompt", "vocab_size": 258},
        },
    }
    study = lab.study(stages)
    lab.run("launch", study, code=3)
    (failed,) = lab.json("status", study)["failed"]
    assert (failed["reason"], failed["attempt"]) == ("BAD_INPUT", 1)
    assert f"{file}:3" in failed["message"]
    assert "words is blocked" in lab.said("why", study, "words")

    file.write_text("\n".join(json.dumps({**row, "output": f"a{i}"}) for i, row in enumerate(rows * 10)))
    lab.run("launch", study)  # the corrected file is another artifact, the cells are new ones
    assert lab.json("status", study)["stages"]["words"]["done"] == 1


def test_a_killed_child_costs_one_attempt(lab: Lab) -> None:
    study = lab.study({"slow": probe("wait")})
    launch = lab.start("launch", study)
    worker, child = lab.worker(), lab.child("slow")
    shown = lab.json("status", study)
    assert shown["running"][0]["progress"]["step"] == 3 and shown["running"][0]["attempt"] == 1
    os.kill(child, signal.SIGKILL)
    again = until(lambda: next((pid for pid in children(worker) if pid != child), 0))
    assert again and lab.worker() == worker, "the same worker goes on"
    lab.release()
    assert launch.wait(60) == 0
    kinds = [(e["event"], e["attempt"], e.get("reason")) for e in lab.events() if "cell" in e]
    assert kinds == [
        ("started", 1, None), ("failed", 1, "LOST"), ("started", 2, None), ("committed", 2, None)
    ]  # fmt: skip


def test_a_killed_worker_takes_its_child_along_and_its_cell_is_tried_again(lab: Lab) -> None:
    study = lab.study({"slow": probe("wait")})
    launch = lab.start("launch", study)
    worker, child = lab.worker(), lab.child("slow")
    os.kill(worker, signal.SIGKILL)
    assert launch.wait(60) == 3
    said = launch.communicate()[0]
    assert "was killed" in said and "launch again to resume" in said
    until(lambda: not alive(child), 5)
    assert lab.json("status", study)["stages"]["slow"]["never-run"] == 1
    lab.release()
    lab.run("launch", study)
    assert [(e["event"], e["attempt"]) for e in lab.events() if "cell" in e] == [
        ("started", 1), ("lost", 1), ("started", 2), ("committed", 2)
    ]  # fmt: skip


def test_a_second_worker_takes_over_from_a_killed_one(lab: Lab) -> None:
    study = lab.study({"slow": probe("wait"), "after": probe(inputs={"one": "slow"})})
    launch = lab.start("launch", study, "--workers", 2)
    lab.child("slow")
    owner = next(e["writer"] for e in lab.events() if e["event"] == "started")
    pids = until(
        lambda: len(found := {e["writer"]: e["who"]["pid"] for e in lab.events() if "who" in e}) == 2 and found
    )
    os.kill(pids[owner], signal.SIGKILL)
    until(lambda: "lost" in [e["event"] for e in lab.events()])
    lab.release()
    assert launch.wait(60) == 0
    assert {e["writer"] for e in lab.events() if e["event"] == "committed"} == set(pids) - {owner}


def test_a_worker_that_is_told_to_end_lets_the_stage_save(lab: Lab) -> None:
    study = lab.study({"slow": probe("wait"), "other": probe()})
    launch = lab.start("launch", study)
    lab.child("slow")
    os.kill(lab.worker(), signal.SIGTERM)
    assert launch.wait(60) == 3
    assert [e["event"] for e in lab.events()][-2:] == ["interrupted", "worker-ended"]
    assert lab.told("committed") == [], "it starts nothing more"
    lab.release()
    lab.run("launch", study)
    assert records(lab)["slow"]["metrics"]["resumed"] is True


def test_damage_in_the_log_and_in_snapshots_changes_no_state(lab: Lab) -> None:
    study = lab.study({"fine": probe(), "bad": probe("refuse")})
    lab.run("launch", study, code=3)
    before = lab.json("status", study)
    (segment,) = (lab.root / "log" / "lab").iterdir()
    with segment.open("ab") as file:
        file.write(encode({"event": "started", "fingerprint": "x"})[:-9])  # torn by a power cut
    for path in (lab.root / "index").iterdir():
        path.write_bytes(b"\0" * 100)
    assert lab.json("status", study) == before


def test_an_unimportable_library_fails_the_stage_and_not_the_worker(lab: Lab, house: Path) -> None:
    job = house / "jobs" / "needy.py"
    job.write_text((house / "jobs" / "probe.py").read_text().replace('"colorsys",', '"no_such_library",'))
    try:
        study = lab.study({"needy": {"job": "needy"}, "fine": probe()})
        lab.run("launch", study, code=3)
        told = lab.json("status", study)
    finally:
        job.unlink()
    assert told["stages"]["fine"]["done"] == 1
    assert [(row["reason"], row["message"]) for row in told["failed"]] == [
        ("BUG", "ModuleNotFoundError: No module named 'no_such_library'")
    ]
