"""Helpers of the manifest's tests: a root, a folder of output, a process that is forked and may be killed, a tiny disk."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolkit.manifest.files import check_root

RECORD = {"spec": {"lr": 1e-3}, "inputs": {}, "metrics": {"loss": 1.25}, "provenance": {"host": "n1"}}


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its process id. It exits 0, or 1 if `work` raised."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def wait(pid: int) -> int:
    """Exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def make_out(root: Path, name: str, size: int = 1000) -> Path:
    """A folder of output with nested files whose content does not depend on `name`."""
    out = root / "work" / name / "out"
    (out / "data" / "deep").mkdir(parents=True)
    (out / "weights.bin").write_bytes(bytes(range(256)) * (size // 256 + 1))
    (out / "data" / "deep" / "rows.txt").write_text("one\ntwo\n")
    (out / "data" / "empty").touch()
    (out / "log.txt").write_text(f"printed by {name}")
    return out


@pytest.fixture
def root(tmp_path: Path) -> Path:
    check_root(tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
