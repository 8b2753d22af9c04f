"""Dynamics on a table of eight numbers, whose answers were worked out by hand, and where the numbers do not suffice."""

import math

import pandas as pd
import pyarrow as pa
import pytest

from toolkit.analysis import to_frame
from toolkit.analysis.dynamics import (
    average,
    forgetting,
    format_sensitivity,
    gain,
    learned_in,
    mean_relative_change,
    revealed_by_tuning,
    transfer,
)
from toolkit.analysis.gaps import spread_gaps

from .fake_study import skill

TASKS = {"own": (0.2, 0.5), "near": (0.4, 0.5), "far": (0.5, 0.3), "gone": (0.0, 0.1)}  # base, tuned


def line(train: str, task: str, value: float, step: int = 100, **more: object) -> dict[str, object]:
    lr = 1e-5 if train != "base" else math.nan
    return {"stage": train, "job": "evaluate", "step": step, "tokens": 1000 * step, "train": train, "lr": lr, "task": task,
            "metric": "acc", "value": value, "stderr": 0.03, "n": 200, "state": "done", **more}  # fmt: skip


@pytest.fixture
def frame() -> pd.DataFrame:
    rows = [line("base", task, base) for task, (base, _) in TASKS.items()]
    return pd.DataFrame(rows + [line("t", task, tuned) for task, (_, tuned) in TASKS.items()])


def test_gain_is_tuned_less_base(frame: pd.DataFrame) -> None:
    found = gain(frame).set_index("task")
    assert found["gain"].round(9).to_dict() == {"own": 0.3, "near": 0.1, "far": -0.2, "gone": 0.1}
    assert found["relative"]["far"] == pytest.approx(-0.4) and math.isnan(found["relative"]["gone"])
    assert found["gain_stderr"]["own"] == pytest.approx(0.03 * math.sqrt(2))
    assert found["lr"].tolist() == [1e-5] * 4  # an axis that bases do not have is no part of the pairing


def test_means_over_other_tasks(frame: pd.DataFrame) -> None:
    gains, others = gain(frame), [("t", "near"), ("t", "far")]
    (mean,) = mean_relative_change(gains, others)["mean"]
    assert mean == pytest.approx((0.1 / 0.4 - 0.2 / 0.5) / 2)
    (lost,) = forgetting(gains, others)["mean"]
    assert lost == pytest.approx((-0.1 + 0.2) / 2)
    moved = transfer(gains, [("t", "own")], [("t", "near")]).iloc[0]
    assert moved["transfer"] == pytest.approx(0.1) and moved["share"] == pytest.approx(1 / 3)
    whole = transfer(gains, [("t", "own")], others, over=()).iloc[0]
    assert whole["transfer"] == pytest.approx(-0.05) and whole["n"] == 2


def test_a_pair_that_is_listed_twice_counts_twice_and_a_missing_one_is_counted(frame: pd.DataFrame) -> None:
    gains = gain(frame)
    assert average(gains, [("t", "own"), ("t", "far"), ("t", "own")])["mean"][0] == pytest.approx(0.4 / 3)
    frame.loc[(frame["train"] == "t") & (frame["task"] == "far"), "value"] = math.nan
    found = average(gain(frame), [("t", "own"), ("t", "far")]).iloc[0]
    assert (found["mean"], found["n"], found["missing"]) == (pytest.approx(0.3), 1, 1)
    later = pd.concat([frame, pd.DataFrame([line("base", "own", 0.2, 200), line("t", "own", 0.4, 200)])])
    found = average(gain(later), [("t", "own"), ("t", "near")]).set_index("step")
    assert found["missing"].to_dict() == {100: 0, 200: 1}  # a pair that has no row at a checkpoint was not run there
    assert average(gain(later), [("t", "own"), ("t", "near")], ["task"])["missing"].tolist() == [0, 0]
    relative = mean_relative_change(gains, [("t", "near"), ("t", "gone")]).iloc[0]
    assert (relative["mean"], relative["missing"]) == (pytest.approx(0.25), 1)


def test_what_is_ambiguous_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="unknown column 'trian'; did you mean 'train'"):
        gain(frame, by="trian")
    with pytest.raises(ValueError, match="unknown value of 'train' 'basis'; did you mean 'base'"):
        gain(frame, base="basis")
    with pytest.raises(ValueError, match="two rows with train = 'base' have step 100"):
        gain(pd.concat([frame, frame[frame["train"] == "base"]]))
    with pytest.raises(ValueError, match="train 't' on task 'else'"):
        average(gain(frame), [("t", "else")])
    both = pd.concat([frame, frame[frame["train"] == "t"].assign(lr=1e-4)])
    with pytest.raises(ValueError, match="they differ in lr"):
        average(gain(both), [("t", "own")])


def test_format_sensitivity_is_the_range_over_formats() -> None:
    scores = {"default": 0.5, "instruct": 0.3, "inputoutput": 0.4}
    rows = [line("t", "own", value, format=name) for name, value in scores.items()]
    found = format_sensitivity(pd.DataFrame([*rows, line("base", "own", 0.2, format="default")])).set_index("train")
    assert found["range"]["t"] == pytest.approx(0.2) and found["relative"]["t"] == pytest.approx(0.5)
    assert found["sd"]["t"] == pytest.approx(0.1) and found["formats"].to_dict() == {"base": 1, "t": 3}
    assert math.isnan(found["range"]["base"])


def test_what_pre_training_teaches_and_what_tuning_reveals() -> None:
    """`seen`: the base learns it; `latent`: flat until tuned, and better the more pre-training; `flat`: neither."""
    rows = []
    for i, step in enumerate((1, 10, 100, 1000, 10000)):
        wobble = 0.01 * (-1) ** i
        for task, base, tuned in (
            ("seen", 0.2 + 0.1 * i, 0.3 + 0.1 * i),
            ("latent", 0.3, 0.3 + 0.1 * i),
            ("flat", 0.3, 0.5),
        ):
            rows += [line("base", task, base + wobble, step), line("t", task, tuned + wobble / 2, step)]
    frame = pd.DataFrame(rows)
    groups = learned_in(frame).set_index("task")["group"].to_dict()
    assert groups == {"seen": "pretraining", "latent": "finetuning", "flat": "finetuning"}
    found = revealed_by_tuning(gain(frame)).set_index("task")
    assert found["revealed"].to_dict() == {"seen": False, "latent": True, "flat": False}
    assert found["gain_slope"]["latent"] == pytest.approx(0.1, abs=0.01) and found["checkpoints"]["latent"] == 5


def test_a_study_of_ones_own(table: pa.Table) -> None:
    """The stages are a union, the base is called `checkpoint`, some cells were not run."""
    frame = to_frame(spread_gaps(table))
    gains = gain(frame[frame["metric"] == "acc"], by="model", base="checkpoint")
    assert set(gains["model"]) == {"tuned", "merged"} and set(gains["shots"]) == {0, 4}
    one = gains.query("model == 'tuned' and step == 1000 and shots == 0 and task == 'bios_qa'").iloc[0]
    assert one["gain"] == pytest.approx(skill(1000, "tuned") - skill(1000, "checkpoint"), abs=0.005)
    few = gains[(gains["shots"] == 0) & (gains["model"] == "tuned")]
    means = average(few, [("tuned", "piqa"), ("tuned", "bios_qa")], by="model").set_index("step")
    assert means["missing"].to_dict() == {0: 0, 30: 0, 100: 0, 300: 2, 1000: 0}
