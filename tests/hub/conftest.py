"""A hub of one's own for every test, and a client that is not patient."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hub.standin import Standin
from toolkit.checkpoints.budget import Budget
from toolkit.checkpoints.web import Patience, Web


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """Nothing of the user's (token, caches, endpoint) reaches the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    originals = tmp_path / "originals"
    originals.mkdir()
    with Standin(originals) as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        yield started


@pytest.fixture
def web(hub: Standin, tmp_path: Path) -> Callable[..., Web]:
    """Clients of the hub; they share a budget."""

    def make(token: str | None = None, seconds: float = 5.0) -> Web:
        patience = Patience(seconds=seconds, first=0.01)
        return Web(budget=Budget(folder=tmp_path / "requests"), hub=hub.url, token=token, patience=patience, timeout=2)

    return make
