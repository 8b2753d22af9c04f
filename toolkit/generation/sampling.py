"""Sampling and stopping that treat every row of a batch as if it were alone.

One uniform number u decides each token: row r at step s takes the first token whose cumulative probability exceeds u,
which is exact sampling by inversion. u comes from a counter-based generator keyed by (seed, r), so that an answer
depends neither on the rows beside it nor on their order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase, StoppingCriteria

WINDOW = 8  # tokens beyond a stop string's own bytes that are decoded to find it


def uniforms(seed: int, ids: Sequence[int], steps: int) -> torch.Tensor:
    """Numbers in [0, 1), float64, of shape [rows, steps]; row i depends on (seed, ids[i]) alone."""
    rows = [np.random.Generator(np.random.Philox(key=[seed, row])).random(steps) for row in ids]
    return torch.from_numpy(np.stack(rows))


def draw(logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """One token id a row. logits: [rows, vocabulary]; u: [rows] in [0, 1); returns [rows].

    top_p keeps the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al. 2020, section 3.1).
    Sums run in float64: in float32 the cumulative sum of a large vocabulary is off by more than rare tokens weigh.
    """
    p = torch.softmax(logits.double() / temperature, dim=-1)
    if top_p < 1.0:
        ordered, index = p.sort(dim=-1, descending=True, stable=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
        p = torch.zeros_like(p).scatter(-1, index, ordered)
    mass = p.cumsum(-1)
    target = u[:, None] * mass[:, -1:]
    found = torch.searchsorted(mass, target, right=True)[:, 0]
    # u * mass can round up to the whole mass; the last token with any probability is then the one meant.
    last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(found, last)


class RowSampler(LogitsProcessor):
    """Leaves one token possible in every row: the one that `draw` takes with that row's number for this step."""

    def __init__(self, numbers: torch.Tensor, start: int, temperature: float, top_p: float) -> None:
        self.numbers, self.start, self.temperature, self.top_p = numbers, start, temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        u = self.numbers[:, input_ids.shape[1] - self.start].to(scores.device)
        chosen = draw(scores, u, self.temperature, self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen[:, None], 0.0)


class StopText(StoppingCriteria):
    """Ends a row once its decoded answer holds one of the strings; `ended[row]` is its length in tokens by then."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], start: int) -> None:
        self.tokenizer, self.strings, self.start = tokenizer, tuple(strings), start
        self.window = max(len(s.encode()) for s in strings) + WINDOW
        self.ended: dict[int, int] = {}

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        recent = input_ids[:, max(self.start, input_ids.shape[1] - self.window) :].tolist()
        for row, tokens in enumerate(recent):
            if row not in self.ended:
                text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                if any(s in text for s in self.strings):
                    self.ended[row] = input_ids.shape[1] - self.start
        return torch.tensor([row in self.ended for row in range(len(recent))], device=input_ids.device)
