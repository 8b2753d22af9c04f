"""The rules of the house that a machine can check: which way imports run, what is light, how a job looks, how long
files are, what is pinned. Each rule is a function of the files, so that a test can also hand it one that breaks it.
"""

import ast
import configparser
import dataclasses
import importlib.metadata
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jobs
from toolkit.lookup import find, names
from toolkit.spec import defaults, field_types
from toolkit.stage import SEVERAL, Artifact

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"toolkit": {"toolkit"}, "jobs": {"toolkit", "jobs"}, "slurm": {"toolkit", "jobs", "slurm"}}
DEEPSPEED = ("toolkit/training/engine.py", "toolkit/training/state.py")  # how it runs, and what it holds
ONLY_IN = {"submitit": ("slurm/",), "deepspeed": DEEPSPEED, "lm_eval": ("toolkit/evaluation/",)}
NEVER_IN = {"toolkit/analysis/": {"torch", "transformers", "datasets"}}
HEAVY = {"torch", "transformers", "datasets", "pandas", "pyarrow", "numpy", "lm_eval", "deepspeed", "trl", "scipy"} | {
    "numba"
}
MOST_LINES, LONGEST_FUNCTION = 500, 60


def sources(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every absolute import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def layer_faults(name: str, text: str) -> list[str]:
    """What file `name` (relative to the root) imports and should not."""
    found = []
    for line, module in imported(ast.parse(text)):
        top = module.split(".")[0]
        if top in MAY_IMPORT and top not in MAY_IMPORT[name.split("/")[0]]:
            found.append(f"{name}:{line} imports {module}: imports run slurm -> jobs -> toolkit")
        if top in ONLY_IN and not name.startswith(ONLY_IN[top]):
            found.append(f"{name}:{line} imports {module}, which only {', '.join(ONLY_IN[top])} knows")
        if any(name.startswith(folder) and top in banned for folder, banned in NEVER_IN.items()):
            found.append(f"{name}:{line} imports {module}, which this folder does without")
    return found


def test_imports_run_one_way() -> None:
    files = sources(*MAY_IMPORT)
    assert len(files) > 50
    assert [fault for path in files for fault in layer_faults(str(path.relative_to(ROOT)), path.read_text())] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("toolkit/plan.py", "def f():\n    from jobs.train import VERSION"),
        ("jobs/train.py", "import slurm.worker"),
        ("jobs/train.py", "import submitit"),
        ("toolkit/training/methods/sft.py", "import deepspeed"),
        ("jobs/evaluate.py", "from lm_eval.tasks import TaskManager"),
        ("toolkit/analysis/rows.py", "import torch"),
    ],
)
def test_the_rule_finds_an_import_the_wrong_way(name: str, text: str) -> None:
    assert len(layer_faults(name, text)) == 1


def stage_modules() -> dict[str, tuple[ModuleType, ModuleType]]:
    """`train.sft` -> (the job, the module that brings Spec and Inputs)."""
    found = {}
    for job in names("jobs"):
        module = jobs.load(job)
        choice = getattr(module, "CHOICE", None)
        if choice is None:
            found[job] = (module, module)
        else:
            chosen = {name: find(choice.package, name, choice.field) for name in names(choice.package)}
            found |= {f"{job}.{name}": (module, brought) for name, brought in chosen.items()}
    return found


STAGES = stage_modules()


def test_every_job_is_there() -> None:
    assert {name.split(".")[0] for name in STAGES} == set(names("jobs"))


@pytest.mark.parametrize("name", STAGES)
def test_a_job_has_version_spec_inputs_and_run(name: str) -> None:
    job, chosen = STAGES[name]
    assert type(job.VERSION) is int and job.VERSION >= 1
    assert list(inspect.signature(job.run).parameters) == ["spec", "inputs", "out", "ctx"]
    for kind in (chosen.Spec, chosen.Inputs):
        assert dataclasses.is_dataclass(kind)
        parameters = kind.__dataclass_params__
        assert parameters.frozen and all(field.kw_only for field in dataclasses.fields(kind)), f"{name}.{kind.__name__}"
    for field, hint in field_types(chosen.Inputs).items():
        optional = field in defaults(chosen.Inputs)
        kinds = (Artifact | None, SEVERAL) if optional else (Artifact,)
        assert hint in kinds, f"{name}.Inputs.{field} is {hint}"
    if job is not chosen:
        assert not hasattr(job, "Spec"), f"{job.__name__} has a CHOICE and a Spec"
        field = job.CHOICE.field
        assert field_types(chosen.Spec)[field] is str
        assert field not in defaults(chosen.Spec), f"{field!r} must always be in the fingerprint: no default"


def test_planning_imports_nothing_heavy() -> None:
    modules = sorted({module.__name__ for pair in STAGES.values() for module in pair})
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = sorted({HEAVY!r} & set(sys.modules))\n"
        "    assert not heavy, f'{name} imports {heavy} at module level'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_and_functions_stay_short() -> None:
    long = []
    for path in sources("toolkit", "jobs", "slurm", "tests"):
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        if text.count("\n") > MOST_LINES:
            long.append(f"{name} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert long == []


def tracked() -> list[Path]:
    """The files of the repository, those to be added included."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine() -> None:
    folders = "|".join(["work", "farm", "root", "home", "Users"])
    words = "|".join(["index" + "-url", "find" + "-links"])
    pattern = re.compile(rf"(?:^|[^\w./~-])/(?:{folders})/|{words}")
    assert pattern.search("see /" + "work/main") and not pattern.search("artifacts/work/ab")
    found = []
    for path in tracked():
        if path.suffix not in (".png", ".parquet"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                if pattern.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "constraints.txt holds name==version lines"
    found = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    assert len(found) == len(lines)
    return found


def declared() -> list[Requirement]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    blocks = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [Requirement(line) for block in blocks for line in block.splitlines() if line.strip()]


def needed_by(requirement: Requirement) -> Iterator[Requirement]:
    """What an installed distribution requires, with the extras that are asked for."""
    for line in importlib.metadata.requires(requirement.name) or []:
        more = Requirement(line)
        extras = ["", *requirement.extras]
        if more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in extras):
            yield more


def test_everything_that_is_needed_is_pinned_and_nothing_else() -> None:
    pinned, seen = pins(), set()
    waiting = [*declared(), *map(Requirement, ("setuptools", "wheel", "ninja", "py-cpuinfo"))]  # what builds DeepSpeed
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        assert name in pinned, f"{name} is not pinned in constraints.txt"
        # A CUDA build of torch brings libraries of its own, which it pins itself.
        waiting += [
            more for more in needed_by(requirement) if name != "torch" or canonicalize_name(more.name) in pinned
        ]
    assert set(pinned) == {name for name, *_ in seen}


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {name: importlib.metadata.version(name).split("+")[0] for name in pins()}
    assert installed == pins()
