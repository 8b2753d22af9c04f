"""Sampling by inversion draws from the model's distribution, and depends on (seed, row, step) alone."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import TopPLogitsWarper

from toolkit.generation.sampling import draw, uniforms


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draw_takes_tokens_as_often_as_the_softmax_says(temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(50)
    u = uniforms(1, [0], 200_000)[0]
    chosen = draw(logits.expand(len(u), -1), u, temperature, 1.0)
    expected = torch.softmax(logits.double() / temperature, -1) * len(u)
    assert stats.chisquare(np.bincount(chosen, minlength=50), expected.numpy()).pvalue > 0.001


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_keeps_the_tokens_that_transformers_keeps(top_p: float) -> None:
    torch.manual_seed(1)
    logits = torch.randn(40) * 2
    kept = torch.isfinite(TopPLogitsWarper(top_p)(torch.zeros(1, 1), logits[None]))[0]
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    counts = torch.bincount(draw(logits.expand(len(grid), -1), grid, 1.0, top_p), minlength=40)
    assert torch.equal(counts > 0, kept)
    expected = torch.softmax(logits.double().masked_fill(~kept, -torch.inf), -1)
    assert torch.allclose(counts.double() / len(grid), expected, atol=2e-5)


def test_a_number_at_the_very_end_takes_the_last_possible_token() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    assert draw(logits, torch.tensor([1.0 - 2**-53], dtype=torch.float64), 1.0, 1.0).tolist() == [1]
    assert draw(logits, torch.tensor([0.0], dtype=torch.float64), 1.0, 1.0).tolist() == [0]


def test_numbers_depend_on_seed_and_row_and_not_on_the_company() -> None:
    together, alone = uniforms(7, [3, 1, 2], 5), uniforms(7, [2], 5)
    assert torch.equal(together[2], alone[0])
    assert not torch.equal(uniforms(8, [2], 5), alone)
    assert not torch.equal(uniforms(2, [7], 5), alone)
