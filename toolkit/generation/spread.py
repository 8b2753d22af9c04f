"""Rows through a model by as many processes as the attempt has: sorted into batches, kept in shards, told as progress.

Each rank loads the model and makes every n-th shard. A result depends on its row alone, so neither their number nor
what was interrupted shows in what comes out.
"""

import mmap
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from toolkit.generation import shards
from toolkit.generation.engine import STEP, batches
from toolkit.generation.models import has_cuda
from toolkit.generation.rows import Row
from toolkit.generation.shards import T
from toolkit.stage import Context, Interrupted
from toolkit.training.ranks import StopFlag, run_ranks

FEW_SHARDS = 64  # what is small is cut in so many, so that all processes have some of it
Work = Callable[[list[Row]], list[T]]


@dataclass(frozen=True, kw_only=True)
class Part(Generic[T]):
    """One pass over `rows`, kept in `state/<name>`.

    kind: the class of a result. build: (rank) -> what makes the results of a batch; called in the rank, where it loads
    the model. budget: tokens of a batch, `new_tokens` a row included. whole: batches are as large as that allows; on
    a GPU they always are, since its steps take as long for few rows as for many. before, total: rows of the passes
    before this one and of all, for the progress; unit: their name.
    """

    name: str
    rows: Sequence[Row]
    kind: type[T]
    build: Callable[[int], Work[T]]
    budget: int
    new_tokens: int
    whole: bool = False
    before: int = 0
    total: int | None = None
    unit: str = "row"


def spread(part: Part[T], ctx: Context) -> list[T]:
    """The results of all rows, sorted by id.

    Raises:
        Interrupted: `ctx.stop_requested`; finished shards stay.
        RankFailed: a rank died, or what it raised.
    """
    step = part.budget if part.whole or has_cuda() else STEP
    sorted_rows = batches(part.rows, part.budget, part.new_tokens, step)
    least = min(shards.SHARD_TOKENS, len(part.rows) * part.new_tokens // FEW_SHARDS)
    pieces = shards.cut(sorted_rows, part.new_tokens, max(least, 1))
    folder = ctx.state / part.name
    ranks = max(1, min(ctx.resources.processes, len(pieces)))
    tally = Tally(ranks, part.before, part.total or len(part.rows), part.unit)
    # Otherwise even one rank is forked: this process, which may have to fork for the next pass, uses neither CUDA nor
    # OpenMP's threads.
    if ctx.resources.processes == 1 and not has_cuda():
        _make(part, pieces, folder, tally, 0, lambda: ctx.stop_requested, lambda: tally.tell(ctx))
    elif pieces:
        flag = StopFlag()

        def work(rank: int) -> None:
            os.environ["OMP_NUM_THREADS"] = str(ctx.resources.threads)
            _make(part, pieces, folder, tally, rank, lambda: bool(flag), lambda: None)

        def stop() -> bool:
            tally.tell(ctx)
            return ctx.stop_requested

        run_ranks(ranks, work, stop, flag)
        tally.tell(ctx)
    return shards.collect(folder, pieces, part.kind)


def _make(
    part: Part[T], pieces: list[list[list[Row]]], folder: Path, tally: "Tally", rank: int,
    stop: Callable[[], bool], tell: Callable[[], None],
) -> None:  # fmt: skip
    built: list[Work[T]] = []

    def work(batch: list[Row]) -> list[T]:
        if stop():
            raise Interrupted
        if not built:  # nothing is loaded where every shard is there
            built.append(part.build(rank))
        return built[0](batch)

    def report(results: list[T], found: bool) -> None:
        tally.add(rank, len(results), 0 if found else sum(result.tokens for result in results))
        tell()

    shards.fill(folder, pieces, part.kind, work, report, (rank, tally.ranks))


class Tally:
    """Rows done and tokens made by each rank, in memory that forks share; the parent tells them as progress."""

    def __init__(self, ranks: int, before: int, total: int, unit: str) -> None:
        self.ranks, self.before, self.total, self.unit = ranks, before, total, unit
        self._numbers: Any = memoryview(mmap.mmap(-1, 16 * ranks)).cast("q")
        self._start = time.monotonic()

    def add(self, rank: int, rows: int, tokens: int) -> None:
        """By the rank alone: each has two numbers of its own."""
        self._numbers[2 * rank] += rows
        self._numbers[2 * rank + 1] += tokens

    def tell(self, ctx: Context) -> None:
        """How far, and how fast; nothing before the first rows, whose shards may be old."""
        rows, tokens = sum(self._numbers[::2]), sum(self._numbers[1::2])
        if rows:
            seconds = max(time.monotonic() - self._start, 1e-9)
            ctx.progress(self.before + rows, self.total, unit=self.unit, tokens_per_second=tokens / seconds)
