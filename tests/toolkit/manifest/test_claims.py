"""Claims: exactly one of many wins, and a claim tells whether its maker still runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.manifest.claims import all_claims, attempts, claim, identity, liveness, read_claim

from .conftest import forked, wait

FP = "0123456789abcdef" * 4
CHECKOUT = Path(__file__).parents[3]
SAY_WHO = "import json; from toolkit.manifest.claims import identity; print(json.dumps(identity())"


def test_a_claim_is_made_once(root: Path) -> None:
    assert claim(root, FP, 1, {"by": "a"})
    assert not claim(root, FP, 1, {"by": "b"})
    assert claim(root, FP, 2, {"by": "b"})
    assert claim(root, "f" * 64, 1, {})
    assert [(n, info["by"]) for n, info in attempts(root, FP[:12])] == [(1, "a"), (2, "b")]
    assert read_claim(root, FP[:12], 1) == {"by": "a", "fingerprint": FP, "attempt": 1}
    assert all_claims(root) == {FP[:12]: 2, "f" * 12: 1}
    assert sorted(os.listdir(root / "claims")) == [f"{FP[:12]}.1", f"{FP[:12]}.2", "f" * 12 + ".1"]


def test_attempts_are_ordered_by_number(root: Path) -> None:
    for n in (10, 9, 2):
        claim(root, FP, n, {})
    assert [n for n, _ in attempts(root, FP[:12])] == [2, 9, 10]
    assert all_claims(root) == {FP[:12]: 10}


def test_a_root_without_claims(tmp_path: Path) -> None:
    assert all_claims(tmp_path) == {} and attempts(tmp_path, FP[:12]) == []


def test_another_cell_with_the_same_first_digits_is_an_error(root: Path) -> None:
    claim(root, FP, 1, {})
    with pytest.raises(ValueError, match="share their first 12 digits"):
        claim(root, FP[:12] + "f" * 52, 1, {})


def test_eight_processes_claim_the_same_attempts(root: Path) -> None:
    def race(me: int) -> None:
        while not (root / "go").exists():
            time.sleep(0.001)
        for n in range(1, 21):
            if claim(root, FP, n, {"by": me}):
                (root / f"won-{n}-{me}").touch()

    pids = [forked(lambda me=me: race(me)) for me in range(8)]  # type: ignore[misc]
    (root / "go").touch()
    assert [wait(pid) for pid in pids] == [0] * 8
    won = sorted(path.name for path in root.glob("won-*"))
    assert won == sorted(f"won-{n}-{info['by']}" for n, info in attempts(root, FP[:12])) and len(won) == 20
    assert len(os.listdir(root / "claims")) == 20  # no temporary file is left


def test_a_process_is_alive_until_it_ends() -> None:
    assert liveness(identity()) is True
    code = f"{SAY_WHO}, flush=True); import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT)
    assert child.stdout is not None
    info = json.loads(child.stdout.readline())
    assert liveness(info) is True
    child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while liveness(info) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert liveness(info) is False  # a zombie: nobody has waited for it yet
    child.wait()
    child.stdout.close()
    assert liveness(info) is False


def test_what_this_host_can_and_cannot_know() -> None:
    me = identity()
    assert liveness({**me, "start_ticks": me["start_ticks"] - 1}) is False  # its number was given to another process
    assert liveness({**me, "pid_namespace": "pid:[1]"}) is None  # a container's processes cannot be seen
    assert liveness({**me, "boot_id": "other"}) is False  # this host was started anew
    assert liveness({**me, "boot_id": "other", "host": "elsewhere"}) is None
    assert liveness({**me, "boot_id": "other", "host": "localhost"}) in (None, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for `unshare`")
def test_a_process_in_another_pid_namespace_is_unknown() -> None:
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", f"{SAY_WHO})"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    if done.returncode:
        pytest.skip(f"unshare does not work here: {done.stderr.strip()}")
    info = json.loads(done.stdout)
    assert info["pid"] == 1 and liveness(info) is None


def test_a_parent_can_say_who_its_child_is() -> None:
    child = subprocess.Popen(["sleep", "60"])
    info = identity(child.pid)
    assert info["pid"] == child.pid and liveness(info) is True
    child.kill()
    child.wait()
    assert liveness(info) is False and liveness(identity(child.pid)) is False
