"""Shards resume: what is on disk is not generated again, and what is not the expected rows is."""

from collections.abc import Callable
from pathlib import Path

from toolkit.generation.engine import Answer, batches
from toolkit.generation.rows import Row
from toolkit.generation.shards import collect, cut
from toolkit.generation.shards import fill as fill_share

ROWS = [Row(id=i, tokens=tuple(range(1 + i % 5))) for i in range(40)]


class Model:
    """Answers with the row's number; dies after some batches."""

    def __init__(self, lives: int = 10**6) -> None:
        self.lives = lives
        self.asked: list[int] = []

    def __call__(self, batch: list[Row]) -> list[Answer]:
        if not self.lives:
            raise KeyboardInterrupt
        self.lives -= 1
        self.asked += [row.id for row in batch]
        return [Answer(id=row.id, text=f"«{row.id}»\n", tokens=row.id % 3, ended=row.id % 2 == 0) for row in batch]


def shards(budget: int = 60) -> list[list[list[Row]]]:
    return cut(batches(ROWS, budget, 10), 10, least=80)


def fill(folder: Path, pieces: list[list[list[Row]]], model: Model, report: Callable[..., None]) -> list[Answer]:
    fill_share(folder, pieces, Answer, model, report)
    return collect(folder, pieces, Answer)


def quiet(answers: list[Answer], cached: bool) -> None:
    pass


def test_shards_hold_every_row_once_and_are_large_enough() -> None:
    sizes = [sum(len(batch) for batch in shard) * 10 for shard in shards()]
    assert len(sizes) > 3 and min(sizes[:-1]) >= 80 and sum(sizes) == 400
    assert cut([], 10) == []


def test_a_killed_generation_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = fill(tmp_path / "whole", shards(), Model(), quiet)
    assert [a.id for a in whole] == list(range(40))
    asked: list[int] = []
    for lives in (3, 4, 5, 100):
        model = Model(lives)
        try:
            again = fill(tmp_path / "killed", shards(), model, quiet)
        except KeyboardInterrupt:
            pass
        asked += model.asked
    assert again == whole
    assert len(asked) < 2 * len(ROWS) and len(asked) > len(ROWS), "finished shards were generated again"
    last = Model()
    assert fill(tmp_path / "killed", shards(), last, quiet) == whole and not last.asked


def test_shards_of_another_budget_are_not_taken_for_these(tmp_path: Path) -> None:
    whole = fill(tmp_path, shards(budget=200), Model(), quiet)
    model = Model()
    assert fill(tmp_path, shards(), model, quiet) == whole
    assert model.asked


def test_shares_are_disjoint_and_together_all(tmp_path: Path) -> None:
    models = [Model() for _ in range(3)]
    for k, model in enumerate(models):
        fill_share(tmp_path / "shared", shards(), Answer, model, quiet, (k, 3))
    assert sorted(row for model in models for row in model.asked) == list(range(40)) and all(m.asked for m in models)
    assert collect(tmp_path / "shared", shards(), Answer) == fill(tmp_path / "alone", shards(), Model(), quiet)
