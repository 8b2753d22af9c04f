"""Scores against worked examples and the longest common subsequence computed directly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.evaluation.scores import METRICS, exact_match, f1, normalise, rouge_l


def test_normal_form() -> None:
    assert normalise("  The Hague, a city of  THE Netherlands. ") == "hague city of netherlands"
    assert normalise("Theatre") == "theatre", "articles are words, not prefixes"


@pytest.mark.parametrize(
    "prediction, gold, em, score",
    [
        (" Paris.", "paris", 1.0, 1.0),
        ("in Paris", "Paris", 0.0, 2 * 0.5 * 1 / 1.5),
        ("red red blue", "red blue blue green", 0.0, 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        ("Rome", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
    ],
)
def test_exact_match_and_f1(prediction: str, gold: str, em: float, score: float) -> None:
    assert exact_match(prediction, gold) == em
    assert f1(prediction, gold) == pytest.approx(score, abs=1e-12)


def subsequence(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return subsequence(a[:-1], b[:-1]) + 1
    return max(subsequence(a[:-1], b), subsequence(a, b[:-1]))


@settings(deadline=None)  # the first call imports rouge_score
@given(st.lists(st.sampled_from("abc"), max_size=6), st.lists(st.sampled_from("abc"), max_size=6))
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(said: list[str], right: list[str]) -> None:
    common = subsequence(said, right)
    expected = 2 * common / (len(said) + len(right)) if common else 0.0
    assert rouge_l(" ".join(said), " ".join(right)) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_lie_between_0_and_1(prediction: str, gold: str) -> None:
    for score in METRICS.values():
        assert 0.0 <= score(prediction, gold) <= 1.0
