"""`tidemark doctor` against a real Slurm: what is well passes, what is not is found and named with its remedy, and
nothing stays behind."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slurm.doctor import exchange, verdict
from slurm.doctor.exchange import Answers
from slurm.doctor.probe import CONTESTS
from slurm.doctor.shape import seconds
from slurm.quota import quotas
from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import calm, cluster  # noqa: F401
from tests.slurm.lab import HOME, QUIET, make_house, until

WAITS = {"late": 2, "stopped": 60, "killed": 60}  # seconds
CPU = {"partition": "main", "cpus": 1, "memory": 1, "hours": 1}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a doctor said: exit status, its lines by (where, what), and standard error."""

    code: int
    lines: Mapping[tuple[str, str], Mapping[str, str]]
    said: str

    def failed(self) -> set[tuple[str, str]]:
        return {key for key, line in self.lines.items() if line["level"] == "failed"}


@dataclass(kw_only=True)
class Asked:
    """A doctor at work, on a profile and a root in a folder of its own."""

    folder: Path
    process: "subprocess.Popen[str]"

    def answer(self) -> Answer:
        printed, said = self.process.communicate(timeout=120)
        lines = json.loads(printed)["lines"] if printed else []
        found = {(line["where"], line["what"]): line for line in lines}
        return Answer(code=self.process.returncode, lines=found, said=said)


def ask(
    lab: Cluster, folder: Path, profile: Mapping[str, Any], *words: object, endpoint: str = "http://127.0.0.1:9"
) -> Asked:
    """Start a doctor; the root is there already, so that a node can be given another one in its place."""
    (folder / "root").mkdir(parents=True, exist_ok=True)
    path = folder / "lab.yaml"
    path.write_text(json.dumps({"jobs": {"default": {"shape": next(iter(profile["shapes"]))}}, **profile}))
    env = {**lab.env, **QUIET, "PYTHONPATH": str(HOME), "HF_ENDPOINT": endpoint}
    command = ["doctor", "--cluster", path, "--root", folder / "root", "--json", *words]
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm.cli", *map(str, command)],
        env=env, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    return Asked(folder=folder, process=process)


def nothing_left(lab: Cluster, folder: Path) -> bool:
    live = lab.run("squeue", "-h", "-t", "PD,R,CG,CF,S", "-o", "%j").split()
    assert list((folder / "root").iterdir()) == []
    return not any(name.startswith("tidemark-doctor") for name in live)


@pytest.fixture(scope="module")
def answers(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:  # noqa: F811
    """Four profiles, asked about at the same time: most of it is waiting."""
    top = tmp_path_factory.mktemp("doctor")
    house = make_house(top / "house")
    hidden = f"env CUDA_VISIBLE_DEVICES= {shlex.quote(sys.executable)}"
    wrong = {
        "lost": {**CPU, "partition": "mian"},
        "large": {**CPU, "gpus": 5, "memory": 100},
        "gpu": {**CPU, "gpus": 2, "internet": True, "account": "nobody"},
    }
    away, closed = cluster.nodes[1], cluster.nodes[2]
    with socket.create_server(("127.0.0.1", 0)) as hub:
        endpoint = f"http://127.0.0.1:{hub.getsockname()[1]}"
        well = {"scratch": str(top / "scratch"), "shapes": {"cpu": CPU}}
        asked = {
            "well": ask(cluster, top / "it's $(touch x) well", {"grace_seconds": 10, **well}, endpoint=endpoint),
            "wrong": ask(cluster, top / "wrong", {"python": hidden, "scratch": "$NOT_SET/x", "shapes": wrong}),
            "house": ask(cluster, top / "elsewhere", {"setup": [f"export PYTHONPATH={house}"], "shapes": {"cpu": CPU}}),
        }
        if cluster.place.mode == "ns":
            root = top / "roots" / "root"
            root.mkdir(parents=True)
            cluster.on_node(away, "mount", "-t", "tmpfs", "tmpfs", root)
            cluster.on_node(closed, "mount", "--bind", root, root)
            cluster.on_node(closed, "mount", "-o", "remount,bind,ro", root)
            shapes = {"away": {**CPU, "exclude": [closed]}, "closed": {**CPU, "exclude": [away]}}
            asked["roots"] = ask(cluster, top / "roots", {"shapes": shapes})
        found = {name: one.answer() for name, one in asked.items()}
        if cluster.place.mode == "ns":
            for node in (away, closed):
                cluster.on_node(node, "umount", root)
    for one in asked.values():
        assert nothing_left(cluster, one.folder)
    return found


def test_what_is_well_passes(answers: dict[str, Answer], cluster: Cluster) -> None:  # noqa: F811
    well = answers["well"]
    assert well.code == 0, well
    assert {key for key, line in well.lines.items() if line["level"] != "ok"} <= {("root", "free space")}
    for what in ("partition", "sbatch", "root", "checkout", "Python", "CPUs", "memory", "scratch", "requeue"):
        assert ("shape cpu", what) in well.lines
    for what in ("link(2)", "rename"):
        assert f"one winner in {CONTESTS} of {CONTESTS}" in well.lines["shape cpu", what]["found"]
    assert "takes connections" in well.lines["this host", "internet"]["found"]
    one, two = cluster.nodes[:2]
    assert f"between {one} and {two}: 0." in well.lines["shape cpu", "new file seen"]["found"]


def test_shapes_that_the_cluster_does_not_have_are_named(answers: dict[str, Answer]) -> None:
    wrong = answers["wrong"]
    assert wrong.code == 3 and "mend what failed" in wrong.said
    assert "did you mean 'main'? valid: high, low, main" in wrong.lines["shape lost", "partition"]["found"]
    large = wrong.lines["shape large", "sbatch"]
    assert "Requested node configuration is not available" in large["found"]
    assert large["mend"] == "lower gpus: no node has more than 2; lower memory: no node has more than 8"
    for shape in ("shape lost", "shape large"):
        assert "not made: Slurm would not run such a job" in wrong.lines[shape, "node checks"]["found"]
    assert "unknown account 'nobody'" in wrong.lines["shape gpu", "account"]["found"]


def test_nodes_that_lack_something_are_named(answers: dict[str, Answer]) -> None:
    wrong = answers["wrong"]
    assert ("shape gpu", "GPUs") in wrong.lines, [
        line for (where, _), line in wrong.lines.items() if where == "shape gpu"
    ]
    gpus = wrong.lines["shape gpu", "GPUs"]
    assert gpus["level"] == "failed" and gpus["found"].startswith("0 on ")
    assert gpus["needed"] == "2 that torch computes on" and "install a torch that fits the driver" in gpus["mend"]
    assert "the variable $NOT_SET is not set in the job" in wrong.lines["shape gpu", "scratch"]["found"]
    internet = wrong.lines["shape gpu", "internet"]
    assert internet["level"] == "failed" and "Connection refused" in internet["found"]
    assert wrong.lines["shape gpu", "rename"]["level"] == "ok", "the rest is measured all the same"


def test_a_root_that_nodes_do_not_share(answers: dict[str, Answer], cluster: Cluster) -> None:  # noqa: F811
    if "roots" not in answers:
        pytest.skip("nodes without mounts of their own")
    roots = answers["roots"]
    assert roots.code == 3 and roots.failed() == {("shape away", "root"), ("shape closed", "root")}
    for shape, node, word in (("away", 1, "is not there"), ("closed", 2, "is there and cannot be written")):
        line = roots.lines[f"shape {shape}", "root"]
        assert f"on {cluster.nodes[node]} the folder {word}" in line["found"]
        assert "--root or TIDEMARK_ROOT" in line["mend"] and "exclude the node" in line["mend"]


def test_another_checkout_on_the_nodes(answers: dict[str, Answer]) -> None:
    house = answers["house"]
    line = house.lines["shape cpu", "checkout"]
    assert house.code == 3 and line["level"] == "failed"
    assert f"runs Tidemark from {HOME}" in line["found"] and "install Tidemark editable" in line["mend"]


def test_daemons_that_are_down(calm: Cluster, tmp_path: Path) -> None:  # noqa: F811
    profile = {"grace_seconds": 10, "shapes": {"low": {**CPU, "partition": "low"}}}
    calm.stop_slurmdbd()
    answer = ask(calm, tmp_path, profile, "--wait", 0).answer()
    line = answer.lines["Slurm", "accounting"]
    assert answer.code == 0 and line["level"] == "warning"
    assert "slurmdbd does not answer" in line["found"] and "launch and status work without it" in line["mend"]
    assert answer.lines["Slurm", "limits"]["level"] == "ok"
    assert answer.lines["shape low", "preemption"]["found"] == "requeue, 10 s after USR2"
    assert answer.lines["shape low", "node checks"]["found"] == "not made: --wait is 0"
    calm.stop_controller()
    answer = ask(calm, tmp_path, profile).answer()
    line = answer.lines["Slurm", "controller"]
    assert answer.code == 3 and answer.failed() == {("Slurm", "controller")}
    assert "is DOWN" in line["found"] and "administrators" in line["mend"]
    assert "not made: Slurm does not answer" in answer.lines["shape low", "node checks"]["found"]


def test_limits_that_sbatch_accepts(calm: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """Such jobs wait for ever, unless the cluster enforces its limits: sbatch says nothing."""
    calm.run("scontrol", "update", "partitionname=low", "maxtime=30")
    calm.run("scontrol", "update", "partitionname=high", "state=down")
    shapes = {name: {**CPU, "partition": name} for name in ("low", "high")}
    answer = ask(calm, tmp_path, {"shapes": shapes}, "--wait", 0).answer()
    calm.run("scontrol", "update", "partitionname=low", "maxtime=unlimited")
    calm.run("scontrol", "update", "partitionname=high", "state=up")
    assert answer.code == 3 and answer.failed() == {("shape low", "time limit"), ("shape high", "partition")}
    assert answer.lines["shape low", "time limit"]["found"] == "partition low: at most 0.5 h"
    assert "set the shape's hours to 0.5 or less" in answer.lines["shape low", "time limit"]["mend"]
    assert answer.lines["shape high", "partition"]["found"].startswith("high is DOWN")


def test_a_full_queue_and_interrupts(calm: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """Of three doctors one waits long enough, one is told to stop, and one is killed: the next one tidies up for it."""
    calm.submit("sleep 100", f"-N{len(calm.nodes)}", "--exclusive")
    profile = {"shapes": {"cpu": CPU}}
    late, stopped, killed = (ask(calm, tmp_path / name, profile, "--wait", wait) for name, wait in WAITS.items())
    until(lambda: len(calm.run("squeue", "-h", "-t", "PD", "-o", "%j").split()) >= 2)
    until(lambda: all(any(one.folder.glob("root/.doctor-*/cpu/submissions")) for one in (stopped, killed)))
    os.kill(stopped.process.pid, signal.SIGTERM)
    os.kill(killed.process.pid, signal.SIGKILL)
    answer = late.answer()
    line = answer.lines["shape cpu", "node checks"]
    assert answer.code == 0 and line["level"] == "warning"
    assert "did not start within 2 s: " in line["found"] and "--wait SECONDS" in line["mend"]
    assert stopped.answer().code == 130
    assert killed.answer().code == -signal.SIGKILL
    assert any(killed.folder.glob("root/.doctor-*"))
    assert ask(calm, killed.folder, profile, "--wait", 0).answer().code == 0
    assert all(nothing_left(calm, one.folder) for one in (late, stopped, killed))


def test_this_machine_alone(tmp_path: Path) -> None:
    env = {**os.environ, **QUIET, "PYTHONPATH": str(HOME), "HF_ENDPOINT": "http://127.0.0.1:9"}
    words = [sys.executable, "-m", "slurm.cli", "doctor", "--root", str(tmp_path / "new" / "root")]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    assert f"one winner in {CONTESTS} of {CONTESTS} contests (two processes here" in done.stdout
    assert not (tmp_path / "new").exists()


def test_a_root_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = [sys.executable, "-m", "slurm.cli", "doctor", "--root", str(tmp_path / "file" / "root")]
    env = {**os.environ, **QUIET, "PYTHONPATH": str(HOME), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "Not a directory" in done.stdout and "--root or TIDEMARK_ROOT" in done.stdout


@pytest.fixture
def ahead(tmp_path: Path) -> Iterator[Path]:
    """A folder whose other side answers by a clock that is 100 s ahead, and takes 5 ms to see a file."""
    end = threading.Event()

    def serve() -> None:
        number = 0
        while not end.is_set():
            time.sleep(0.005)
            asked = tmp_path / f"me-other.{number}"
            if asked.exists():
                now = time.time() + 100
                reply = tmp_path / f"other-me.{number}.part"
                reply.write_text(json.dumps({"round": number, "seen": now, "sent": time.time() + 100}))
                reply.rename(tmp_path / f"other-me.{number}")
                number += 1

    thread = threading.Thread(target=serve)
    thread.start()
    yield tmp_path
    end.set()
    thread.join()


def test_the_clock_of_the_other_side_is_measured(ahead: Path) -> None:
    found = exchange.ask(ahead, "me", "other", "new")
    assert abs(found["offset"] - 100) <= found["bound"] < 0.1
    assert len(found["delays"]) == exchange.ROUNDS - 1 and all(0 < delay < 0.5 for delay in found["delays"])


def test_a_replaced_file_that_is_torn_is_counted(tmp_path: Path) -> None:
    answers = Answers(folder=tmp_path, me="b", other="a", kind="replaced")
    answers.step()
    assert (answers.torn, answers.round) == (0, 0), "it has not come yet: that is nothing to complain of"
    file = tmp_path / "a-b"
    file.write_text(json.dumps({"round": 0, "last": False}))
    answers.step()
    assert (answers.torn, answers.round) == (0, 1)
    file.write_text('{"round": 1, "la')
    answers.step()
    file.unlink()
    answers.step()
    assert answers.torn == 2


def test_two_winners_are_a_failure() -> None:
    fair = [[True] * CONTESTS, [False] * CONTESTS]
    assert verdict._contest("shape", "link(2)", fair, "a and b").level == "ok"
    both = [[True] * CONTESTS, [True] + [False] * (CONTESTS - 1)]
    line = verdict._contest("shape", "link(2)", both, "a and b")
    assert line.level == "failed" and "0 contests without a winner, 1 with two" in line.found


def test_slurms_times() -> None:
    """The examples of sbatch's manual, and what scontrol prints where there is no limit."""
    assert [seconds(text) for text in ("30:00", "08:00:00", "3-12:00:00")] == [1800, 28800, 302400]
    assert seconds("UNLIMITED") == seconds("") == float("inf")


def test_quotas_are_read() -> None:
    """As `quota -w -p` and `lfs quota -q` lay them out: a user over the soft limit, and one without a limit of files."""
    text = """Disk quotas for user ann (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
filer:/export/ann 900* 800 1000 604800 20 0 0 0
"""
    assert quotas(text) == [("filer:/export/ann", 100 * 1024, float("inf"))]
    assert quotas("     /lustre   2048       0    4096       -    90     100     200       -\n") == [
        ("/lustre", 2048 * 1024, 110)
    ]
