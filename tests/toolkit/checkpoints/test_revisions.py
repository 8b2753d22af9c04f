"""Revisions are read off the names that suites publish, and come in the order of training."""

import random
from pathlib import Path

import pytest

from toolkit import families
from toolkit.checkpoints.revisions import Model, Revision, from_branches, from_list, join, missing

LISTS = Path(__file__).parents[4] / "shared" / "amuro"
ANY = Model(repo="any/model")


@pytest.mark.parametrize(
    ("model", "branch", "stage", "ingredient", "step", "tokens"),
    [
        ("olmo-1b", "step20000-tokens84B", 1, "", 20_000, 83_886_080_000),
        ("olmo2-1b", "stage1-step10000-tokens21B", 1, "", 10_000, 20_971_520_000),
        ("olmo2-7b", "stage2-ingredient3-step1000-tokens5B", 2, "3", 1_000, 4_194_304_000),
        ("olmo3-7b", "stage1-step1413814", 1, "", 1_413_814, 5_929_965_715_456),
        ("olmo3-7b", "stage3-step100", 3, "", 100, None),
        ("olmo-7b-twin", "step80000-tokens335B", 1, "", 80_000, 335_000_000_000),
        ("pythia-70m", "step143000", 1, "", 143_000, 299_892_736_000),
        ("amber", "ckpt_004", 1, "", 4, None),
        ("crystal", "CrystalCoder_phase3_checkpoint_027728", 3, "", 27_728, None),
        ("smollm2-1.7b", "step-125000", 1, "", 125_000, 262_144_000_000),
        ("smollm3-3b", "stage2-step-3480000", 2, "", 3_480_000, 8_210_350_080_000),
        ("some/model", "step_5000-7BT", 1, "", 5_000, 7_000_000_000),
    ],
)
def test_branches_of_every_family(
    model: str, branch: str, stage: int, ingredient: str, step: int, tokens: int | None
) -> None:
    found, others = from_branches(families.find(model), ["main", branch, "refs-convert"])
    assert others == ["refs-convert"]
    assert found == [
        Revision(step=step, tokens=tokens, stage=stage, ingredient=ingredient, branch=branch),
        Revision(branch="main"),
    ]


def test_order_is_that_of_training_whatever_order_they_come_in() -> None:
    names = ["stage1-step0", "stage1-step900", "stage1-step1000", "stage2-ingredient1-step5", "stage2-ingredient1-step40",
             "stage2-ingredient2-step5", "stage2-ingredient10-step5", "stage2-ingredient1+2-step40", "stage3-step1", "main"]  # fmt: skip
    shuffled = random.Random(0).sample(names, len(names))
    ordered = [revision.branch for revision in from_branches(ANY, shuffled)[0]]
    assert ordered.index("stage2-ingredient2-step5") < ordered.index("stage2-ingredient10-step5")
    assert [n for n in ordered if "+" not in n] == [n for n in names if "+" not in n]
    one, two = Revision(step=1), Revision(step=1, branch="step1")
    assert one < two and not two < one, "a total order, also where only the place differs"


def test_pythia_announced_154_steps() -> None:
    model = families.find("pythia-70m-deduped")
    assert model.expected is not None and len(model.expected) == 154
    there = [f"step{step}" for step in model.expected if step not in (0, 512, 71000)]
    assert missing(model, from_branches(model, there)[0]) == [0, 512, 71000]


def test_steps_without_a_usual_distance_miss_nothing() -> None:
    assert missing(ANY, from_branches(ANY, ["step1", "step2", "step10", "step50", "step1000000"])[0]) == []
    assert missing(ANY, from_branches(ANY, ["step10", "step20", "step40", "step50"])[0]) == [30]


def test_an_unknown_model_is_told_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown model 'olmo-1bb'; did you mean 'olmo-1b'"):
        families.find("olmo-1bb")
    assert families.find("allenai/OLMo-1B-hf") is families.find("olmo-1b")
    assert families.find("me/mine") == Model(repo="me/mine")


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists of originals are not here")
@pytest.mark.parametrize(
    ("name", "file", "count", "first", "last", "absent"),
    [
        ("olmo-1b", "OLMo-1B.csv", 351, 1000, 738_020, {6000, 7000, 8000, 9000}),
        ("olmo2-1b", "OLMo-2-0425-1B.csv", 195, 0, 1_907_359, set()),
        ("olmo2-1b", "OLMo-2-0425-1B-stage2.csv", 72, 1000, 23_852, set()),
    ],
)
def test_published_lists(name: str, file: str, count: int, first: int, last: int, absent: set[int]) -> None:
    model = families.find(name)
    found = from_list(model, (LISTS / file).read_text(), file)
    assert len(found) == count and found == sorted(found)
    assert (found[0].step, found[-1].step) == (first, last)
    assert all(r.url.startswith("https://olmo-checkpoints.org/ai2-llm/") and r.url.endswith("/") for r in found)
    stages = {(r.stage, r.ingredient) for r in found}
    assert stages == ({(2, "1"), (2, "2"), (2, "3")} if "stage2" in file else {(1, "")})
    assert absent <= set(missing(model, found))


@pytest.mark.skipif(not LISTS.is_dir(), reason="the published lists of originals are not here")
def test_a_step_may_be_on_the_hub_or_an_original_or_both() -> None:
    model = families.find("olmo-1b")
    originals = from_list(model, (LISTS / "OLMo-1B.csv").read_text(), "OLMo-1B.csv")
    both = join(from_branches(model, ["main", "step342000-tokens1434B", "step20000-tokens84B"])[0], originals)
    by_step = {r.step: r for r in both}
    assert (
        by_step[342000].branch and by_step[342000].url and not by_step[1000].branch and by_step[None].branch == "main"
    )
    assert len(both) == len({r.step for r in originals} | {20000, 342000}) + 1


def test_the_url_decides_where_a_list_contradicts_itself() -> None:
    text = "Step,Checkpoint Directory\n5,https://h/ai2-llm/x/step7-unsharded/\n8,https://h/x/step8+3-nooptim-reshard4\n"
    assert [r.step for r in from_list(ANY, text, "x.csv")] == [7, 8]
    text = "Ingredient,Step,Checkpoint Directory\n1+2,5,https://h/x/stage2/step5-unsharded/\n"
    assert [(r.stage, r.ingredient) for r in from_list(ANY, text, "x.csv")] == [(2, "1+2")]
    with pytest.raises(ValueError, match="x.csv:2: 'https://h/a/optim' is not the URL of a folder"):
        from_list(ANY, "Step,Checkpoint Directory\n1,https://h/a/optim/\n", "x.csv")
    with pytest.raises(ValueError, match="x.csv is no list of originals"):
        from_list(ANY, "a,b\n1,2\n", "x.csv")
