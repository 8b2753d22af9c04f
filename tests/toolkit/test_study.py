"""The study language: what a file expands to, that this is a function of the file alone, and what is said of mistakes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import lock
from toolkit.expand import expand
from toolkit.fingerprint import canonical, fingerprint, spec_fields
from toolkit.spec import build
from toolkit.stage import Artifact, gather
from toolkit.study import Cell, Stage, Study, StudyError
from toolkit.study_file import build as build_study
from toolkit.study_file import load


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    lr: float = 1e-3
    seed: int = 0
    steps: int | None = None
    tasks: tuple[str, ...] = ()
    sizes: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr}")


@dataclass(frozen=True, kw_only=True)
class TrainInputs:
    model: Artifact | None = None
    data: Artifact | None = None
    base: Artifact | None = None


@dataclass(frozen=True, kw_only=True)
class LoadSpec:
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class NoInputs:
    pass


@dataclass(frozen=True, kw_only=True)
class NeedsModel:
    model: Artifact


@dataclass(frozen=True, kw_only=True)
class ManyInputs:
    model: Artifact
    data: dict[str, Artifact] = field(default_factory=dict)


def _job(spec: type, inputs: type, version: int = 1) -> ModuleType:
    module = ModuleType("job")
    vars(module).update(VERSION=version, Spec=spec, Inputs=inputs)
    return module


JOBS = {
    "train": _job(TrainSpec, TrainInputs),
    "load": _job(LoadSpec, NoInputs),
    "score": _job(LoadSpec, NeedsModel),
    "many": _job(LoadSpec, ManyInputs),
}


def load_job(name: str) -> ModuleType:
    if name not in JOBS:
        raise ValueError(f"unknown job {name!r}")
    return JOBS[name]


def cells_of(stages: dict[str, Stage]) -> list[Cell]:
    return expand(Study(name="s", stages=stages), load_job, lambda path: fingerprint("folder", 1, {"p": str(path)}, {}))


def names_of(stages: dict[str, Stage]) -> list[str]:
    return [cell.name for cell in cells_of(stages)]


CHECKPOINTS = Stage(job="load", axes={"step": [0, 10, 20]})


def test_axes_flow_along_the_edges_and_join():
    stages = {
        "base": CHECKPOINTS,
        "tuned": Stage(job="train", inputs={"model": "base"}, axes={"lr": [1e-5, "1e-4"]}),
        "merged": Stage(job="train", inputs={"model": "tuned", "base": "base"}),
    }
    cells = {cell.name: cell for cell in cells_of(stages)}
    assert len(cells) == 3 + 6 + 6
    merged = cells["merged[step=10,lr=0.0001]"]
    assert merged.inputs["model"] is cells["tuned[step=10,lr=0.0001]"]
    assert merged.inputs["base"] is cells["base[step=10]"]


def test_a_pin_takes_the_axis_away():
    stages = {
        "base": CHECKPOINTS,
        "end": Stage(job="train", inputs={"model": {"stage": "base", "step": 20}}),
        "merged": Stage(job="train", inputs={"model": "base", "base": {"stage": "base", "step": 20}}),
    }
    cells = {cell.name: cell for cell in cells_of(stages)}
    assert list(cells)[3:] == ["end", "merged[step=0]", "merged[step=10]", "merged[step=20]"]
    assert cells["merged[step=0]"].inputs["base"] is cells["base[step=20]"]


def test_a_union_opens_an_axis_and_broadcasts_what_a_member_lacks():
    stages = {
        "base": CHECKPOINTS,
        "one": Stage(job="train"),
        "scores": Stage(job="train", inputs={"model": ["base", "one"], "data": "base"}),
    }
    names = [name for name in names_of(stages) if name.startswith("scores")]
    by_base = [f"scores[step={s},model=base]" for s in (0, 10, 20)]
    assert names == by_base + [f"scores[model=one,step={s}]" for s in (0, 10, 20)]


def test_an_input_that_a_stage_has_several_of():
    stages = {"base": CHECKPOINTS, "rte": Stage(job="load"), "qqp": Stage(job="load", spec={"step": 1})}
    inputs = {"model": "base", "data": "rte", "data.qqp": "qqp"}
    cells = cells_of(stages | {"scores": Stage(job="many", inputs=inputs)})
    assert [cell.name for cell in cells if cell.stage == "scores"] == [f"scores[step={n}]" for n in (0, 10, 20)]
    assert list(cells[-1].inputs) == ["model", "data", "data.qqp"]
    swapped = cells_of(stages | {"scores": Stage(job="many", inputs=inputs | {"data": "qqp", "data.qqp": "rte"})})
    assert cells[-1].fingerprint != swapped[-1].fingerprint, "which data is whose is identity"
    given = {key: Artifact(path=Path(cell.stage)) for key, cell in cells[-1].inputs.items()}
    gathered = gather(ManyInputs, given)
    assert gathered == ManyInputs(model=given["model"], data={"": given["data"], "qqp": given["data.qqp"]})
    assert gather(TrainInputs, {"data": given["data"]}) == TrainInputs(data=given["data"])


def test_labelled_values_set_several_fields():
    stages = {"t": Stage(job="train", axes={"recipe": {"a": {"lr": 0.5, "seed": 3}, "b": {"steps": 7}}})}
    first, second = cells_of(stages)
    assert (first.coords, dict(first.spec)) == ({"recipe": "a"}, {"lr": 0.5, "seed": 3})
    assert (second.coords, dict(second.spec)) == ({"recipe": "b"}, {"steps": 7})


def test_labels_that_are_numbers_stay_numbers_in_json():
    """A launch keeps the study as JSON, whose keys are texts; workers must find the coordinates that the plan has."""
    stages = {
        "base": Stage(job="load", axes={"step": {0: {"step": 5}, 10: 7, "main": {"step": 9}}}),
        "scores": Stage(job="score", inputs={"model": {"stage": "base", "step": 10}}),
    }
    study = build_study(json.loads(json.dumps(Study(name="s", stages=stages).words())))
    cells = expand(study, load_job, str)
    assert [(cell.coords, dict(cell.spec)) for cell in cells[:3]] == [
        ({"step": 0}, {"step": 5}), ({"step": 10}, {"step": 7}), ({"step": "main"}, {"step": 9})
    ]  # fmt: skip
    assert cells[3].inputs["model"] is cells[1]
    assert [c.fingerprint for c in cells] == [c.fingerprint for c in cells_of(stages)]


def test_a_selection_that_is_not_locked_is_refused_by_name(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("name: s\nstages:\n  base:\n    job: load\n    axes:\n      step: {select: all}\n")
    with pytest.raises(StudyError, match=r"study.yaml:6: base.axes.step: .*`tidemark lock STUDY` looks it up"):
        expand(load(file), load_job, str)
    asked = {"spec": {}, "axes": {"step": {"select": "all"}}}
    entry = {"asked": asked, "spec": {}, "axes": {"step": [[0, {"step": 3}], ["main", {"step": 4}]]}}
    lock.write(file, {"base": entry})
    assert [(c.coords["step"], c.spec["step"]) for c in expand(load(file), load_job, str)] == [(0, 3), ("main", 4)]
    assert lock.read(file) == {"base": entry}
    with pytest.raises(StudyError, match="`tidemark lock STUDY` looks it up"):
        expand(load(file, ["base.step={select: main}"]), load_job, str)
    assert expand(load(file, ["base.step=[7]"]), load_job, str)[0].spec == {"step": 7}


def test_expansion_golden():
    """Names and fingerprints of a small study, held fixed: they are the identity of everything that users have made."""
    stages = {
        "base": CHECKPOINTS,
        "tuned": Stage(job="train", inputs={"model": "base"}, spec={"tasks": ["a", "b"]}, axes={"lr": [1e-5]}),
        "scores": Stage(job="score", inputs={"model": ["base", "tuned"]}),
    }
    golden = json.loads((Path(__file__).parent / "golden_expansion.json").read_text())
    assert {cell.name: cell.fingerprint for cell in cells_of(stages)} == golden


def test_fingerprint_golden():
    assert fingerprint("train", 1, {"lr": 1e-05, "tasks": ["a"]}, {"model": "0" * 64}) == (
        "6d6a820ec5f19d8b86a6bb7dcc1756e0a4e9b60b4632427f33d4cb8733d9ed4a"
    )


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), lambda: 0, {1: 2}, b"x", object()])
def test_what_has_no_canonical_form_raises(value):
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_carry_raise(value):
    with pytest.raises(ValueError, match="finite"):
        canonical(value)


specs = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.floats(1e-9, 1e3),
        "seed": st.integers(0, 2**40),
        "steps": st.none() | st.integers(1, 10**9),
        "tasks": st.lists(st.text(), max_size=3),
        "sizes": st.none() | st.dictionaries(st.text(), st.integers(), max_size=3),
    },
)
DEFAULTS = {"lr": 1e-3, "seed": 0, "steps": None, "tasks": [], "sizes": None}


@given(specs)
def test_spelling_a_default_out_changes_no_fingerprint(values):
    short, long = build(TrainSpec, values), build(TrainSpec, {**DEFAULTS, **values})
    assert fingerprint("train", 1, spec_fields(short), {}) == fingerprint("train", 1, spec_fields(long), {})


@given(specs, specs)
def test_different_specs_have_different_fingerprints(first, second):
    a, b = build(TrainSpec, first), build(TrainSpec, second)
    same = fingerprint("train", 1, spec_fields(a), {}) == fingerprint("train", 1, spec_fields(b), {})
    assert same == (a == b)


@st.composite
def studies(draw):
    """Random chains and joins of stages with axes, pins and unions that all expand."""
    steps = draw(st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True))
    stages = {"base": {"job": "load", "axes": {"step": steps}}}
    for i in range(draw(st.integers(1, 4))):
        upstream = draw(st.sampled_from(sorted(stages)))
        stage = {"job": "train", "inputs": {"model": upstream}, "spec": draw(specs)}
        if draw(st.booleans()):
            stage["inputs"]["base"] = {"stage": "base", "step": draw(st.sampled_from(steps))}
        stage["spec"].pop("seed", None)
        if draw(st.booleans()) and upstream == "base":
            stage["axes"] = {"seed": draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))}
        stages[f"s{i}"] = stage
    return {"name": "s", "stages": stages}


def _identities(words):
    study = build_study(json.loads(json.dumps(words)))
    return [(cell.name, cell.fingerprint, cell.label) for cell in expand(study, load_job, str)]


@settings(max_examples=60, deadline=None)
@given(studies(), st.randoms())
def test_expansion_is_a_function_of_the_file_alone(words, random):
    once = _identities(words)
    assert _identities(words) == once
    shuffled = {**words, "stages": dict(random.sample(sorted(words["stages"].items()), len(words["stages"])))}
    assert sorted(_identities(shuffled)) == sorted(once), "the order of stages in the file names nothing"
    assert _identities(build_study(words).words()) == once, "a study that was written and read again is the same study"


def error_of(text: str, tmp_path: Path, *sets: str) -> str:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        expand(load(path, sets), load_job, _content)
    return str(caught.value).replace(f"{path}", "study.yaml")


def _content(path: Path) -> str:
    if not path.exists():
        raise ValueError(f"there is no {path.name!r}")
    return "0" * 64


HEAD = "name: s\nstages:\n  base: {job: load, axes: {step: [0, 10]}}\n"

MISTAKES = {
    "typo in a key": (
        "  t:\n    job: train\n    sepc: {lr: 1}\n",
        "study.yaml:6: t.sepc: unknown key 'sepc'; did you mean 'spec'? valid: axes, inputs, job, path, resources, spec",
    ),
    "typo in a field": (
        "  t:\n    job: train\n    spec:\n      sed: 1\n",
        "study.yaml:7: t.spec.sed: unknown field 'sed'; did you mean 'seed'? valid: lr, seed, sizes, steps, tasks",
    ),
    "wrong type": ("  t:\n    job: train\n    spec: {seed: 1.5}\n", "study.yaml:6: t.spec.seed: 'seed' must be int, not 1.5"),
    "refused by the spec": ("  t:\n    job: train\n    spec: {lr: 0}\n", "study.yaml:6: t.spec: lr must be positive, not 0.0"),
    "unknown job": ("  t: {job: trian}\n", "study.yaml:4: t.job: unknown job 'trian'"),
    "unknown stage": (
        "  t: {job: train, inputs: {model: bse}}\n",
        "study.yaml:4: t.inputs.model: unknown stage 'bse'; did you mean 'base'? valid: base, t",
    ),
    "unknown input": (
        "  t: {job: train, inputs: {modle: base}}\n",
        "study.yaml:4: t.inputs.modle: unknown input 'modle'; did you mean 'model'? valid: base, data, model",
    ),
    "missing input": (
        "  t: {job: score}\n",
        "study.yaml:4: t.inputs: the input 'model' is missing; this job reads: model",
    ),
    "cycle": (
        "  a: {job: train, inputs: {model: b}}\n  b: {job: train, inputs: {model: a}}\n",
        "study.yaml:4: a: a cycle: a -> b -> a; a stage cannot read what is made from it",
    ),
    "axes that do not join": (
        "  other: {job: load, axes: {step: [10, 20]}}\n  t: {job: train, inputs: {model: base, data: other}}\n",
        "study.yaml:5: t.inputs.data: cannot be joined on the axis 'step': only one side has 0, 20; pin it or align the values",
    ),
    "a field twice": (
        "  t: {job: train, spec: {lr: 1}, axes: {lr: [1, 2]}}\n",
        "study.yaml:4: t.axes.lr: the field 'lr' stands in spec or in another axis too; keep one",
    ),
    "an axis twice": (
        "  t: {job: score, inputs: {model: base}, axes: {step: [1]}}\n",
        "study.yaml:4: t.axes.step: the axis 'step' comes already from an input; pin it there or choose another name",
    ),
    "an axis named like a column": (
        "  t: {job: train, axes: {task: {a: {lr: 1}}}}\n",
        "study.yaml:4: t.axes.task: an axis cannot be called 'task', which is a column of the table (taken: stage, job,",
    ),
    "unknown axis pinned": (
        "  t: {job: train, inputs: {model: {stage: base, stp: 10}}}\n",
        "study.yaml:4: t.inputs.model: unknown axis 'stp'; did you mean 'step'? valid: step",
    ),
    "unknown value pinned": (
        "  t:\n    job: train\n    inputs:\n      model: {stage: base, step: 11}\n",
        "study.yaml:7: t.inputs.model.step: unknown value of axis 'step' 11; did you mean '10'? valid: 0, 10",
    ),
    "union of the same stage": (
        "  t: {job: train, inputs: {model: [base, {stage: base, step: 0}]}}\n",
        "study.yaml:4: t.inputs.model: two alternatives are called 'base'; tell them apart with `as: LABEL`",
    ),
    "missing folder": ("  f:\n    path: nowhere.txt\n", "study.yaml:5: f.path: there is no 'nowhere.txt'"),
    "no path": ("  f: {path: null}\n", "study.yaml:4: f.path: needs a file or folder: --set f.path=PATH (it is None)"),
    "an unknown label's input": (
        "  t: {job: many, inputs: {model: base, dat.rte: base}}\n",
        "study.yaml:4: t.inputs.dat.rte: unknown input 'dat.rte'; did you mean 'data'? valid: data, data.NAME, model",
    ),
    "one input of a kind": (
        "  t: {job: train, inputs: {data.rte: base}}\n",
        "study.yaml:4: t.inputs.data.rte: unknown input 'data.rte'; did you mean 'data'? valid: base, data, model",
    ),
    "a key twice": ("  t:\n    job: train\n    job: load\n", "study.yaml:6: t.job: the key 'job' stands twice; the first is at study.yaml:5"),
    "an axis that is no list": ("  t: {job: train, axes: {lr: 1}}\n", "study.yaml:4: t.axes.lr: an axis is a list of values or a mapping"),
    "a list without a label": (
        "  t:\n    job: train\n    axes:\n      tasks:\n        - [a]\n",
        "study.yaml:8: t.axes.tasks.0: ['a'] needs a label: write the axis as a mapping {label: value}",
    ),
    "unknown resource": (
        "  t: {job: train, resources: {thread: 2}}\n",
        "study.yaml:4: t.resources.thread: unknown resource 'thread'; did you mean 'threads'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_place(mistake, tmp_path):
    text, message = MISTAKES[mistake]
    assert error_of(HEAD + text, tmp_path).startswith(message)


def test_overrides(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        HEAD + "  t: {job: train, inputs: {model: base}, spec: {seed: 1}, axes: {lr: [1, 2]}}\n  f: {path: null}\n"
    )
    sets = ["t.seed=4", "t.lr=[0.5]", "base.step=[7]", f"f.path={tmp_path}", "t.sizes.a=3"]
    cells = expand(load(path, sets), load_job, _content)
    tuned = next(cell for cell in cells if cell.stage == "t")
    assert (tuned.name, dict(tuned.spec)) == ("t[step=7,lr=0.5]", {"lr": 0.5, "seed": 4, "sizes": {"a": 3}})
    path.write_text(path.read_text() + "  s: {job: many, inputs: {model: base, data.rte: t, data: t}}\n")
    cells = expand(load(path, [*sets, "s.inputs.data.rte=base", "s.inputs.data=base"]), load_job, _content)
    assert {upstream.stage for upstream in cells[-1].inputs.values()} == {"base"}
    for override, message in {
        "tt.lr=1": "--set tt.lr=1: unknown stage 'tt'",
        "t": "--set needs stage.field=value, not 't'",
        "t.seed=x": "--set t.seed=x: t.spec.seed: 'seed' must be int, not 'x'",
        "f.path=gone": "--set f.path=gone: f.path: there is no 'gone'",
    }.items():
        with pytest.raises(StudyError) as caught:
            expand(load(path, [f"f.path={tmp_path}", override]), load_job, _content)
        assert str(caught.value).startswith(message)


def test_yaml_scalars_are_those_of_yaml_1_2(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: s\nstages:\n  t: {job: train, spec: {lr: 1e-5, tasks: [no, on, 1:30, 2020-01-01], steps: 1k}}\n"
    )
    (cell,) = expand(load(path), load_job, _content)
    assert dict(cell.spec) == {"lr": 1e-5, "tasks": ["no", "on", "1:30", "2020-01-01"], "steps": 1000}


def test_the_same_study_in_python(tmp_path):
    yaml = tmp_path / "study.yaml"
    yaml.write_text(HEAD + "  t: {job: train, inputs: {model: base}, axes: {lr: [0.5]}}\n")
    python = tmp_path / "study.py"
    python.write_text(
        "from toolkit.study import Stage, Study\n"
        "base = Stage(job='load', axes={'step': [0, 10]})\n"
        "tuned = Stage(job='train', inputs={'model': 'base'}, axes={'lr': [0.5]})\n"
        "study = Study(name='s', stages={'base': base, 't': tuned})\n"
    )
    identities = [[c.fingerprint for c in expand(load(path), load_job, _content)] for path in (yaml, python)]
    assert identities[0] == identities[1]


def test_a_folder_in_an_input_is_adopted(tmp_path):
    (tmp_path / "weights").mkdir()
    path = tmp_path / "study.yaml"
    path.write_text("name: s\nstages:\n  t: {job: score, inputs: {model: {path: weights}}}\n")
    folder, score = expand(load(path), load_job, _content)
    assert (folder.job, folder.source) == ("folder", tmp_path / "weights")
    assert score.inputs["model"] is folder
