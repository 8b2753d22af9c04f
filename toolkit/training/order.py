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
