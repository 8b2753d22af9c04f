"""Several processes give what one gives, tell how far they are, and hand on what goes wrong in one of them."""

import json
from pathlib import Path

import pytest

from tests.toolkit.generation.tiny import Tiny, context
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.generation.answers import Asker
from toolkit.generation.engine import Answer, Decoding
from toolkit.generation.rows import Row, tokenize
from toolkit.generation.spread import Part, Tally, spread
from toolkit.stage import Interrupted


@pytest.fixture(scope="module")
def rows(tiny: Tiny) -> list[Row]:
    prompts = [f"Who is {'very ' * (i % 9)}old at {i}?" for i in range(60)]
    return tokenize(load_tokenizer(tiny.model.path), prompts, "plain")


@pytest.mark.parametrize("how", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_the_number_of_processes_does_not_show(tiny: Tiny, rows: list[Row], tmp_path: Path, how: dict) -> None:
    found = []
    for processes in (1, 3):
        ctx = context(tmp_path / str(processes), processes=processes, batch_tokens=400)
        asker = Asker(model=tiny.model.path, precision="fp32", engine="hf", ctx=ctx)
        found.append(asker.ask(rows, Decoding(max_new_tokens=8, **how), "shards"))
        told = json.loads((ctx.state / "progress.json").read_text())
        assert (told["step"], told["total"]) == (60, 60) and told["tokens_per_second"] > 0
    assert found[0] == found[1] and len({answer.text for answer in found[0]}) > 4
    one, three = (sorted(p.name for p in (tmp_path / n / "shards").iterdir()) for n in ("1", "3"))
    assert one == three and len(one) > 3, "other shards could not be taken over by another number of processes"


def test_what_one_number_of_processes_left_another_takes_over(tiny: Tiny, rows: list[Row], tmp_path: Path) -> None:
    ctx = context(tmp_path, processes=2, batch_tokens=400)
    asker = Asker(model=tiny.model.path, precision="fp32", engine="hf", ctx=ctx)
    whole = asker.ask(rows, Decoding(max_new_tokens=8), "shards")
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    lost = sorted(times)[2]
    (tmp_path / "shards" / lost).unlink()
    ctx.resources = context(tmp_path, batch_tokens=400).resources
    assert asker.ask(rows, Decoding(max_new_tokens=8), "shards") == whole
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert {name for name in times if again[name] != times[name]} == {lost}


def part(rows: list[Row], build: object) -> Part[Answer]:
    return Part(name="shards", rows=rows, kind=Answer, build=build, budget=100, new_tokens=8)  # type: ignore[arg-type]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_a_rank_is_the_stages_error(rows: list[Row], tmp_path: Path, processes: int) -> None:
    def build(rank: int) -> None:
        raise ValueError(f"rank {rank} found a bad model")

    with pytest.raises(ValueError, match="found a bad model"):
        spread(part(rows, build), context(tmp_path, processes=processes))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_request_reaches_the_ranks(rows: list[Row], tmp_path: Path, processes: int) -> None:
    ctx = context(tmp_path, processes=processes)

    def work(batch: list[Row]) -> list[Answer]:
        ctx.stop_requested = True  # in a rank it is the rank's own copy: the parent's is set below
        return [Answer(id=row.id, text="", tokens=1, ended=True) for row in batch]

    if processes > 1:
        ctx.stop_requested = True
    with pytest.raises(Interrupted):
        spread(part(rows, lambda rank: work), ctx)
    assert len(list((tmp_path / "shards").glob("*.parquet"))) <= 60


def test_progress_goes_on_through_several_passes(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    tally = Tally(2, 40, 100, "answer")
    tally.add(0, 25, 500)
    tally.add(1, 35, 700)
    tally.tell(ctx)
    told = json.loads((tmp_path / "progress.json").read_text())
    assert (told["step"], told["total"], told["unit"]) == (100, 100, "answer")
