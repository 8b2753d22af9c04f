"""Read a study file into a `Study`: YAML 1.2 scalars, every value with the line it stands on, `--set` on top.

`1e-5` is a number, `no` a string, a key that stands twice an error. A `.py` file that defines `study` does as well.
"""

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from toolkit import lock
from toolkit.lookup import unknown
from toolkit.study import Keys, Stage, Study, StudyError

STAGE_KEYS = ("job", "spec", "inputs", "axes", "resources", "path")
STUDY_KEYS = ("name", "stages")


class _Loader(yaml.CSafeLoader):
    """The core schema of YAML 1.2; PyYAML's own (1.1) reads `1e-5` as a string and `no` as False."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def load(path: Path, overrides: Sequence[str] = (), locked: bool = True) -> Study:
    """The study in a `.yaml` or `.py` file, with `stage.field=value` overrides applied.

    locked: put what the lock beside the file has looked up in the place of the words that it was asked about.

    Raises:
        StudyError: the file is missing or is not a study; the message names file, line, value and valid choices.
    """
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "no .yaml file"
        raise StudyError(f"no study file {str(path)!r}; {path.parent or Path('.')} holds {near}")
    origins: dict[Keys, str] = {}
    if path.suffix == ".py":
        study = runpy.run_path(str(path)).get("study")
        if not isinstance(study, Study):
            raise StudyError(f"{path}: a Python study file must define `study = Study(name=..., stages=...)`")
        tree = study.words()
    else:
        tree = parse(path.read_text(encoding="utf-8"), str(path), origins)
    for override in overrides:
        _override(tree, override, origins)
    if locked and isinstance(tree, dict) and isinstance(tree.get("stages"), dict):
        lock.lay(tree["stages"], lock.read(path))
    return build(tree, origins, path.parent)


def build(tree: Any, origins: dict[Keys, str] | None = None, folder: Path = Path()) -> Study:
    """A `Study` from its plain words; relative paths are those of `folder`."""
    origins = origins or {}
    _check_keys(tree, STUDY_KEYS, (), origins)
    if not isinstance(tree.get("name"), str) or not re.fullmatch(r"[\w.-]+", tree["name"]):
        raise StudyError(f"name must be letters, digits, '_', '.', '-', not {tree.get('name')!r}", ("name",), origins)
    if not isinstance(tree.get("stages"), dict) or not tree["stages"]:
        raise StudyError("stages must be a mapping of stage names to stages", ("stages",), origins)
    stages = {}
    for name, words in tree["stages"].items():
        at = ("stages", name)
        _check_keys(words, STAGE_KEYS, at, origins)
        _absolute_paths(words, at, origins, folder)
        stages[str(name)] = Stage(**words)
    return Study(name=tree["name"], stages=stages, origins=origins)


def parse(text: str, file: str, origins: dict[Keys, str]) -> Any:
    """Plain values of a YAML text; `origins` learns on which line of `file` each of them stands."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _plain(loader, node, (), file, origins) if node else {}
    except yaml.YAMLError as error:
        raise StudyError(f"{file}: not valid YAML: {error}") from error


def _plain(loader: _Loader, node: yaml.Node, at: Keys, file: str, origins: dict[Keys, str]) -> Any:
    """The value of a node; `origins` learns on which line each of its parts stands."""
    origins.setdefault(at, f"{file}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node, deep=True)
            place = (*at, key if isinstance(key, (str, int, float, bool)) else str(key))
            if key in found:
                here = {place: f"{file}:{key_node.start_mark.line + 1}"}
                raise StudyError(f"the key {key!r} stands twice; the first is at {origins[place]}", place, here)
            origins[place] = f"{file}:{key_node.start_mark.line + 1}"
            found[key] = _plain(loader, value_node, place, file, origins)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, child, (*at, i), file, origins) for i, child in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _override(tree: Any, override: str, origins: dict[Keys, str]) -> None:
    """Apply `stage.field=value`: an axis of that name, a key of the stage (`path`), or else a field of its spec."""
    address, equals, text = override.partition("=")
    stage, *rest = address.strip().split(".")
    if not equals or not rest:
        raise StudyError(f"--set needs stage.field=value, not {override!r}")
    stages = tree.get("stages") or {}
    if stage not in stages:
        raise StudyError(f"--set {override}: {unknown('stage', stage, stages)}")
    if rest[0] not in STAGE_KEYS:
        rest = ["axes" if rest[0] in (stages[stage].get("axes") or {}) else "spec", *rest]
    inputs = stages[stage].get("inputs") or {}
    if rest[0] == "inputs" and ".".join(rest[1:3]) in inputs:  # one of several: data.NAME
        rest[1:3] = [".".join(rest[1:3])]
    here, at = stages[stage], ("stages", stage, *rest)
    for key in rest[:-1]:
        here = here.setdefault(key, {})
        if not isinstance(here, dict):
            raise StudyError(f"--set {override}: {key!r} holds {here!r}, which has no field {rest[-1]!r}")
    for known in [known for known in origins if known[: len(at)] == at]:
        del origins[known]
    origins[at] = f"--set {override}"
    here[rest[-1]] = parse(text, f"--set {override}", {}) if text.strip() else None


def _check_keys(words: Any, valid: Sequence[str], at: Keys, origins: dict[Keys, str]) -> None:
    if not isinstance(words, dict):
        raise StudyError(f"must be a mapping with {', '.join(valid)}, not {words!r}", at, origins)
    for key in words:
        if key not in valid:
            raise StudyError(unknown("key", key, valid), (*at, key), origins)
    for key in ("spec", "inputs", "axes", "resources"):
        if key in valid and not isinstance(words.get(key) or {}, dict):
            raise StudyError(f"{key} must be a mapping, not {words[key]!r}", (*at, key), origins)
        if key in words and words[key] is None:
            words[key] = {}


def _absolute_paths(words: dict[str, Any], at: Keys, origins: dict[Keys, str], folder: Path) -> None:
    """A path in the file is relative to the file, a path of `--set` to where the user stands."""
    holders = [(words, (*at, "path"))] if "path" in words else []
    for name, value in (words.get("inputs") or {}).items():
        for i, source in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(source, dict) and "path" in source:
                place = (*at, "inputs", name, i) if isinstance(value, list) else (*at, "inputs", name)
                holders.append((source, (*place, "path")))
    for holder, place in holders:
        if not isinstance(holder["path"], str):
            stage = f"{at[1]}.{'.'.join(map(str, place[2:]))}"
            raise StudyError(f"needs a file or folder: --set {stage}=PATH (it is {holder['path']!r})", place, origins)
        start = Path.cwd() if origins.get(place, "").startswith("--set") else folder
        holder["path"] = str((start / Path(holder["path"]).expanduser()).resolve())
