"""Which revisions a selection has, what they are called, and what is said of a wrong one."""

from typing import Any

import pytest

from toolkit.checkpoints.revisions import Model, Revision, from_branches
from toolkit.checkpoints.selection import choose, labels, read

STEPS = (0, 100, 1000, 2000, 4000)
SECOND = ("stage2-ingredient1-step500", "stage2-ingredient2-step500")
MODEL = Model(repo="org/model", tokens_per_step=2_097_152)
REVISIONS = from_branches(MODEL, [*(f"stage1-step{step}" for step in STEPS), *SECOND, "main"])[0]


def select(words: Any, revisions: list[Revision] = REVISIONS) -> list[int | str]:
    return labels(choose(read(words), revisions))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({"steps": [1000, 0]}, [0, 1000]),
        ({"steps": ["2k"]}, [2000]),
        ({"tokens": ["2B", "8B", "9B"]}, [1000, 4000]),
        ({"every": 2000, "main": True}, [0, 2000, 4000, "main"]),
        ({"log_spaced": 2}, [100, 4000]),
        ({"log_spaced": 3}, [100, 1000, 4000]),
        ({"log_spaced": 4, "steps": [0], "without": [4000, "stage1-step100"]}, [0, 1000, 2000]),
        ("main", ["main"]),
        ("all", [*STEPS, *SECOND, "main"]),
        ({"all": True, "stage": 1}, [*STEPS, "main"]),
        ({"stage": 2, "ingredient": 2, "steps": [500], "main": True}, [500, "main"]),
        ({"stage": 2, "all": True}, [500, SECOND[1]]),
    ],
)
def test_what_is_selected_and_what_it_is_called(words: Any, wanted: list[int | str]) -> None:
    assert select(words) == wanted


def test_log_spacing_is_even_where_steps_are_dense() -> None:
    dense = from_branches(MODEL, [f"step{step}" for step in range(0, 100_001, 1000)])[0]
    assert select({"log_spaced": 5}, dense) == [1000, 3000, 10_000, 32_000, 100_000]
    assert len(select({"log_spaced": 100}, dense)) == 100, "as many as are asked for, where they are there"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"steps": [150]}, "steps: there is no step 150; the nearest are 0, 100, 1000, 2000"),
        ({"log_spaced": 9}, "log_spaced: 9 of the 4 revisions after step 0 cannot be chosen"),
        ({"stage": 2, "steps": [500]}, "stage 2 has the ingredients 1, 2: choose one with `ingredient`"),
        ({"stage": 3, "every": 1}, "no revision is of stage 3; the stages are 1, 2"),
        (
            {"stage": 2, "ingredient": 7, "every": 1},
            "no revision is of stage 2, ingredient 7; the ingredients are 1, 2",
        ),
        ({"step": [0]}, "unknown word of a selection 'step'; did you mean 'steps'?"),
        ({"steps": [0], "without": [7]}, "without: 7 is none of the 1 selected revisions"),
        ({"steps": [0], "without": [0]}, "selects none of the 8 revisions"),
        ({"main": False}, "a selection names steps, tokens, every, log_spaced, main or all"),
        ({"every": 0}, "every is 0; it must be at least 1"),
        ({"log_spaced": 1}, "log_spaced is 1; it must be at least 2"),
        ({"all": True, "pattern": "ckpt_[0-9"}, "pattern 'ckpt_[0-9' is not a regular expression"),
        ({"all": True, "pattern": r"ckpt_\d+"}, "has no group (?P<step>...)"),
        ("everything", "a selection is `all`, `main` or words such as"),
        ([0, 1], "a selection is `all`, `main` or words such as"),
    ],
)
def test_a_wrong_selection_is_a_sentence(words: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        select(words)
    assert message in str(caught.value)


def test_what_suites_do_not_have() -> None:
    amber = from_branches(Model(repo="a/b", pattern=r"ckpt_(?P<step>\d+)"), ["ckpt_001", "ckpt_002"])[0]
    with pytest.raises(ValueError, match="tokens: nobody says how many tokens"):
        select({"tokens": ["1B"]}, amber)
    with pytest.raises(ValueError, match="main: there is no branch main"):
        select("main", amber)
