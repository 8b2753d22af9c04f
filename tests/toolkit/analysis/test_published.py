"""What Amuro & Char released, as rows: read from `../shared/amuro` where that is, and from lines written here."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from toolkit.analysis import load_published
from toolkit.analysis.dynamics import average, gain, learned_in, mean_relative_change, transfer
from toolkit.analysis.published import amuro

RELEASED = Path(__file__).parents[4] / "shared" / "amuro"
released = pytest.mark.skipif(not RELEASED.is_dir(), reason="the released tables are not here")
OWN = """,model_id,eval dataset,Performance,std
0,olmo1b_hf_ckpt1000_mnli_3epoch_2e-6_4shots,mnli_matched_instruct,0.5,0.005
1,olmo1b_hf_main_tulu_5epoch_2e-6_4shots,llmbar_Adversarial_Manual,0.3,0.07
2,olmo1b_checkpoint-1000_original_hf_4shots,socialiqa,0.018,0.001
3,checkpoint-1000_4shots,socialiqa,0.019,0.001
4,olmo1b_original_hf,socialiqa,0.033,0.001
5,olmo1b_checkpoint-18000_original_hf_4shots,socialiqa,0.07,0.001
"""
OFFICIAL = ",model_id,eval dataset,Performance\n0,checkpoint-1000,sciq,0.382\n1,olmo1b_original_hf,sciq,0.93000004\n"


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / amuro.OWN).write_text(OWN)
    (tmp_path / amuro.OFFICIAL).write_text(OFFICIAL)
    return tmp_path


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return load_published("amuro", RELEASED)


def test_a_models_name_says_its_coordinates() -> None:
    assert amuro.coordinates("olmo1b_hf_ckpt18000_xsum_3epoch_2e-7_4shots") == {
        "step": 18000, "tokens": 75497472000, "train": "xsum", "epochs": 3, "lr": 2e-7, "shots": 4,
    }  # fmt: skip
    base = {"step": 738020, "tokens": 738020 * 4194304, "train": "base"}
    assert amuro.coordinates("olmo1b_original_hf_7shots") == {**base, "shots": 7}
    assert amuro.coordinates("olmo1b_original_hf") == {**base, "shots": 0}
    for name in ("checkpoint-1000", "olmo1b_checkpoint-1000_original_hf", "olmo1b_checkpoint-1000_original"):
        assert amuro.coordinates(name)["step"] == 1000 and amuro.coordinates(name)["train"] == "base"
    with pytest.raises(ValueError, match="'olmo7b_main' is not named as in the release"):
        amuro.coordinates("olmo7b_main")


def test_rows_of_both_tables(tables: Path) -> None:
    rows = [{**row, **json.loads(row["coords"])} for row in amuro.read(tables)]
    (one,) = [r for r in rows if r["train"] == "mnli"]
    assert (one["task"], one["format"], one["metric"], one["stderr"]) == ("mnli_matched", "instruct", "acc", 0.005)
    assert [r["task"] for r in rows if r["train"] == "tulu"] == ["llmbar_Adversarial_Manual"]
    sciq = {r["step"]: r for r in rows if r["harness"] == "olmo-eval"}
    assert sciq[1000]["n"] == 1000 and sciq[738020]["n"] is None  # no whole number of a thousand items
    assert {r["value"] for r in sciq.values()} == {0.382, 0.93000004, None} and len(sciq) == 8


def test_a_second_name_of_one_model_stays_and_gaps_are_seen(tables: Path) -> None:
    rows = [{**row, **json.loads(row["coords"])} for row in amuro.read(tables / amuro.OWN)]
    again = {r.get("repeat"): r["value"] for r in rows if (r["task"], r["step"], r["shots"]) == ("socialiqa", 1000, 4)}
    assert again == {None: 0.018, 1: 0.019}
    few = [r for r in rows if (r["task"], r["shots"]) == ("socialiqa", 4) and r["value"] is None]
    assert [r["step"] for r in few] == [342000, 424000, 505000, 592000, 738000, 738020]
    assert all(r["tokens"] == r["step"] * 2048 * 2048 for r in rows)


def test_what_was_not_released_is_refused(tables: Path) -> None:
    with pytest.raises(ValueError, match="give a folder with all_perf_table.csv and official_eval_table.csv"):
        amuro.read(tables / "elsewhere")
    (tables / amuro.OWN).write_text(OWN.replace("ckpt1000", "step1000"))
    with pytest.raises(ValueError, match=r"all_perf_table.csv:2: model 'olmo1b_hf_step1000"):
        amuro.read(tables)
    (tables / amuro.OWN).write_text(OWN.replace("Performance", "score"))
    with pytest.raises(ValueError, match="no column 'Performance'; it has , model_id, eval dataset, score, std"):
        amuro.read(tables)


@released
def test_every_released_number_is_there_once(frame: pd.DataFrame) -> None:
    for name in (amuro.OWN, amuro.OFFICIAL):
        with (RELEASED / name).open() as lines:
            numbers = sorted(float(row["Performance"]) for row in csv.DictReader(lines))
        rows = frame[(frame["harness"] == amuro.HARNESS[name]) & frame["value"].notna()]
        assert sorted(rows["value"]) == numbers
    keys = [c for c in frame.columns if c not in ("value", "stderr", "n")]
    assert not frame.duplicated(keys).any() and (frame["value"].isna().sum(), len(frame)) == (51, 807)
    official = frame[(frame["harness"] == "olmo-eval") & frame["value"].notna()]
    assert official["n"].notna().all()


@released
def test_the_cells_that_the_paper_lacks_are_seen(frame: pd.DataFrame) -> None:
    rows = frame[(frame["train"] == "paws") & (frame["task"] == "mnli_matched")]
    assert rows[rows["value"].isna()]["step"].tolist() == [342000, 738000]


@released
def test_table_6(frame: pd.DataFrame) -> None:
    """All 16 cells to 3 decimals."""
    paper = pd.read_csv(RELEASED / "paper_table6.csv")
    ours = amuro.table6(frame)
    assert ours["step"].astype(str).tolist() == [*paper["checkpoint"][:-1], "738020"]
    for name in ("learned_in_pretrain", "learned_in_finetune"):
        assert ours[name].round(3).tolist() == paper[name].tolist()


@released
def test_aggregates_equal_sums_over_the_released_lines(frame: pd.DataFrame) -> None:
    """Mean relative change and out-of-domain transfer, from the file's names and numbers alone."""
    with (RELEASED / amuro.OWN).open() as lines:
        score = {(r["model_id"], r["eval dataset"]): float(r["Performance"]) for r in csv.DictReader(lines)}
    apart: dict[str, list[float]] = {}
    for step in [f"ckpt{n}" for n in amuro.STEPS[:-1]] + ["main"]:
        base = f"olmo1b_checkpoint-{step[4:]}_original_hf_4shots" if step != "main" else "olmo1b_original_hf_4shots"
        for train, lr in (("mnli", "2e-6"), ("paws", "2e-6"), ("socialiqa", "2e-6"), ("xsum", "2e-7")):
            for task in {"mnli_matched", "paws", "socialiqa", "xsum"} - {train, f"{train}_matched"}:
                tuned = score.get((f"olmo1b_hf_{step}_{train}_3epoch_{lr}_4shots", task))
                if tuned is not None:
                    apart.setdefault(train, []).append((tuned - score[base, task]) / score[base, task])
    gains = gain(amuro.paper_rows(frame))
    found = mean_relative_change(gains, amuro.CROSS_TASK, ["train"]).set_index("train")
    for train, changes in apart.items():
        assert found["mean"][train] == pytest.approx(sum(changes) / len(changes)) and found["n"][train] == len(changes)
    assert found["missing"].to_dict() == {"mnli": 1, "paws": 2, "socialiqa": 0, "xsum": 0}
    for pairs, trained in ((amuro.CLASSES_TO_TEXTS, ("mnli", "paws")), (amuro.TEXTS_TO_CLASSES, ("xsum", "socialiqa"))):
        assert {train for train, _ in pairs} == set(trained) and len(pairs) == 4
    (worse,) = mean_relative_change(gains, amuro.CLASSES_TO_TEXTS, [])["mean"]
    (kept,) = mean_relative_change(gains, amuro.TEXTS_TO_CLASSES, [])["mean"]
    assert (round(worse, 3), round(kept, 3)) == (-0.615, 0.003)  # as the authors' notebook gives on the same files
    moved = transfer(gains, amuro.IN_DOMAIN, amuro.OUT_OF_DOMAIN, ["train"]).set_index("train")
    tuned_main, base_main = "olmo1b_hf_main_mnli_3epoch_2e-6_4shots", "olmo1b_original_hf_4shots"
    at_main = average(gains[gains["step"] == amuro.MAIN], amuro.OUT_OF_DOMAIN, ["train"]).set_index("train")
    nli = [score[tuned_main, task] - score[base_main, task] for task in ("rte", "gpt3nli")]
    assert at_main["mean"]["mnli"] == pytest.approx(sum(nli) / 2)
    assert moved["transfer"]["mnli"] > 0.2 > 0 > moved["transfer"]["paws"]


@released
def test_the_papers_groups_come_out_of_the_rule(frame: pd.DataFrame) -> None:
    groups = learned_in(amuro.paper_rows(frame)).set_index(["metric", "task"])["group"]
    for pairs, group in ((amuro.LEARNED_IN_PRETRAINING, "pretraining"), (amuro.LEARNED_IN_TUNING, "finetuning")):
        for train, task in pairs:
            metric = "acc" if train == "tulu" or task not in amuro.TEXT_TASKS else "rouge_l"
            assert groups[metric, task] == group
