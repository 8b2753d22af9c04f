"""Profiles: what is shipped reads, what is wrong is named, and which shape a cell gets."""

import json
from pathlib import Path
from typing import Any

import pytest

from slurm import profiles, submissions
from slurm.arrays import python_command, srun_arguments
from tests.test_house import ROOT
from toolkit.stage import Resources
from toolkit.study import Stage, Study, StudyError

WORDS: dict[str, Any] = {
    "shapes": {
        "cpu": {"cpus": 4, "memory": 8, "hours": 2},
        "gpu": {"gpus": 2, "cpus": 16, "memory": 64, "hours": 8, "workers": 3},
        "nodes": {"nodes": 4, "gpus": 8, "cpus": 64, "hours": 24},
    },
    "jobs": {"default": {"shape": "cpu"}, "train": {"shape": "gpu", "zero": 2}, "train.pretrain": {"shape": "nodes"}},
}


@pytest.mark.parametrize("path", sorted(profiles.CLUSTERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_profile_fits_the_quickstart(path: Path, tmp_path: Path) -> None:
    from toolkit.study_file import load

    profile, words = profiles.load(path.stem)
    assert profiles.read(json.loads(json.dumps(words))) == profile, "as a submission keeps it"
    cells = submissions.cells_of(tmp_path, load(ROOT / "configs" / "studies" / "quickstart.yaml"))
    fits = profiles.fits(profile, cells)
    assert {cell.fingerprint for cell in cells} == set(fits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": {"cpu": {"cpus": 4, "hour": 2}}}, "line 3?.*shapes.cpu.hour: unknown field 'hour'; did you mean"),
        ({"shapes": {"cpu": {"cpus": "many", "hours": 2}}}, "shapes.cpu.cpus: 'cpus' must be int, not 'many'"),
        ({"shapes": {"cpu": {"cpus": 0, "hours": 2}}}, "shapes.cpu: cpus is 0: at least 1"),
        ({"shapes": {"c pu": {"hours": 2}}}, "a shape's name is letters"),
        ({"shapes": {"login": {"hours": 2}}}, "which is this host"),
        ({"shapes": {"cpu": {"hours": 2, "partition": "a\nb"}}}, "cannot stand in a batch file"),
        ({"shapes": {"cpu": {"hours": 2, "sbatch": {"--gres": "gpu"}}}}, "without dashes in front"),
        ({"jobs": {"train": {"shape": "cpu"}}}, "which shape is the `default`"),
        ({"jobs": {"default": {"shape": "cpus"}}}, "jobs.default.shape: unknown shape 'cpus'; did you mean 'cpu'"),
        ({"jobs": {"default": {"shape": "cpu", "zeros": 2}}}, "jobs.default.zeros: unknown field 'zeros'"),
        (
            {"jobs": {"default": {"shape": "cpu"}, "trian": {"shape": "cpu"}}},
            "unknown job 'trian'; did you mean 'train'",
        ),
        ({"scheduler": "pbs"}, "scheduler: unknown value of 'scheduler' 'pbs'"),
        ({"container": {"runtime": "docker", "image": "x"}}, "container.runtime"),
        ({"shape": {}}, "unknown field 'shape'; did you mean 'shapes'"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**WORDS, **change}, indent=1))
    with pytest.raises(StudyError, match=message.replace("line 3?.*", "")) as caught:
        profiles.load(str(path))
    assert str(path) in str(caught.value)


def test_an_unknown_cluster_lists_the_known_ones() -> None:
    with pytest.raises(StudyError, match="unknown cluster 'slurm-genric'; did you mean 'slurm-generic'"):
        profiles.load("slurm-genric")


def cell(job: str, spec: dict[str, Any], tmp_path: Path, **resources: Any) -> Any:
    stages = {
        "folder": Stage(path=str(tmp_path)),
        "it": Stage(
            job=job,
            spec=spec,
            resources=resources,
            inputs={"source": "folder"} if job == "convert" else {"model": "folder", "data": "folder"},
        ),
    }
    if spec.get("method") == "pretrain":
        stages["it"] = Stage(job=job, spec=spec, resources=resources, inputs={"data": "folder", "tokenizer": "folder"})
    (tmp_path / "file").write_text("x")
    return submissions.cells_of(tmp_path, Study(name="s", stages=stages))[-1]


SFT = {"method": "sft", "epochs": 1, "global_batch": 8, "lr": 1e-4}
PRETRAIN = {
    "method": "pretrain", "steps": 1, "global_batch": 8, "lr": 1e-4,
    "architecture": {"model_type": "olmo2", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2},
}  # fmt: skip


def test_a_cell_gets_the_shape_of_its_method_and_the_stages_words_win(tmp_path: Path) -> None:
    profile = profiles.read(WORDS)
    assert profiles.fit(profile, cell("convert", {}, tmp_path)).name == "cpu"
    tuned = profiles.fit(profile, cell("train", SFT, tmp_path))
    assert tuned.name == "gpu"
    assert tuned.resources() == Resources(processes=2, threads=8, zero=2), "one rank a GPU, all CPUs"
    assert profiles.fit(profile, cell("train", PRETRAIN, tmp_path)).name == "nodes"
    own = profiles.fit(profile, cell("train", SFT, tmp_path, zero=3, processes=1, micro_batch=4))
    assert own.resources(halvings=1) == Resources(processes=1, threads=16, zero=3, micro_batch=4, halvings=1)


def test_a_stage_that_needs_more_gets_a_shape_that_has_it(tmp_path: Path) -> None:
    profile = profiles.read(WORDS)
    assert profiles.fit(profile, cell("convert", {}, tmp_path, memory=32)).name == "gpu"
    assert profiles.fit(profile, cell("train", SFT, tmp_path, gpus=8)).name == "nodes"
    with pytest.raises(
        StudyError, match="no shape of this cluster is enough for gpus 16, zero 2; there are cpu: 1 nodes"
    ):
        profiles.fit(profile, cell("train", SFT, tmp_path, gpus=16))
    with pytest.raises(StudyError, match="the job 'convert' runs on one node, and the shape 'nodes'"):
        profiles.fit(profile, cell("convert", {}, tmp_path, hours=20))


def test_a_method_that_cannot_run_as_the_profile_has_it_is_refused_where_it_is_planned(tmp_path: Path) -> None:
    profile, message = (
        profiles.read({**WORDS, "jobs": WORDS["jobs"] | {"train": {"shape": "gpu", "zero": 3}}}),
        "zero is 3",
    )
    four = {**SFT, "method": "lora", "base": "nf4"}
    with pytest.raises(
        StudyError, match=f"it.resources: with what the profile gives this stage, base is nf4 and {message}"
    ):
        profiles.fits(profile, [cell("train", SFT, tmp_path), cell("train", four, tmp_path)])
    assert len(profiles.fits(profile, [cell("train", four, tmp_path, zero=2)])) == 1, "what the stage says wins"
    with pytest.raises(StudyError, match=f"it.spec: base is nf4 and {message}"):  # without a cluster
        cell("train", four, tmp_path, zero=3)
    with pytest.raises(StudyError, match="it.spec: prefix_tuning hands its prefix over"):
        cell("train", {**SFT, "method": "prefix_tuning"}, tmp_path, gradient_checkpointing=True)
    bare = profiles.read({**WORDS, "jobs": {"default": {"shape": "cpu"}}})
    with pytest.raises(StudyError, match="offload is cpu and zero is not set: say zero 2 or 3 beside it"):
        profiles.fits(bare, [cell("train", SFT, tmp_path, offload="cpu")])
    with pytest.raises(StudyError, match="unknown field 'base'"):  # all weights cannot be trained in four bits
        cell("train", {**SFT, "base": "nf4"}, tmp_path)


def test_what_covers_what() -> None:
    shapes = profiles.read(WORDS).shapes
    assert shapes["gpu"].covers(shapes["cpu"]) and not shapes["cpu"].covers(shapes["gpu"])
    assert shapes["nodes"].covers(shapes["gpu"]), "the first of its nodes is enough"
    other = profiles.read({**WORDS, "shapes": {**WORDS["shapes"], "two": {"nodes": 2, "hours": 1}}}).shapes["two"]
    assert not shapes["nodes"].covers(other), "ranks are spread over all nodes of a worker"


def test_containers() -> None:
    box = {"runtime": "apptainer", "image": "/images/a b.sif", "mounts": ["/scratch"], "options": ["--nv"]}
    profile = profiles.read({**WORDS, "container": box, "python": "python3"})
    assert python_command(profile) == "apptainer exec --nv --bind /scratch '/images/a b.sif' python3"
    profile = profiles.read({**WORDS, "container": {**box, "runtime": "pyxis"}})
    assert "--container-image=/images/a b.sif" in srun_arguments(profile)
    assert "--container-mounts=/scratch:/scratch" in srun_arguments(profile)
