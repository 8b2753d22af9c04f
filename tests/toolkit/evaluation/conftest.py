"""The tiny model and data of the evaluation tests."""

import pytest

from tests.toolkit.generation.tiny import Tiny
from tests.toolkit.generation.tiny import tiny as build


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return build()
