"""A hundred faults while a suite of eight revisions is fetched: the fetching process killed, answers refused, cut, silent
and spoilt, at moments drawn from a seed. Every file must come out bit for bit, and hardly a byte twice.
"""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.hub.standin import Fault, Request, Standin

SEED, KILLS, REVISIONS = 1, 25, 8
SERVER_FAULTS = (
    [Fault(status=status) for status in (429, 500, 502, 503, 504) for _ in range(6)]
    + [Fault(status=429, retry_after="0")] * 8
    + [Fault(stall=3.0, cut=0)] * 2
    + [Fault(cut=-1)] * 32  # somewhere
    + [Fault(flip=5)] * 3  # in small files: a spoilt one has to be fetched again from its beginning
)
FETCHER = """
import sys
from pathlib import Path
from toolkit.checkpoints.budget import Budget
from toolkit.checkpoints.fetch import fetch
from toolkit.checkpoints.hub import Repo, needed
from toolkit.checkpoints.web import Patience, Web

base, url = Path(sys.argv[1]), sys.argv[2]
web = Web(budget=Budget(folder=base / "requests"), hub=url, token=None, patience=Patience(seconds=30, first=0.01), timeout=2)
repo = Repo(web=web, name="org/suite")
for branch, commit in sorted(repo.refs().items()):
    files = needed(repo.files(commit), "model", (), branch)
    fetch(web, files, base / branch, lambda done, total: None, parallel=4)
"""


def suite(rng: random.Random) -> dict[str, dict[str, bytes]]:
    """Eight revisions of 12 MiB, in shards."""
    names = [f"model-{n:05}-of-00012.safetensors" for n in range(1, 13)]
    small = {"config.json": b'{"model_type": "olmo2"}', "tokenizer_config.json": b"{}"}
    return {
        f"step{step}": {**small, "model.safetensors.index.json": rng.randbytes(5000)}
        | {name: rng.randbytes((1 << 20) + rng.randrange(1000)) for name in names}
        for step in range(REVISIONS)
    }


def test_a_hundred_faults(hub: Standin, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    content = suite(rng)
    for branch, files in content.items():
        hub.push("org/suite", branch, {**files, "optimizer.bin": bytes(100)})
    needed = sum(len(data) for files in content.values() for data in files.values())
    waiting = rng.sample(SERVER_FAULTS, len(SERVER_FAULTS))
    assert len(waiting) + KILLS == 100
    seen: set[str] = set()
    hub.faults = lambda request: _next(request, waiting, seen, rng)
    hub.pace = 0.0005
    moments = sorted(rng.randrange(needed) for _ in range(KILLS))
    finished: dict[str, int] = {}  # digest of a finished file -> the number of the request before which it was
    process = _start(tmp_path, hub)
    try:
        for moment in moments:
            while hub.sent("resolve|blob") < moment:
                assert process.poll() is None, process.stderr and process.stderr.read().decode()
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            for path in tmp_path.glob("step*/files/*"):
                finished.setdefault(str(path.relative_to(tmp_path)), len(hub.log))
            process = _start(tmp_path, hub)
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, complaint.decode()
    finally:
        process.kill()
    assert not waiting, f"{len(waiting)} faults were not played"
    assert {b: _read(tmp_path / b / "files") for b in content} == content
    _check_once(hub, content, finished)
    fetched = hub.sent("resolve|blob")
    print(f"{fetched:,} bytes fetched for {needed:,} needed: {fetched / needed:.4f}")
    assert fetched / needed <= 1.05


def _next(request: Request, waiting: list[Fault], seen: set[str], rng: random.Random) -> Fault | None:
    """Every third answer is a faulty one as long as there are faults left; a spoilt byte only where it costs little."""
    spoilt = [fault for fault in waiting if fault.flip is not None]
    if spoilt and "config" in request.url and request.url not in seen:  # thrice the same file is not bad luck any more
        seen.add(request.url)
        waiting.remove(spoilt[0])
        return spoilt[0]
    others = len(waiting) - len(spoilt)
    if not others or rng.random() > 0.4:
        return None
    fault = waiting.pop(next(i for i, fault in enumerate(waiting) if fault.flip is None))
    return Fault(cut=rng.randrange(1 << 20)) if fault.cut == -1 else fault


def _start(folder: Path, hub: Standin) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", FETCHER, str(folder), hub.url], stderr=subprocess.PIPE)


def _read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _check_once(hub: Standin, content: dict[str, dict[str, bytes]], finished: dict[str, int]) -> None:
    """Nothing was asked for after it was finished."""
    from tests.hub.standin import digest

    assert len(finished) > 50
    for name, number in finished.items():
        branch, _, path = name.split("/")
        data = content[branch][path]
        commit = hub.repositories[("model", "org/suite")].branches[branch]
        urls = (f"/org/suite/resolve/{commit}/{path}", f"/blob/{digest(data)}")
        assert [r for r in hub.log[number:] if r.url.split("?")[0] in urls] == [], name
