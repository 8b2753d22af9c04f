"""The numbers that decide what a training run computes, whatever it runs on, and the layout that meets them exactly."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from toolkit.stage import Resources

Schedule = Literal["linear", "cosine", "constant"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """AdamW on mean next-token cross-entropy over all target tokens of a global batch.

    steps: optimizer steps. global_batch: sequences a step. lr: peak learning rate, reached after `warmup_steps` and
    then following `schedule`, whose cosine ends at `final_lr_ratio` x lr. betas, weight_decay: AdamW's (no decay on
    norms and biases). clip: largest norm of the gradient. precision: bf16 multiplies in bfloat16, weights stay fp32.
    keep_steps: steps whose weights are kept; 0 is before the first step; the last one is always kept.
    """

    steps: int
    global_batch: int
    lr: float
    schedule: Schedule
    warmup_steps: int
    final_lr_ratio: float = 0.0
    weight_decay: float
    betas: tuple[float, ...]
    clip: float
    precision: Precision
    seed: int
    keep_steps: tuple[int, ...]

    def __post_init__(self) -> None:
        check_numbers(
            lr=self.lr, global_batch=self.global_batch, betas=self.betas, clip=self.clip, weight_decay=self.weight_decay
        )
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: at least one is needed")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"a warm-up of {self.warmup_steps} steps does not fit into {self.steps} steps: it must be shorter"
            )
        wrong = [step for step in self.keep_steps if not 0 <= step <= self.steps]
        if wrong:
            raise ValueError(
                f"keep_steps names step {wrong[0]}, but this run has steps 0 (initialisation) to {self.steps}"
            )


def check_numbers(
    *,
    lr: float,
    global_batch: int,
    betas: tuple[float, ...],
    clip: float,
    weight_decay: float,
    final_lr_ratio: float = 0.0,
) -> None:
    """What can be wrong in the numbers of any method, whatever the data is.

    Raises:
        ValueError: names the field, its value and what it may be.
    """
    if not lr > 0:
        raise ValueError(f"lr is {lr!r}: a learning rate must be above 0, or nothing is learned")
    if global_batch < 1:
        raise ValueError(f"global_batch is {global_batch}: at least one sequence a step is needed")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas is {betas!r}: AdamW takes two numbers from 0 up to, but not including, 1")
    if not clip > 0:
        raise ValueError(f"clip is {clip!r}: the largest gradient norm must be above 0 (1.0 is usual)")
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay!r}: it must not be negative")
    if not 0 <= final_lr_ratio <= 1:
        raise ValueError(f"final_lr_ratio is {final_lr_ratio!r}: it is a share of lr, from 0 to 1")


def recipe_of(spec: Any, *, steps: int, warmup_steps: int) -> Recipe:
    """The recipe of a method's spec, whose fields have the names of Recipe's; `final_lr_ratio` may be missing."""
    given = {field.name for field in fields(Recipe)} - {"steps", "warmup_steps"}
    numbers = {name: getattr(spec, name) for name in sorted(given) if hasattr(spec, name)}
    names = ("lr", "global_batch", "betas", "clip", "weight_decay", "final_lr_ratio")
    check_numbers(**{name: numbers[name] for name in names if name in numbers})
    return Recipe(steps=steps, warmup_steps=warmup_steps, **numbers)


def check_length(spec: Any) -> None:
    """What can be wrong in a spec with epochs or steps, a warm-up as a share of them, and rows of its own length.

    Raises:
        ValueError: names the field, its value and what it may be.
    """
    if (spec.epochs is None) == (spec.steps is None):
        raise ValueError(f"give either epochs or steps (epochs is {spec.epochs!r}, steps is {spec.steps!r})")
    if spec.epochs is not None and not spec.epochs > 0:
        raise ValueError(f"epochs is {spec.epochs!r}: it must be above 0")
    if not 0 <= spec.warmup_ratio < 1:
        raise ValueError(f"warmup_ratio is {spec.warmup_ratio!r}: it is a share of the steps, from 0 up to 1")
    if spec.max_length < 2:
        raise ValueError(f"max_length is {spec.max_length}: a prompt and a completion take at least 2 tokens")
    steps = spec.steps if spec.steps is not None else max(spec.keep_steps, default=0) + 1  # known with the rows only
    recipe_of(spec, steps=steps, warmup_steps=0)


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """Fields of a method's spec whose length is a number of steps.

    steps, global_batch (sequences a step), lr (peak), warmup (steps) and schedule are the optimizer's; keep_steps are
    kept as models, 0 being the initialisation; the last always. split: of the data.
    """

    method: str
    steps: int
    global_batch: int
    lr: float
    schedule: Schedule = "cosine"
    warmup: int = 0
    weight_decay: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)
    clip: float = 1.0
    precision: Precision = "fp32"
    seed: int = 0
    keep_steps: tuple[int, ...] = ()
    split: str = "train"

    def __post_init__(self) -> None:
        self.recipe()

    def recipe(self) -> Recipe:
        """The numbers as the engine takes them."""
        return recipe_of(self, steps=self.steps, warmup_steps=self.warmup)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Fields of a method's spec that goes through rows of texts: either `epochs` or `steps`. An epoch is each row once;
    the last batch is filled up from the next pass.

    global_batch: rows a step. warmup_ratio: share of the steps. max_length: tokens of prompt and completion; what is
    beyond it is cut, and a row without a target left is dropped.
    """

    method: str
    global_batch: int
    lr: float
    epochs: float | None = None
    steps: int | None = None
    schedule: Schedule = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    clip: float = 1.0
    precision: Precision = "fp32"
    max_length: int = 1024
    template: Literal["plain", "chat"] = "plain"
    seed: int = 0
    keep_steps: tuple[int, ...] = ()
    split: str = "train"

    def __post_init__(self) -> None:
        check_length(self)

    def recipe(self, rows: int) -> Recipe:
        """The numbers as the engine takes them, for that many rows."""
        steps = self.steps if self.steps is not None else math.ceil((self.epochs or 0) * rows / self.global_batch)
        warmup = int(self.warmup_ratio * steps)  # down: a warm-up of one step would be a step at lr 0
        return recipe_of(self, steps=steps, warmup_steps=warmup)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a global batch is cut: micro_batch x accumulation x processes (ranks on all nodes) sequences, exactly."""

    micro_batch: int
    accumulation: int
    processes: int


def lay_out(global_batch: int, resources: Resources, tokens_a_row: int, budget: int, nodes: int = 1) -> Layout:
    """Cut a global batch over the resources of each of `nodes` nodes.

    tokens_a_row: length of the longest sequence. budget: tokens that a rank should process at once, which decides the
    micro-batch where resources leave it open: the largest divisor that stays within it. It never changes the result
    beyond rounding, and is halved as often as memory ran out before.

    Raises:
        ValueError: the global batch is not micro_batch x accumulation x processes; names all of them.
    """
    processes, micro = resources.processes * nodes, resources.micro_batch
    share, rest = divmod(global_batch, processes)
    if rest:
        raise ValueError(
            f"global_batch {global_batch} cannot be split over {processes} processes: use a number of processes that"
            f" divides it ({_divisors(global_batch)}) or another global_batch"
        )
    if micro is None:
        micro = _most(share, budget // tokens_a_row)
    if micro < 1 or share % micro:
        raise ValueError(
            f"global_batch {global_batch} is not micro_batch {micro} x accumulation x {processes} processes:"
            f" {processes} processes take {share} sequences each; valid micro_batch: {_divisors(share)}"
        )
    micro = _most(share, micro >> resources.halvings)
    return Layout(micro_batch=micro, accumulation=share // micro, processes=processes)


def _most(share: int, limit: int) -> int:
    """The largest divisor of `share` that is at most `limit`; at least 1."""
    return max((n for n in range(1, min(share, limit) + 1) if share % n == 0), default=1)


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
