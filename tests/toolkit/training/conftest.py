"""The small model and data of this folder's tests."""

import pytest

from tests.toolkit.training.small import Small
from tests.toolkit.training.small import small as build


@pytest.fixture(scope="session")
def small() -> Small:
    return build()
