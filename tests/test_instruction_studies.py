"""The instruction studies of configs/studies: their miniature forms run, and their full forms lock and plan, against data
sets in the layout of the Hub and checkpoints of which some are originals."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from slurm.submissions import cells_of
from tests.hub import conftest
from tests.hub.commands import Desk, tiny_model
from tests.hub.standin import Standin
from tests.toolkit.data.hub_layouts import LAYOUTS, hub_files
from toolkit import study_file
from toolkit.data.tasks import describe

hub = conftest.hub  # the fixture
STUDIES = Path(__file__).parents[1] / "configs" / "studies"
TIDEMARK = Path(sys.executable).with_name("tidemark")
FEW = {
    "stories.sizes": "{train: 200, validation: 20, test: 20}",
    "pretrained.steps": 6,
    "pretrained.keep_steps": "[6]",
    "pretrained.architecture.hidden_size": 32,
}
SETS = {
    "amuro-sft-tiny": {
        **FEW, "spoken.rows": 300, "checkpoint.step": "[6]", "scores.limit": 2, "transfer.limit": 2, "scores.shots": "[4]", "transfer.shots": "[4]",
        "scores.format": "[inputoutput]", "transfer.format": "[default]", **{f"{name}.rows.train": 16 for name in ("mnli", "paws", "xsum", "socialiqa")},
        **{f"tuned_{name}.epochs": 1 for name in ("mnli", "paws", "xsum", "socialiqa")},
        "scores.inputs.model": "[tuned_xsum]", "transfer.inputs.model": "[{stage: checkpoint, as: base}]",
    },
    "amuro-it-tiny": {**FEW, "checkpoint.step": "[6]", "tulu.rows.train": 16, "tuned.epochs": 1, "scores.limit": 4, "scores.shots": "[4]"},
    "t0-generalization-tiny": {
        **FEW, "mixture.rows": 32, "tuned.seed": "[0]", "scores.limit": 6,
        "mixture.trained_on": "{1: {weights: {paws: 1}}, 4: {weights: {paws: 1, xsum: 1, boolq: 1, sciq: 1}}}",
    },
}  # fmt: skip
EXPECTED = {  # study -> (metrics of each model, models)
    "amuro-sft-tiny": {"mnli_matched", "mnli_mismatched", "paws", "xsum", "socialiqa", "rte", "qqp", "cnn", "tweetqa"},
    "amuro-it-tiny": {"arc_easy", "hellaswag", "boolq", "sciq"},
    "t0-generalization-tiny": {"mnli_matched_cloze", "rte_cloze"},
}


def run(study: str, command: str, root: Path, *options: str) -> str:
    sets = [word for key, value in SETS[study].items() for word in ("--set", f"{key}={value}")]
    words = [TIDEMARK, command, STUDIES / f"{study}.yaml", "--root", root, *sets, *options]
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("instruction studies")


@pytest.mark.parametrize("study", SETS)
def test_the_miniature_form_runs(study: str, root: Path) -> None:
    run(study, "launch", root, "--workers", "1")  # one: what a worker imports first takes longer than most of the cells
    rows = list(csv.DictReader(io.StringIO(run(study, "table", root, "--format", "csv"))))
    assert {row["state"] for row in rows} == {"done"}
    tasks = {row["task"] for row in rows if row["stage"] in ("scores", "transfer") and row["task"]}
    assert {re.sub("_inputoutput$", "", task) for task in tasks} >= EXPECTED[study], tasks
    if study == "t0-generalization-tiny":
        mixed = {(row["trained_on"], row["metric"]): float(row["value"]) for row in rows if row["stage"] == "mixture"}
        assert mixed["4", "rows_of_sciq"] == 8 and mixed["1", "contaminated_by_mnli"] == 0 and mixed["1", "ngram"] == 13


def repositories(studies: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """(repository, revision) -> the data sets that the studies prepare from it."""
    found: dict[tuple[str, str], list[str]] = {}
    for study in studies:
        for stage in yaml.safe_load((STUDIES / f"{study}.yaml").read_text())["stages"].values():
            dataset = stage.get("spec", {}).get("dataset")
            if dataset in LAYOUTS:
                about = describe(dataset)
                names = found.setdefault((about.repo, about.revision), [])
                names += [dataset] if dataset not in names else []
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, bytes]]:
    """step -> the files of a checkpoint."""
    folder = tmp_path_factory.mktemp("models")
    return {step: tiny_model(folder / str(step), step) for step in (342000, 424000, 505000, 592000, 738000)}


@pytest.fixture
def published(hub: Standin, models: dict[int, dict[str, bytes]], tmp_path: Path) -> Desk:  # noqa: F811
    """All that the three studies take from the Hub, in small."""
    for (repo, revision), datasets in repositories(["amuro-sft", "amuro-it", "t0-generalization"]).items():
        files = {path: data for name in datasets for path, data in hub_files(name).items()}
        hub.push(repo, revision, files, kind="dataset")
    for step, model in models.items():
        hub.push("allenai/OLMo-1B-hf", f"step{step}-tokens{round(step * 2048 * 2048 / 1e9)}B", model)
    hub.push("allenai/OLMo-1B-hf", "main", model)
    hub.push("allenai/OLMo-2-0425-1B", "main", model)
    lines = ["Step,Checkpoint Directory"]
    for step in (1000, 18000):
        folder = tmp_path / "originals" / f"ai2-llm/olmo-small/abc/step{step}-unsharded"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("model: {}\n")
        (folder / "model.pt").write_bytes(f"step {step}".encode() * 100)
        lines.append(f"{step},{hub.storage}/ai2-llm/olmo-small/abc/step{step}-unsharded/")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    return Desk(tmp_path, hub)


@pytest.mark.parametrize(
    ("study", "counts"),
    [
        ("amuro-sft", {"checkpoint": 8, "tuned_xsum": 8, "scores": 8 * 5 * 2 * 3, "transfer": 8 * 5 * 2 * 2}),
        ("amuro-it", {"checkpoint": 8, "tuned": 8, "scores": 8 * 2 * 2}),
        ("t0-generalization", {"mixture": 4, "tuned": 12, "scores": 13}),
    ],
)
def test_the_full_form_locks_and_plans(published: Desk, study: str, counts: dict[str, int]) -> None:
    """Locked against a Hub; then planned with no network, from the lock alone."""
    text = (STUDIES / f"{study}.yaml").read_text()
    published.study.write_text(text.replace("originals: true", "originals: list.csv"))
    published.said("lock", "study.yaml")
    cells = cells_of(published.root, study_file.load(published.study))
    found = {stage: sum(cell.stage == stage for cell in cells) for stage in counts}
    assert found == counts
    lock = json.loads((published.folder / "study.lock").read_text())["stages"]
    if "published" in lock:
        at = dict(lock["published"]["axes"]["step"])
        assert list(at) == [1000, 18000, 342000, 424000, 505000, 592000, 738000, "main"]
        assert "original" in at[1000] and "original" in at[18000] and len(at[342000]["revision"]) == 40


def test_the_full_form_has_the_papers_numbers() -> None:
    """../shared/amuro/README.md: rows, epochs, batch, schedule, learning rates, context, seed; the same in both studies."""
    sft = yaml.safe_load((STUDIES / "amuro-sft.yaml").read_text())["stages"]
    it = yaml.safe_load((STUDIES / "amuro-it.yaml").read_text())["stages"]
    rates = {"mnli": 2e-6, "paws": 2e-6, "xsum": 2e-7, "socialiqa": 2e-6}
    shared = {"method": "sft", "global_batch": 8, "schedule": "linear", "warmup_ratio": 0.03, "weight_decay": 0.0,
              "precision": "bf16", "max_length": 2048, "seed": 42}  # fmt: skip
    for name, rate in rates.items():
        stage = sft[f"tuned_{name}"]
        assert stage["spec"] == {**shared, "epochs": 3} and float(stage["axes"]["train"][name]["lr"]) == rate
        assert stage["inputs"]["data"] == name and sft[name]["spec"]["rows"] == {"train": 6000}
    assert it["tuned"]["spec"] == {**shared, "epochs": 5} and float(it["tuned"]["axes"]["train"]["tulu"]["lr"]) == 2e-6
    assert it["published"] == sft["published"]
