"""Fixtures of the command line's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.lab import Lab, make_house, processes_of, until


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, help="how often the kill test kills (8 if not given, and it says less)")
    parser.addoption("--faults", type=int, help="how many faults the fault test makes (8 if not given)")
    parser.addoption("--fault-seed", type=int, help="from which it draws them")
    parser.addoption("--kill-seed", type=int, help="from which it draws the moments and the victims")


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture
def lab(house: Path, tmp_path: Path) -> Iterator[Lab]:
    """A fresh root; every process of it has ended when the test has."""
    made = Lab(house=house, folder=tmp_path)
    try:
        yield made
        until(lambda: not processes_of(tmp_path), 10)
    finally:
        made.close()
