"""Integers against the formulas, computed anew in NumPy's float64, and against what must hold for any numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.quantization.integers import absmax, dequantize, pack, product, unpack, zero_point

ROWS = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6), min_size=1, max_size=5)


def numbers(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("dim", [None, 1])
def test_absmax_is_the_formula(dim: int | None) -> None:
    x = torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    true = x.numpy().astype(np.float64)
    scale = np.abs(true).max(axis=dim, keepdims=dim is not None) / 127
    found = absmax(x, dim)
    assert np.abs(found.codes.numpy() - true / scale).max() <= 0.5 + 1e-4
    np.testing.assert_allclose(dequantize(found), np.rint(true / scale) * scale, atol=1.01 * scale.max())
    assert found.codes.abs().max() == 127


@pytest.mark.parametrize("dim", [None, 1])
def test_zero_point_is_the_formula(dim: int | None) -> None:
    x = torch.rand(7, 33, generator=torch.Generator().manual_seed(0)) * 3 - 1
    true = x.numpy().astype(np.float64)
    low, high = (pick(true, axis=dim, keepdims=dim is not None) for pick in (np.min, np.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = (high - low) / 255
    found = zero_point(x, dim)
    assert found.zero is not None
    np.testing.assert_allclose(found.scale.numpy(), scale, rtol=1e-6)
    np.testing.assert_array_equal(found.zero.numpy(), np.rint(-128 - low / scale))
    np.testing.assert_allclose(dequantize(found), scale * (found.codes.numpy() - found.zero.numpy()), rtol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_the_error_is_half_a_step_at_most(bits: int, rows: list[list[float]]) -> None:
    """A zero that is rounded shifts the range by up to half a step more, which is cut off at its end."""
    x = numbers(rows)
    for dim in (None, 1):
        for turn, steps in ((absmax, 0.5), (zero_point, 1.0)):
            found = turn(x, dim, bits)
            assert bool(((dequantize(found) - x).abs() <= found.scale * (steps + 1e-3) + 1e-30).all())


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, power=st.integers(-8, 8))
def test_a_power_of_two_scales_the_result_and_no_code(rows: list[list[float]], power: int) -> None:
    x = numbers(rows)
    x = x.where(x.abs() > 1e-3, 0.0)
    for turn in (absmax, zero_point):
        one, two = turn(x, 1), turn(x * 2.0**power, 1)
        if bool(x.abs().amax(1).min() > 0):
            assert torch.equal(one.codes, two.codes)
            assert torch.equal(dequantize(one) * 2.0**power, dequantize(two))


def test_zero_is_exact_and_zeros_are_zeros() -> None:
    for turn in (absmax, zero_point):
        assert dequantize(turn(torch.tensor([[0.0, 3.0, 7.3]]), 1))[0, 0] == 0
        assert bool((dequantize(turn(torch.zeros(2, 3), 1)) == 0).all())


def test_absmax_changes_sign_with_its_numbers() -> None:
    x = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(absmax(-x, 1).codes, -absmax(x, 1).codes)


def test_all_codes_survive_packing() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 1)
    assert torch.equal(unpack(pack(codes)), codes) and pack(codes).shape == (3, 8)


@pytest.mark.parametrize("turn_x", [absmax, zero_point])
@pytest.mark.parametrize("turn_w", [absmax, zero_point])
@pytest.mark.parametrize("dim", [None, 1])
def test_the_product_of_integers_is_that_of_what_they_stand_for(
    turn_x: object, turn_w: object, dim: int | None
) -> None:
    """Against float64 of the dequantized operands; wide enough that sums in fp32 would round."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 4096, generator=generator) + 0.3, torch.randn(8, 4096, generator=generator) - 0.1
    one, two = turn_x(x, dim), turn_w(w, dim)  # type: ignore[operator]
    values = []
    for found in (one, two):
        codes = found.codes.double() - (0 if found.zero is None else found.zero.double())
        values.append(codes * found.scale.double())
    torch.testing.assert_close(product(one, two), (values[0] @ values[1].t()).float(), rtol=1e-6, atol=1e-6)
