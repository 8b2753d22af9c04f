"""The quota that a tool tells, before bytes move."""

from math import inf
from pathlib import Path

import pytest

from slurm import quota


def test_a_download_that_the_quota_does_not_leave_room_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert quota.left(tmp_path) == (inf, inf), "no tool is there"
    quota.check(tmp_path, 10**15, 10**9)
    mount = quota.mounted(tmp_path)[1]
    tool = tmp_path / "quota"
    tool.write_text(f"#!/bin/sh\necho '  {mount}  900000  0  1000000  -  90  0  100  -'\n")
    tool.chmod(0o755)
    assert quota.left(tmp_path) == (100_000 * 1024, 10)
    quota.check(tmp_path, 10**8, 10)
    with pytest.raises(ValueError, match=r"leaves 0.1 GB and 10 files: free some"):
        quota.check(tmp_path, 10**9, 5)
    with pytest.raises(ValueError, match="0.0 GB in 11 files"):
        quota.check(tmp_path, 1, 11)
