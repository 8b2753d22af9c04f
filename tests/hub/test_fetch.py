"""Our client against the stand-in: exact bytes, each once, whatever goes wrong; and what it refuses."""

import hashlib
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.hub.standin import TOKEN, Fault, Request, Standin
from toolkit.checkpoints import originals
from toolkit.checkpoints.fetch import fetch
from toolkit.checkpoints.hub import File, Repo, needed
from toolkit.checkpoints.web import Refused, Web
from toolkit.failures import Failure, HubUnavailable, classify

Client = Callable[..., Web]


def model_files(seed: int = 0, size: int = 200_000) -> dict[str, bytes]:
    """What a repository holds, and some that nobody needs."""
    rng = random.Random(seed)
    return {
        "config.json": json.dumps({"model_type": "olmo2", "seed": seed}).encode(),
        "tokenizer.json": rng.randbytes(30_000),
        "tokenizer_config.json": b"{}",
        "model-00001-of-00002.safetensors": rng.randbytes(size),
        "model-00002-of-00002.safetensors": rng.randbytes(size // 2),
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "pytorch_model.bin": rng.randbytes(size),
        "optimizer.pt": rng.randbytes(2 * size),
        "training_args.bin": b"x" * 100,
        "runs/events.out": b"x",
        "README.md": b"# model",
    }


def quiet(done: int, total: int) -> None:
    """Nobody watches."""


def listing(web: Web, name: str = "org/model", branch: str = "main") -> list[File]:
    repo = Repo(web=web, name=name)
    return needed(repo.files(repo.refs()[branch]), "model", (), name)


def same(folder: Path, files: list[File], wanted: dict[str, bytes]) -> bool:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return found == {file.path: wanted[file.path] for file in files}


def test_only_what_is_needed_comes_and_bit_for_bit(hub: Standin, web: Client, tmp_path: Path) -> None:
    content = model_files()
    hub.push("org/model", "main", content)
    hub.page = 3
    told: list[tuple[int, int]] = []
    files = listing(web())
    folder = fetch(web(), files, tmp_path / "state", lambda done, total: told.append((done, total)))
    assert sorted(file.path for file in files) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert same(folder, files, content)
    assert told[-1] == (sum(file.size for file in files),) * 2
    sent = hub.sent("resolve|blob")
    assert sent == told[-1][1]
    fetch(web(), files, tmp_path / "state", quiet)
    assert hub.sent("resolve|blob") == sent, "what is there is not asked for"


def test_weights_in_bin_only_where_there_is_nothing_else(hub: Standin, web: Client) -> None:
    content = {path: data for path, data in model_files().items() if "safetensors" not in path}
    hub.push("org/model", "main", content)
    assert "pytorch_model.bin" in {file.path for file in listing(web())}
    half = {path: data for path, data in model_files().items() if "00002-of" not in path}
    hub.push("org/half", "main", half)
    with pytest.raises(ValueError, match="org/half has 1 of 2 shards of its weights"):
        listing(web(), "org/half")
    hub.push("org/empty", "main", {"README.md": b"x"})
    with pytest.raises(ValueError, match="org/empty is no model in Hugging Face format: it lacks config.json"):
        listing(web(), "org/empty")


def test_a_cut_connection_goes_on_where_it_was_cut(hub: Standin, web: Client, tmp_path: Path) -> None:
    content = {"config.json": b"{}", "model.safetensors": random.Random(1).randbytes(300_000)}
    hub.push("org/model", "main", content)
    cuts = iter([100_000, 50_001, 1])
    hub.faults = lambda request: Fault(cut=next(cuts, None)) if "blob" in request.url else None
    files = listing(web())
    assert same(fetch(web(), files, tmp_path / "state", quiet), files, content)
    assert [r.headers.get("range") for r in hub.asked("blob")] == [
        None, "bytes=100000-", "bytes=150001-", "bytes=150002-"
    ]  # fmt: skip
    assert hub.sent("blob") == 300_000, "no byte twice"


@pytest.mark.parametrize("route", ["refs", "tree", "resolve/[0-9a-f]{40}/config.json", "resolve.*model", "blob"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_every_route_is_tried_again(hub: Standin, web: Client, tmp_path: Path, route: str, status: int) -> None:
    content = {"config.json": b"{}", "model.safetensors": bytes(20_000)}
    hub.push("org/model", "main", content)
    hub.faults = _twice(route, Fault(status=status))
    files = listing(web())
    assert same(fetch(web(), files, tmp_path / "state", quiet), files, content)
    assert [r.status for r in hub.asked(route)][:3] in ([status, status, 200], [status, status, 302])


def _twice(pattern: str, fault: Fault) -> Callable[[Request], Fault | None]:
    import re

    seen = []

    def faults(request: Request) -> Fault | None:
        if re.search(pattern, request.url) and len(seen) < 2:
            seen.append(request.number)
            return fault
        return None

    return faults


def test_it_waits_as_long_as_it_is_told(hub: Standin, web: Client) -> None:
    hub.push("org/model", "main", {"config.json": b"{}"})
    for say in (lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)):
        hub.faults = _twice("refs", Fault(status=429, retry_after=say()))
        started = time.monotonic()
        Repo(web=web(), name="org/model").refs()
        assert 0.9 < time.monotonic() - started < 8
    hub.faults = lambda request: Fault(status=429, retry_after="86400")
    with pytest.raises(HubUnavailable, match="answers 429; it asks to wait 86400 s"):
        Repo(web=web(), name="org/model").refs()


def test_patience_ends(hub: Standin, web: Client, tmp_path: Path) -> None:
    hub.push("org/model", "main", {"config.json": b"{}", "model.safetensors": bytes(20_000)})
    files = listing(web())
    hub.faults = lambda request: Fault(status=503)
    with pytest.raises(
        HubUnavailable, match=r"model.safetensors answers 503, \d+ times over: check the network"
    ) as caught:
        fetch(web(seconds=0.3), files, tmp_path / "state", quiet)
    assert classify(caught.value) is Failure.HUB
    hub.faults = lambda request: Fault(status=429, retry_after="0")
    with pytest.raises(HubUnavailable, match="answers 429, 41 times over"):
        fetch(web(seconds=60), files, tmp_path / "more", quiet)
    with pytest.raises(HubUnavailable, match="ConnectError"):
        Repo(web=Web(budget=web().budget, hub="http://127.0.0.1:9", token=None, patience=web(seconds=0.2).patience),
             name="a/b").refs()  # fmt: skip


def test_a_silent_server_is_asked_again(hub: Standin, web: Client, tmp_path: Path) -> None:
    content = {"config.json": b"{}", "model.safetensors": bytes(20_000)}
    hub.push("org/model", "main", content)
    files = listing(web())
    hub.faults = _twice("blob", Fault(stall=3, cut=0))
    assert same(fetch(web(seconds=30), files, tmp_path / "state", quiet), files, content)


def test_a_spoilt_byte_is_found_and_the_file_fetched_again(hub: Standin, web: Client, tmp_path: Path) -> None:
    content = {"config.json": b'{"a": 1}', "model.safetensors": random.Random(2).randbytes(50_000)}
    hub.push("org/model", "main", content)
    hub.faults = _twice("config.json|blob", Fault(flip=5))
    files = listing(web())
    assert same(fetch(web(), files, tmp_path / "state", quiet), files, content)
    hub.faults = lambda request: Fault(flip=5) if "config" in request.url else None
    with pytest.raises(
        HubUnavailable, match=r"config.json: the digest should be git:\w{40} and is git:\w{40}, 3 times"
    ):
        fetch(web(), files, tmp_path / "other", quiet)


def test_two_attempts_at_once_do_not_spoil_each_other(hub: Standin, web: Client, tmp_path: Path) -> None:
    """One of them was wrongly thought dead; it starts later, in the middle of the other's work."""
    content = {"config.json": b"{}", "model.safetensors": random.Random(5).randbytes(1_000_000)}
    hub.push("org/model", "main", content)
    hub.pace = 0.005
    files = listing(web())
    with ThreadPoolExecutor(3) as threads:
        attempts = []
        for _ in range(3):
            attempts.append(threads.submit(fetch, web(), files, tmp_path / "state", quiet))
            time.sleep(0.1)
    assert all(same(attempt.result(), files, content) for attempt in attempts)


def test_a_server_without_ranges_costs_bytes_but_no_error(hub: Standin, web: Client, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(40_000)
    (hub.originals or tmp_path).joinpath("model.pt").write_bytes(data)
    wrong = File(
        path="m", size=40_000, digest="sha256:" + hashlib.sha256(data).hexdigest(), url=f"{hub.storage}/model.pt"
    )
    part = next(iter(_partial(web, wrong, tmp_path, hub)))
    assert part.stat().st_size == 10_000
    hub.faults = lambda request: request.headers.pop("range", None) and None  # type: ignore[attr-defined]
    assert (fetch(web(), [wrong], tmp_path / "state", quiet) / "m").read_bytes() == data


def _partial(web: Client, file: File, tmp_path: Path, hub: Standin) -> list[Path]:
    hub.faults = lambda request: Fault(cut=10_000) if "range" not in request.headers else Fault(status=503)
    with pytest.raises(HubUnavailable):
        fetch(web(seconds=0.1), [file], tmp_path / "state", quiet)
    return [p for p in (tmp_path / "state" / "parts").rglob("*") if p.is_file()]


def test_the_token_goes_to_the_hub_alone_and_nowhere_else(hub: Standin, web: Client, tmp_path: Path) -> None:
    content = {"config.json": b"{}", "model.safetensors": bytes(20_000)}
    hub.push("org/model", "main", content, gated=True)
    files = listing(web(TOKEN))
    fetch(web(TOKEN), files, tmp_path / "state", quiet)
    assert all(r.headers.get("authorization") == f"Bearer {TOKEN}" for r in hub.log if not r.storage)
    assert hub.asked("blob") and not any("authorization" in r.headers for r in hub.log if r.storage)
    assert TOKEN not in repr(web(TOKEN))
    hub.faults = lambda request: Fault(status=503) if request.storage else None
    with pytest.raises(HubUnavailable) as caught:
        fetch(web(TOKEN, seconds=0.1), files, tmp_path / "other", quiet)
    assert "secret" not in str(caught.value), "nor does a signed URL stand in a message"


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_gated_repository_says_how_to_get_in(hub: Standin, web: Client, tmp_path: Path, token: str | None) -> None:
    hub.push("org/model", "main", {"config.json": b"{}", "model.safetensors": bytes(100)}, gated=True)
    client = web(token)
    with pytest.raises(Refused) as caught:
        fetch(client, listing(client), tmp_path / "state", quiet)
    said = str(caught.value)
    assert f"org/model is gated: open {hub.url}/org/model and ask for access" in said
    assert ("has no access to it" if token else "log in with `hf auth login`, or set HF_TOKEN") in said
    assert "hf_wrong" not in said and classify(caught.value) is Failure.BAD_INPUT


def test_what_is_not_there_is_told_apart(hub: Standin, web: Client) -> None:
    hub.push("org/model", "main", {"config.json": b"{}"})
    with pytest.raises(ValueError, match=f"there is no model org/modle at {hub.url}/org/modle, or it is private"):
        Repo(web=web(), name="org/modle").refs()
    with pytest.raises(ValueError, match="org/model has no such revision"):
        Repo(web=web(), name="org/model").commit("step7")
    with pytest.raises(ValueError, match="not the name of a repository"):
        Repo(web=web(), name="org/model/tree/main")


@pytest.mark.parametrize("path", ["../../x", "/etc/x", "a/../../x", "a\\..\\x", "./x", "a//x", "..", "x\0y"])
def test_a_path_that_leaves_the_folder_is_refused(hub: Standin, web: Client, tmp_path: Path, path: str) -> None:
    commit = hub.push("org/data", "main", {path: b"x", "fine.txt": b"y"}, kind="dataset")
    with pytest.raises(ValueError, match="would leave the folder it is put in; nothing is fetched"):
        Repo(web=web(), name="org/data", kind="dataset").files(commit)


def test_originals_come_from_whichever_file_is_there(hub: Standin, web: Client, tmp_path: Path) -> None:
    assert hub.originals is not None
    folder = hub.originals / "ai2-llm" / "step5-unsharded"
    folder.mkdir(parents=True)
    url = f"{hub.storage}/ai2-llm/step5-unsharded/"
    with pytest.raises(ValueError, match="holds no unsharded original: there is no config.yaml"):
        originals.files(web(), url)
    content = {"config.yaml": b"model: {}", "model.pt": random.Random(4).randbytes(70_000), "optim.pt": bytes(9)}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    files = originals.files(web(), url)
    assert [file.path for file in files] == ["config.yaml", "model.pt"]
    hub.faults = _twice("model.pt", Fault(cut=10_000))
    assert same(fetch(web(), files, tmp_path / "state", quiet), files, content)
    assert {r.headers.get("if-range") for r in hub.asked("model.pt")} == {None, files[1].etag}
    (folder / "model.safetensors").write_bytes(b"1")
    assert [file.path for file in originals.files(web(), url)] == ["config.yaml", "model.safetensors"]


def test_an_original_that_changes_while_it_is_fetched_is_refused(hub: Standin, web: Client, tmp_path: Path) -> None:
    assert hub.originals is not None
    (hub.originals / "config.yaml").write_bytes(b"1")
    (hub.originals / "model.pt").write_bytes(bytes(50_000))
    files = originals.files(web(), hub.storage)
    (hub.originals / "model.pt").write_bytes(bytes(50_001))
    with pytest.raises(ValueError, match="model.pt is not what it was when it was listed"):
        fetch(web(), files, tmp_path / "state", quiet)
