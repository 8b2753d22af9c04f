"""What a task's name stands for: a file of configs/tasks in one of its formats and forms, or a file of lm-eval's own.

lm-eval would index the 14,000 files that it ships in every process; here a name is looked up where it is likely to be.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

OWN = Path(__file__).parents[2] / "configs" / "tasks"
FORMS = OWN / "forms"
NAMED = re.compile(rb"""^["']?(?:task|group)["']?:[ \t]*["']?([^\s"'#\[\]]+)""", re.M)


@dataclass(frozen=True, kw_only=True)
class Own:
    """A task of configs/tasks. config: of its file, without functions. format: of the prompts, "" for the default one.
    form: the file in configs/tasks/forms that says how it is asked and scored instead."""

    file: Path
    config: Mapping[str, Any]
    format: str = ""
    form: Path | None = None

    def name(self) -> str:
        """`mnli_matched_instruct_cloze`: of the file, the format and the form."""
        return "_".join(filter(None, (self.file.stem, self.format, self.form.stem if self.form else "")))


@cache
def own() -> Mapping[str, Own]:
    """Name -> task of configs/tasks: every file, and every format and form that the file says it has."""
    from lm_eval.tasks._yaml_loader import load_yaml

    found = {}
    for path in sorted(OWN.glob("*.yaml")):
        config = load_yaml(path, resolve_func=False)
        for format in ("", *config["metadata"].get("formats", ())):
            for form in ("", *config["metadata"].get("forms", ())):
                task = Own(file=path, config=config, format=format, form=FORMS / f"{form}.yaml" if form else None)
                found[task.name()] = task
    return found


def shipped(name: str) -> Path | None:
    """The file in lm-eval that defines the task or group `name`, None if there is none.

    Folders that carry the start of the name come first: the whole tree is slow on a shared file system.
    """
    words = name.split("_")
    for end in range(len(words), 0, -1):
        folder = root() / "_".join(words[:end])
        if folder.is_dir():
            for path in _files(folder):
                if _name_in(path) == name:
                    return path
    return all_shipped().get(name)


@cache
def all_shipped() -> Mapping[str, Path]:
    """Every name that lm-eval ships; takes seconds."""
    found: dict[str, Path] = {}
    for path in _files(root()):
        name = _name_in(path)
        if name is not None:
            found.setdefault(name, path)
    return found


def near(name: str) -> list[str]:
    """What a name that does not exist may have meant: lm-eval's nearest, and the nearest form or format of our own."""
    import difflib

    close = difflib.get_close_matches(name, own(), n=2, cutoff=0.7)
    return [*close, *difflib.get_close_matches(name, all_shipped(), n=3, cutoff=0.8)]


def root() -> Path:
    """lm-eval's folder of tasks."""
    spec = find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.rglob("*.yaml")))


def _name_in(path: Path) -> str | None:
    match = NAMED.search(path.read_bytes())
    return match[1].decode() if match else None
