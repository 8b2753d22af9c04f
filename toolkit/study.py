"""The words of a study: named stages, each a job with spec, inputs and axes; and the cells that they expand to.

The same objects are what `toolkit.study_file` reads from YAML and what a study in Python writes:

    base = Stage(path="/models/base")
    scores = Stage(job="evaluate", inputs={"model": "base"}, spec={"tasks": ["piqa"]}, axes={"shots": [0, 4]})
    study = Study(name="tiny", stages={"base": base, "scores": scores})
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from toolkit.stage import Request

Scalar = str | int | float | bool
Keys = tuple[Any, ...]  # where a value stands: ("stages", "trained", "spec", "lr")
Coords = dict[str, Scalar]
FOLDER = "folder"  # the job of an adopted file or folder
# Columns of the table beside the axes, which must not be called like them.
COLUMNS = ("stage", "job", "task", "metric", "value", "stderr", "n", "state", "reason", "fingerprint")


class StudyError(ValueError):
    """What is wrong with a study, led by where it stands."""

    def __init__(self, message: str, at: Keys = (), origins: Mapping[Keys, str] | None = None) -> None:
        known = [at[:n] for n in range(len(at), -1, -1) if at[:n] in (origins or {})]
        place = f"{origins[known[0]]}: " if known and origins else ""
        words = ".".join(str(k) for k in at[1:]) if at[:1] == ("stages",) else ".".join(map(str, at))
        super().__init__(f"{place}{words}: {message}" if words else f"{place}{message}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A job with its spec, inputs, axes and resources, or a `path` to adopt; all in the plain words of a study file."""

    job: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None

    def words(self) -> dict[str, Any]:
        """As a study file would write it."""
        words = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}
        if self.axes:  # labels stay what they are in JSON, which has no numbers as keys
            words["axes"] = {axis: pairs(axis, values) for axis, values in self.axes.items()}
        return words


def pairs(axis: str, values: Any) -> Any:
    """The values of an axis; labels that are not text as a list of [label, fields], which JSON can hold."""
    if not isinstance(values, Mapping) or all(isinstance(label, str) for label in values):
        return values
    return [[label, value if isinstance(value, Mapping) else {axis: value}] for label, value in values.items()]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Named stages. `origins` says where each value stands ("study.yaml:12"), for errors only."""

    name: str
    stages: Mapping[str, Stage]
    origins: Mapping[Keys, str] = field(default_factory=dict, compare=False, repr=False)

    def words(self) -> dict[str, Any]:
        """Plain data that a study file could hold."""
        return {"name": self.name, "stages": {name: stage.words() for name, stage in self.stages.items()}}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Cell:
    """One point of a stage. `spec` holds the canonical non-default fields, `label` names the artifact's folder."""

    stage: str
    job: str
    version: int
    coords: Mapping[str, Scalar]
    spec: Mapping[str, Any]
    inputs: Mapping[str, "Cell"]
    fingerprint: str
    label: str
    resources: Request
    source: Path | None = None

    @property
    def name(self) -> str:
        """`tuned[step=100,seed=0]`: how people and the command line call it."""
        inside = ",".join(f"{axis}={value}" for axis, value in self.coords.items())
        return f"{self.stage}[{inside}]" if inside else self.stage


def axes(cells: Iterable[Cell]) -> list[str]:
    """The axes of all cells in the order in which they are opened."""
    return list(dict.fromkeys(axis for cell in cells for axis in cell.coords))
