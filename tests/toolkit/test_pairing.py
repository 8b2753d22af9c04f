"""Which cells of a study are compared and were not trained alike: `plan` says so."""

from pathlib import Path
from typing import Any

import pytest

from slurm.submissions import cells_of
from toolkit.pairing import unpaired
from toolkit.provenance import HOME
from toolkit.study import Stage, Study
from toolkit.study_file import load

MODEL = {
    "model_type": "olmo2",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
SFT: dict[str, Any] = {"method": "sft", "epochs": 1, "global_batch": 8, "lr": 1e-4}


def study(**tuned: Any) -> Study:
    """People, a checkpoint, one tuned stage with the given spec and axes, scores of it."""
    spec = {key: value for key, value in tuned.items() if key != "axes"}
    return Study(
        name="paired",
        stages={
            "people": Stage(job="prepare", spec={"dataset": "bios", "people": 4}),
            "tokenizer": Stage(job="tokenizer", inputs={"data": "people"}, spec={"split": "pretrain", "vocab_size": 300}),
            "base": Stage(
                job="train",
                inputs={"data": "people", "tokenizer": "tokenizer"},
                spec={"method": "pretrain", "architecture": MODEL, "steps": 1, "global_batch": 4, "lr": 1e-3},
            ),
            "tuned": Stage(job="train", inputs={"model": "base", "data": "people"}, spec=spec, axes=tuned["axes"]),
            "scores": Stage(job="evaluate", inputs={"model": "tuned", "data": "people"}, spec={"tasks": ["bios_qa_cloze"]}),
        },
    )  # fmt: skip


def warnings(tmp_path: Path, **tuned: Any) -> list[str]:
    return [line for lines in unpaired(cells_of(tmp_path, study(**tuned))).values() for line in lines]


def test_one_seed_for_all_methods_is_paired(tmp_path: Path) -> None:
    how = {"full": SFT, "lora": {**SFT, "method": "lora"}}
    assert warnings(tmp_path, axes={"how": how}) == []


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("seed", 1, "the order of the data and the initialisation"),
        ("global_batch", 16, "which rows meet in a step"),
        ("max_length", 64, "what is cut off the rows"),
    ],
)
def test_what_differs_between_methods_is_said(tmp_path: Path, field: str, value: int, what: str) -> None:
    how = {"full": SFT, "lora": {**SFT, "method": "lora", field: value}}
    [line] = warnings(tmp_path, axes={"how": how})
    assert line.startswith(f"scores compares how=full and how=lora: tuned[how=full] has {field} ")
    assert f"{value}; so {what} may differ too: give both the same, or make {field} an axis" in line


def test_an_axis_of_the_fields_name_is_meant(tmp_path: Path) -> None:
    assert warnings(tmp_path, **SFT, axes={"seed": [0, 1, 2]}) == []


def ensemble(second: dict[str, int]) -> Study:
    """Two reward models of different seeds, at two learning rates, that score together; `second` changes the second one."""
    reward = {"method": "reward", "epochs": 1}
    paired = study(**SFT, axes={"seed": [0]})
    stages = {name: stage for name, stage in paired.stages.items() if name not in ("tuned", "scores")}
    stages["pairs"] = Stage(job="prepare", inputs={"data": "people"}, spec={"dataset": "mistaken"})
    how = {"low": {"lr": 1e-5, "global_batch": 8}, "high": {"lr": 1e-4, "global_batch": 8} | second}
    inputs = {"model": "base", "data": "pairs"}
    stages["reward"] = Stage(job="train", inputs=inputs, spec=reward, axes={"how": how, "seed": [0, 1]})
    both = {f"reward.{i}": {"stage": "reward", "seed": i} for i in (0, 1)}
    stages["judged"] = Stage(job="score", inputs=both | {"data": "pairs"}, spec={"split": "heldout"})
    return Study(name="ensemble", stages=stages)


def test_members_of_an_ensemble_differ_on_purpose(tmp_path: Path) -> None:
    assert unpaired(cells_of(tmp_path, ensemble({}))) == {}
    [[line, another]] = unpaired(cells_of(tmp_path, ensemble({"global_batch": 16, "max_length": 64}))).values()
    assert "how=low and how=high: reward[how=low,seed=0] has global_batch 8 and reward[how=high,seed=0] 16" in line
    assert "max_length" in another


@pytest.mark.parametrize("name", ["quickstart", "peft", "rlhf-tiny"])
def test_our_own_studies_are_paired(tmp_path: Path, name: str) -> None:
    assert unpaired(cells_of(tmp_path, load(HOME / "configs" / "studies" / f"{name}.yaml"))) == {}
