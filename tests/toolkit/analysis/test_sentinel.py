"""A sentinel that comes out the same is silent, one that drifts is told, and neither is taken for two models that tie."""

from typing import Any

import pyarrow as pa

from toolkit.analysis.guards import shared_scores
from toolkit.analysis.sentinel import drift

from .test_guards import long


def repeats(*values: Any, **more: Any) -> pa.Table:
    rows = [{"stage": "sentinel", "value": value, "n": 200, "stderr": 0.02, **more} for value in values]
    return long(rows).append_column("repeat", pa.array(range(len(rows))))


def test_repeats_that_agree_are_silent() -> None:
    assert drift(repeats(0.5, 0.5, 0.5)) == []
    assert drift(repeats(1.234567, 1.2345671)) == [], "another card adds in another order"
    assert shared_scores(repeats(0.32731, 0.32731, 0.32731)) == []
    assert drift(long([{"value": 0.5}, {"value": 0.6}])) == [], "a table without repeats"


def test_repeats_that_differ_are_told_with_their_size() -> None:
    (told,) = drift(repeats(0.5, 0.5, 0.51, None, step=30))
    assert told.startswith(
        "acc of t drifts in sentinel (step 30 model m): 0.50000 (repeat 0), 0.51000 (repeat 2), 0.5 st"
    )


def test_only_what_differs_in_the_repeat_alone_goes_together() -> None:
    both = pa.concat_tables([repeats(0.5, 0.5, model="a"), repeats(0.7, 0.7, model="b"), repeats(0.2, task="u")])
    assert drift(both) == []
    assert len(drift(pa.concat_tables([both, repeats(0.5, 0.4, task="v"), repeats(0.5, 0.4, metric="f1")]))) == 2
