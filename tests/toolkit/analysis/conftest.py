from pathlib import Path

import pyarrow as pa
import pytest

from toolkit.analysis.table import measure

from .fake_study import FakeStudy, build


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    return build(tmp_path_factory.mktemp("root with space"))


@pytest.fixture(scope="session")
def table(study: FakeStudy) -> pa.Table:
    return measure(**study.arguments())


@pytest.fixture
def own_study(tmp_path: Path) -> FakeStudy:
    """One that a test may damage."""
    return build(tmp_path)
