"""The lock beside a study: what its names stood for on the day they were looked up, in the study's own words.

`tidemark lock` asks the Hub what branches and selections (`{select: ...}`) stand for and writes `<study>.lock`: for
each stage the words that were asked about, and the spec and axes that they became. Loading a study puts these in their
place, so that all that comes after, a plan without a network next year too, reads exact commits. Words that were
changed since are left as they are; whoever needs them exact refuses them and names the command.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.manifest.files import write_atomic
from toolkit.study import pairs

FORMAT = 1
SELECT = "select"  # the key of an axis whose values are looked up


def path_of(study: Path) -> Path:
    """`study.lock`, beside `study.yaml`."""
    return study.with_suffix(".lock")


def asked(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The words of a stage that are looked up, as JSON holds them."""
    axes = {axis: pairs(axis, values) for axis, values in (stage.get("axes") or {}).items()}
    return dict(json.loads(json.dumps({"spec": stage.get("spec") or {}, "axes": axes})))


def read(study: Path) -> dict[str, dict[str, Any]]:
    """Stage -> entry; none where a study has no lock.

    Raises:
        ValueError: the file is not a lock.
    """
    path = path_of(study)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and this Tidemark reads {FORMAT}")
        return dict(content["stages"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a lock: {error}; remove it and run `tidemark lock {study}`") from error


def lay(stages: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Put what was looked up in the place of the words that were asked about."""
    for name, entry in entries.items():
        stage = stages.get(name)
        if isinstance(stage, dict) and asked(stage) == entry["asked"]:
            stage["spec"], stage["axes"] = dict(entry["spec"]), dict(entry["axes"])


def moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Labels (or the stage's spec) that stand for something else now, are new, or are gone."""
    were, are = _values(before), _values(after)
    return [label for label in dict.fromkeys([*were, *are]) if were.get(label) != are.get(label)]


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(entry))
    pairs = [pair for values in plain["axes"].values() if isinstance(values, list) for pair in values]
    labelled = {str(pair[0]): pair[1] for pair in pairs if isinstance(pair, list)}
    return labelled or {"spec": plain["spec"]}


def write(study: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Replace the lock; a line for each value, so that a difference between two locks can be read."""
    stages = ",\n".join(f"  {json.dumps(name)}: {{\n{_lines(entry)}\n  }}" for name, entry in entries.items())
    text = f'{{\n "format": {FORMAT},\n "stages": {{\n{stages}\n }}\n}}\n'
    assert json.loads(text)["stages"] == json.loads(json.dumps(entries))
    write_atomic(path_of(study), text.encode())
    return path_of(study)


def _lines(entry: Mapping[str, Any]) -> str:
    axes = []
    for axis, values in entry["axes"].items():
        rows = [json.dumps(value) for value in values] if isinstance(values, list) else None
        text = "[\n     " + ",\n     ".join(rows) + "\n    ]" if rows else json.dumps(values)
        axes.append(f"    {json.dumps(axis)}: {text}")
    held = "{\n" + ",\n".join(axes) + "\n   }" if axes else "{}"
    return f'   "asked": {json.dumps(entry["asked"])},\n   "spec": {json.dumps(entry["spec"])},\n   "axes": {held}'
