"""configs/studies/inheritune.yaml is locked to commits, and plans then."""

from pathlib import Path

from tests.hub.commands import ROOT, Desk, tiny_model
from tests.hub.standin import Standin

WANTED = {  # what the study takes of data sets
    "wikimedia/wikipedia": ("main", "20231101.en/train-00000-of-00041.parquet"),
    "google/boolq": ("main", "data/train-00000-of-00001.parquet"),
    "allenai/winogrande": ("refs/convert/parquet", "winogrande_xl/train/0000.parquet"),
    "baber/piqa": ("main", "train.parquet"),
}


def test_the_study_plans_once_it_is_locked(hub: Standin, tmp_path: Path) -> None:
    hub.push("allenai/OLMo-2-0425-1B", "main", tiny_model(tmp_path / "model", 0))
    for repo, (branch, path) in WANTED.items():
        hub.push(repo, branch, {path: b"PAR1"}, kind="dataset")
    desk = Desk(tmp_path, hub)
    desk.study.write_text((ROOT / "configs/studies/inheritune.yaml").read_text())
    said = desk.said("lock", desk.study)
    for stage in ("published", "articles", "questions", "schemas", "goals"):
        assert f"{stage}: 1 to fetch" in said
    states = {stage["stage"]: stage["states"]["never-run"] for stage in desk.json("plan", desk.study)}
    measured = dict.fromkeys(("reading", "pronouns", "commonsense"), 1 + 2 + 4 + 2)
    assert states == {
        **dict.fromkeys(("published", "parent", "articles", "text", "fraction", "questions", "schemas", "goals"), 1),
        **dict.fromkeys(("boolq", "winogrande", "piqa"), 1),
        **{"child": 2, "trained": 4, "distilled": 2},
        **measured,
    }
