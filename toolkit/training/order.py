"""The order of the rows: a function of the seed and the number of rows, not of ranks, micro-batches or restarts."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class Order(Sampler[int]):
    """`total` row numbers: one permutation of all rows after the other, each from the generator of (seed, pass).

    The steps of a run take `global_batch` rows each from this sequence, so every step has a full batch: a batch may
    reach over the end of a pass.
    """

    def __init__(self, *, rows: int, total: int, seed: int) -> None:
        assert rows > 0 and total > 0
        self.rows = rows
        self.total = total
        self.seed = seed

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        left, number = self.total, 0
        while left > 0:
            # A pair as the seed: `seed + number` would give seed 0's second pass to seed 1 as its first.
            permutation = np.random.default_rng([self.seed, number]).permutation(self.rows)
            yield from permutation[:left].tolist()
            left -= self.rows
            number += 1


class Groups(Sampler[int]):
    """For TRL's policy methods: the prompts of a step, in groups of `answers`, anew for each of its micro-batches.

    TRL takes all prompts of a step with its first micro-batch and passes over what the others bring. global_batch: of
    answers, so that a step takes global_batch / answers rows of `order`.
    """

    def __init__(self, order: Order, answers: int, global_batch: int, micro_batches: int) -> None:
        self.answers, self.micro_batches = answers, micro_batches
        self.a_step = global_batch // answers
        self.order = Order(rows=order.rows, total=order.total // answers, seed=order.seed)

    def __len__(self) -> int:
        return len(self.order) * self.answers * self.micro_batches

    def __iter__(self) -> Iterator[int]:
        prompts = list(self.order)
        for start in range(0, len(prompts), self.a_step):
            for _ in range(self.micro_batches):
                for prompt in prompts[start : start + self.a_step]:
                    yield from [prompt] * self.answers
