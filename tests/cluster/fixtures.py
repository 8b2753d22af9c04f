"""The cluster as a fixture, for any folder of tests:

    from tests.cluster.fixtures import calm, cluster  # noqa: F401

in its conftest.py. All of them share one cluster in a session.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.config import Options
from tests.cluster.founding import INSTALL, create, missing

HOME = Path(__file__).resolve().parents[2]
SHARED = pytest.StashKey[Cluster]()


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Three nodes with accounting; see `tests/cluster/README.md` for what can be done to them."""
    stash = request.config.stash
    if SHARED not in stash:
        if lacking := missing():
            reason = f"no Slurm here ({', '.join(lacking)}); on Debian, as root: {INSTALL}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
        folder = Path(tempfile.mkdtemp(prefix="tidemark-slurm-"))
        folder.chmod(0o755)  # munged wants its socket to be in reach of everybody; pytest's own folders are not
        stash[SHARED] = create(folder, Options(grace=10))
        request.config.add_cleanup(lambda: _end(stash[SHARED], request.session))
        watch(stash[SHARED], os.getpid())
        stash[SHARED].up()
    return stash[SHARED]


@pytest.fixture
def calm(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, for a test that breaks it: afterwards its jobs are cancelled, and what it killed runs again."""
    before = {row.number for row in cluster.squeue()}
    yield cluster
    cluster.up()
    if new := {row.number for row in cluster.squeue()} - before:
        cluster.cancel(*new)


def watch(cluster: Cluster, owner: int) -> None:
    """Let the cluster end when process `owner` has, however that was."""
    words = [sys.executable, "-m", "tests.cluster", "down", "--wipe", "--after", owner, cluster.place.folder]
    cluster.processes.spawn("watch", *words, extra={"PYTHONPATH": str(HOME)})


def _end(cluster: Cluster, session: pytest.Session) -> None:
    """The logs stay if there is something to look up in them."""
    cluster.down(wipe=not session.testsfailed)
    shutil.rmtree(cluster.place.folder / "db", ignore_errors=True)
