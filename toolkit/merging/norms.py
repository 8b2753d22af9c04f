"""How large are weights, and differences of weights: mean |x| and mean x^2 over all elements, in float64.

The ratio of mean |trained - base| to mean |instruct - base| is the criterion of the delta merge's source: small means
that training moved the weights little where instruction tuning moved them much.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 4096


@dataclass(kw_only=True)
class Norms:
    """Sums over everything that was added, by name."""

    sums: dict[str, float] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, x: "torch.Tensor") -> None:
        """Add a flat fp32 chunk."""
        self.sums[name] = self.sums.get(name, 0.0) + _sum(x.abs())
        self.squares[name] = self.squares.get(name, 0.0) + _sum(x.square())
        self.counts[name] = self.counts.get(name, 0) + x.numel()

    def mean_abs(self, name: str) -> float:
        """Mean |x|."""
        return self.sums[name] / self.counts[name]

    def mean_square(self, name: str) -> float:
        """Mean x^2."""
        return self.squares[name] / self.counts[name]


def _sum(x: "torch.Tensor") -> float:
    """Sum of a flat chunk in float64, equal for every number of threads: each block is added up by one thread."""
    import torch

    whole = x.numel() // BLOCK * BLOCK
    total = float(x[whole:].sum(dtype=torch.float64))
    if whole:
        total += sum(x[:whole].view(-1, BLOCK).sum(dim=1, dtype=torch.float64).tolist())
    return total
