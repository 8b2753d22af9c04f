import numpy as np
import pytest

from toolkit.analysis.seeds import spread


def made(random: np.random.Generator, seed: float, seeds: int = 4, items: int = 120) -> np.ndarray:
    """Scores with known components: seed, 0.3 between items, 0.2 of each."""
    return (
        0.4 + seed * random.normal(size=(seeds, 1)) + 0.3 * random.normal(size=(1, items))
        + 0.2 * random.normal(size=(seeds, items))
    )  # fmt: skip


def test_components_equal_the_analysis_of_variance_of_statsmodels() -> None:
    # statsmodels 0.15.0: anova_lm(ols("y ~ C(s) + C(i)", data).fit()), mean squares 0.355617, 0.232994, 0.034447
    random = np.random.default_rng(5)
    x = (
        0.4 + 0.1 * random.normal(size=(4, 1)) + 0.3 * random.normal(size=(1, 30)) + 0.2 * random.normal(size=(4, 30))
    ).round(3)
    found = spread(x)
    assert (found.seed, found.item, found.rest) == pytest.approx(
        (0.01070567720, 0.04963674157, 0.03444711446), abs=1e-9
    )
    assert found.variance == pytest.approx(found.seed / 4 + found.item / 30 + found.rest / 120)
    assert found.mean == pytest.approx(x.mean()) and (found.seeds, found.items) == (4, 30)


def test_components_are_unbiased_and_the_interval_covers() -> None:
    random = np.random.default_rng(0)
    runs = [spread(made(random, 0.05)) for _ in range(1500)]
    assert np.mean([r.seed for r in runs]) == pytest.approx(0.05**2, rel=0.1)
    assert np.mean([r.item for r in runs]) == pytest.approx(0.3**2, rel=0.05)
    assert np.mean([r.rest for r in runs]) == pytest.approx(0.2**2, rel=0.05)
    assert 0.93 <= np.mean([r.low <= 0.4 <= r.high for r in runs]) <= 0.97


def test_seeds_and_items_are_told_apart() -> None:
    random = np.random.default_rng(1)
    assert spread(made(random, 0.0)).share_of_seeds < 0.2 < 0.6 < spread(made(random, 0.1)).share_of_seeds
    same = spread(np.tile(random.integers(0, 2, 50), (3, 1)))
    assert same.seed == same.rest == 0 and same.item > 0


@pytest.mark.parametrize("scores", [[[0.1, 0.2]], [[0.1], [0.2]], [0.1, 0.2], [[0.1, np.nan], [0.2, 0.3]]])
def test_one_seed_says_nothing_of_the_spread(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least two seeds"):
        spread(scores)
