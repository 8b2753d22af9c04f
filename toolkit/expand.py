"""From a study to its cells: stages with axes, joined along their inputs, each cell with its fingerprint.

Axes flow along the edges. A stage has one cell for every way to choose a cell of each of its inputs, equal on the axes
that they share, times every value of its own axes. `expand` is a function of the study's words and of the jobs alone.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from toolkit.fingerprint import fingerprint, spec_fields
from toolkit.lock import SELECT
from toolkit.lookup import find, unknown
from toolkit.spec import FieldError, build, coerce, defaults, field_types
from toolkit.stage import SEVERAL, Choice, Request
from toolkit.study import COLUMNS, FOLDER, Cell, Coords, Keys, Scalar, Study, StudyError, axes


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One alternative of an input: a stage with pinned coordinates; `label` is its value on a union's axis."""

    stage: str
    label: str
    pins: Mapping[str, Scalar]
    at: Keys


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """One point of a stage's own axes."""

    coords: Coords
    spec: Mapping[str, Any]
    label: str


def expand(study: Study, load_job: Callable[[str], ModuleType], content: Callable[[Path], str]) -> list[Cell]:
    """All cells of a study, every cell after its inputs.

    Args:
        load_job: the module of a job by name; raises ValueError for an unknown one.
        content: the fingerprint of an adopted file or folder.

    Raises:
        StudyError: what is wrong with the study, and where.
    """
    graph = {name: _sources(study, name) for name in study.stages}
    folders = _inline_folders(study)
    cells: dict[str, list[Cell]] = {}
    for name in [*folders, *_order(study, graph)]:
        path, at = folders.get(name) or (study.stages[name].path, ("stages", name, "path"))
        if path is not None:
            cells[name] = [_folder_cell(study, name, Path(path), at, content)]
        else:
            cells[name] = _expand_stage(study, name, graph[name], cells, load_job)
    return [cell for name in cells for cell in cells[name]]


def choose(job: ModuleType, values: Mapping[str, Any]) -> ModuleType:
    """The module that brings `Spec` and `Inputs`: the job itself, or the one that its `CHOICE` field names.

    Raises:
        FieldError: the field is missing or names no module.
    """
    choice: Choice | None = getattr(job, "CHOICE", None)
    if choice is None:
        return job
    name = values.get(choice.field)
    if not isinstance(name, str):
        raise FieldError(choice.field, f"missing field {choice.field!r} (of type str)")
    try:
        return find(choice.package, name, choice.field)
    except ValueError as error:
        raise FieldError(choice.field, str(error)) from None


def _fail(study: Study, message: str, *at: Any) -> StudyError:
    return StudyError(message, at, study.origins)


def _sources(study: Study, name: str) -> dict[str, list[_Source]]:
    """Input name -> its alternatives, checked against the stages that there are."""
    stage, found = study.stages[name], {}
    if stage.path is not None and (stage.job or stage.spec or stage.inputs or stage.axes):
        raise _fail(study, "a stage has a path (adopted as it is) or a job, not both", "stages", name, "path")
    for key, value in stage.inputs.items():
        at: Keys = ("stages", name, "inputs", key)
        union = isinstance(value, (list, tuple))
        entries = [(v, (*at, i)) for i, v in enumerate(value)] if union else [(value, at)]
        found[key] = [_source(study, name, key, entry, place) for entry, place in entries]
        labels = [source.label for source in found[key]]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice or not labels:
            text = f"two alternatives are called {twice!r}; tell them apart with `as: LABEL`" if twice else "is empty"
            raise _fail(study, text, *at)
    return found


def _source(study: Study, stage: str, key: str, entry: Any, at: Keys) -> _Source:
    words = {"stage": entry} if isinstance(entry, str) else entry
    if not isinstance(words, Mapping) or ("stage" in words) == ("path" in words):
        raise StudyError(
            f"must be a stage name, {{stage: NAME, AXIS: VALUE}} or {{path: PATH}}, not {entry!r}", at, study.origins
        )
    if "path" in words:
        extra = next((k for k in words if k not in ("path", "as")), None)
        if extra is not None:
            raise StudyError(unknown("key", extra, ("path", "as")), at, study.origins)
        return _Source(
            stage=_inline_name(stage, key, at), label=str(words.get("as", Path(words["path"]).name)), pins={}, at=at
        )
    if words["stage"] not in study.stages:
        raise StudyError(unknown("stage", words["stage"], study.stages), at, study.origins)
    pins = {str(k): v for k, v in words.items() if k not in ("stage", "as")}
    return _Source(stage=words["stage"], label=str(words.get("as", words["stage"])), pins=pins, at=at)


def _inline_name(stage: str, key: str, at: Keys) -> str:
    return ".".join([stage, key, *map(str, at[4:])])


def _inline_folders(study: Study) -> dict[str, tuple[str, Keys]]:
    """Folders that stand in an input as `{path: ...}`, as stages of their own: `scores.model` -> path."""
    found: dict[str, tuple[str, Keys]] = {}
    for name, stage in study.stages.items():
        for key, value in stage.inputs.items():
            for i, entry in enumerate(value if isinstance(value, (list, tuple)) else [value]):
                if isinstance(entry, Mapping) and "path" in entry:
                    at: Keys = ("stages", name, "inputs", key, *([i] if isinstance(value, (list, tuple)) else []))
                    found[_inline_name(name, key, at)] = (entry["path"], (*at, "path"))
    return found


def _order(study: Study, graph: Mapping[str, Mapping[str, list[_Source]]]) -> list[str]:
    """Stages, each after those it reads, else as in the file."""
    done: list[str] = []

    def visit(name: str, chain: list[str]) -> None:
        if name in chain:
            circle = " -> ".join([*chain[chain.index(name) :], name])
            raise _fail(study, f"a cycle: {circle}; a stage cannot read what is made from it", "stages", name)
        if name in done:
            return
        for sources in graph[name].values():
            for source in sources:
                if source.stage in graph:
                    visit(source.stage, [*chain, name])
        done.append(name)

    for name in graph:
        visit(name, [])
    return done


def _folder_cell(study: Study, name: str, path: Path, at: Keys, content: Callable[[Path], str]) -> Cell:
    try:
        identity = content(path)
    except ValueError as error:
        raise StudyError(str(error), at, study.origins) from None
    return Cell(
        stage=name, job=FOLDER, version=1, coords={}, spec={}, inputs={}, fingerprint=identity,
        label=slug(path.name), resources=Request(), source=path,
    )  # fmt: skip


def _expand_stage(
    study: Study,
    name: str,
    sources: Mapping[str, list[_Source]],
    cells: Mapping[str, list[Cell]],
    load_job: Callable[[str], ModuleType],
) -> list[Cell]:
    stage = study.stages[name]
    if not stage.job:
        raise _fail(study, "a stage needs a `job` (or a `path` to adopt)", "stages", name)
    try:
        job = load_job(stage.job)
    except ValueError as error:
        raise _fail(study, str(error), "stages", name, "job") from None
    try:
        resources = build(Request, stage.resources, "resource")
    except FieldError as error:
        raise _fail(study, str(error), "stages", name, "resources", error.field) from None
    except ValueError as error:
        raise _fail(study, str(error), "stages", name, "resources") from None
    variants = _variants(study, name, job, sources, resources)
    found = []
    _check_axis_names(study, name, sources)
    for coords, inputs in _join_inputs(study, name, sources, cells):
        prints = {key: cell.fingerprint for key, cell in inputs.items()}
        clash = [axis for axis in stage.axes if axis in coords]
        if clash:
            text = f"the axis {clash[0]!r} comes already from an input; pin it there or choose another name"
            raise _fail(study, text, "stages", name, "axes", clash[0])
        for variant in variants:
            found.append(
                Cell(
                    stage=name, job=stage.job, version=job.VERSION,
                    coords=coords | variant.coords if variant.coords else coords, spec=variant.spec,
                    inputs=inputs, fingerprint=fingerprint(stage.job, job.VERSION, variant.spec, prints),
                    label=variant.label, resources=resources,
                )
            )  # fmt: skip
    return found


def _check_axis_names(study: Study, name: str, sources: Mapping[str, list[_Source]]) -> None:
    """The axes that a stage opens, its own and those of unions, become columns of the table."""
    unions = [("inputs", key) for key, alternatives in sources.items() if len(alternatives) > 1]
    for place, axis in [*unions, *(("axes", axis) for axis in study.stages[name].axes)]:
        if axis in COLUMNS:
            text = f"an axis cannot be called {axis!r}, which is a column of the table (taken: {', '.join(COLUMNS)})"
            raise _fail(study, text, "stages", name, place, axis)


def _variants(
    study: Study, name: str, job: ModuleType, sources: Mapping[str, Any], resources: Request
) -> list[_Variant]:
    """The stage's spec at every point of its own axes."""
    stage, at = study.stages[name], ("stages", name)
    choices = [_axis_values(study, name, axis, values) for axis, values in stage.axes.items()]
    found = []
    for point in itertools.product(*choices):
        values, places = dict(stage.spec), {key: (*at, "spec", key) for key in stage.spec}
        for axis, (_, axis_fields, place) in zip(stage.axes, point, strict=True):
            for key, value in axis_fields.items():
                if key in values:
                    raise _fail(
                        study, f"the field {key!r} stands in spec or in another axis too; keep one", *at, "axes", axis
                    )
                values[key], places[key] = value, place
        try:
            chosen = choose(job, values)
            spec = build(chosen.Spec, values)
            if hasattr(chosen, "check"):
                chosen.check(spec, resources)
        except FieldError as error:
            top = re.split(r"[.\[]", error.field)[0]
            raise _fail(study, str(error), *places.get(top, (*at, "spec", top))) from None
        except ValueError as error:
            raise _fail(study, str(error), *at, "spec") from None
        _check_inputs(study, name, chosen.Inputs, sources)
        hints = field_types(chosen.Spec)
        coords: Coords = {
            axis: coerce(hints[axis], label, axis) if fields_ == {axis: label} else label
            for axis, (label, fields_, _) in zip(stage.axes, point, strict=True)
        }
        identity = spec_fields(spec)
        found.append(_Variant(coords=coords, spec=identity, label=_label(job, identity)))
    return found


def _axis_values(study: Study, name: str, axis: str, values: Any) -> list[tuple[Scalar, Mapping[str, Any], Keys]]:
    """(coordinate, fields that it sets, where it stands) for every value of an axis."""
    at: Keys = ("stages", name, "axes", axis)
    if isinstance(values, Mapping) and set(values) == {SELECT}:
        text = (
            "the study's lock does not have this selection (or it was changed since): `tidemark lock STUDY` looks it up"
        )
        raise _fail(study, f"{text}, with a network, and pins it", *at)
    if isinstance(values, Mapping) and values:
        return [
            (label, value if isinstance(value, Mapping) else {axis: value}, (*at, label))
            for label, value in values.items()
        ]
    if isinstance(values, (list, tuple)) and values and all(_is_labelled(value) for value in values):
        return [(label, value, (*at, i)) for i, (label, value) in enumerate(values)]
    if not isinstance(values, (list, tuple)) or not values:
        raise _fail(study, f"an axis is a list of values or a mapping of labels to fields, not {values!r}", *at)
    seen: set[Scalar] = set()
    for i, value in enumerate(values):
        if not isinstance(value, (str, int, float, bool)):
            raise _fail(study, f"{value!r} needs a label: write the axis as a mapping {{label: value}}", *at, i)
        if value in seen:
            raise _fail(study, f"the value {value!r} stands twice", *at, i)
        seen.add(value)
    return [(value, {axis: value}, (*at, i)) for i, value in enumerate(values)]


def _is_labelled(value: Any) -> bool:
    """`[label, {field: value}]` says what a mapping says, also in JSON, whose keys are never numbers."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], Mapping)


def _check_inputs(study: Study, name: str, inputs: type, given: Mapping[str, Any]) -> None:
    valid = field_types(inputs)
    several = [key for key, hint in valid.items() if hint == SEVERAL]
    for key in given:
        if key not in valid and not (key.partition(".")[0] in several and key.partition(".")[2]):
            known = [*valid, *(f"{key}.NAME" for key in several)]
            raise _fail(study, unknown("input", key, known), "stages", name, "inputs", key)
    missing = [key for key in valid if key not in given and key not in defaults(inputs)]
    if missing:
        wanted = ", ".join(valid)
        raise _fail(study, f"the input {missing[0]!r} is missing; this job reads: {wanted}", "stages", name, "inputs")


def _join_inputs(
    study: Study, name: str, sources: Mapping[str, list[_Source]], cells: Mapping[str, list[Cell]]
) -> list[tuple[Coords, dict[str, Cell]]]:
    """Every choice of one cell an input, equal on shared axes; a cell that lacks an axis goes with all its values."""
    rows: list[tuple[Coords, dict[str, Cell]]] = [({}, {})]
    for key, alternatives in sources.items():
        offered = []
        for source in alternatives:
            for cell in _pinned(study, source, cells[source.stage]):
                coords: Coords = {axis: value for axis, value in cell.coords.items() if axis not in source.pins}
                if len(alternatives) > 1:
                    if key in coords:
                        text = f"a union opens the axis {key!r}, which {source.stage!r} has already; rename one"
                        raise StudyError(text, source.at, study.origins)
                    coords[key] = source.label
                offered.append((coords, cell))
        rows = _join(study, ("stages", name, "inputs", key), rows, offered, key)
    return rows


def _pinned(study: Study, source: _Source, offered: Sequence[Cell]) -> list[Cell]:
    kept = list(offered)
    for axis, value in source.pins.items():
        valid = list(dict.fromkeys(cell.coords[axis] for cell in offered if axis in cell.coords))
        if not valid:
            raise StudyError(unknown("axis", axis, axes(offered)), source.at, study.origins)
        if value not in valid:
            message = unknown(f"value of axis {axis!r}", value, map(str, valid))
            raise StudyError(message, (*source.at, axis), study.origins)
        kept = [cell for cell in kept if cell.coords.get(axis) == value]
    return kept


def _join(
    study: Study,
    at: Keys,
    rows: list[tuple[Coords, dict[str, Cell]]],
    offered: list[tuple[Coords, Cell]],
    key: str,
) -> list[tuple[Coords, dict[str, Cell]]]:
    """A natural hash join; rows are grouped by which axes they have, since a union's cells differ in that."""
    _check_shared(study, at, [coords for coords, _ in rows], [coords for coords, _ in offered])
    tables: dict[tuple[str, ...], dict[tuple[Any, ...], list[tuple[Coords, Cell]]]] = {}
    shapes = list(dict.fromkeys(tuple(coords) for coords, _ in offered))
    joined = []
    if rows == [({}, {})]:  # the first input: most stages have one
        return [(coords, {key: cell}) for coords, cell in offered]
    for coords, inputs in rows:
        for shape in shapes:
            shared = tuple(axis for axis in shape if axis in coords)
            table = tables.setdefault((*shape, "|", *shared), {})
            if not table:
                for entry in offered:
                    if tuple(entry[0]) == shape:
                        table.setdefault(tuple(entry[0][axis] for axis in shared), []).append(entry)
            for more, cell in table.get(tuple(coords[axis] for axis in shared), []):
                joined.append((coords | more, {**inputs, key: cell}))
    if not joined:
        raise StudyError(
            "no cell of this input goes with the other inputs: their axes have no point in common", at, study.origins
        )
    return joined


def _check_shared(study: Study, at: Keys, left: list[Coords], right: list[Coords]) -> None:
    """Inputs may differ in how many values of a shared axis they have, but one must hold all of the other's."""
    mine = {axis for coords in left for axis in coords}
    for axis in dict.fromkeys(axis for coords in right for axis in coords if axis in mine):
        here = {coords[axis] for coords in left if axis in coords}
        there = {coords[axis] for coords in right if axis in coords}
        if not (here <= there or there <= here):
            lost = sorted(map(str, here ^ there))
            text = f"cannot be joined on the axis {axis!r}: only one side has {', '.join(lost)}"
            raise StudyError(f"{text}; pin it or align the values", at, study.origins)


def slug(text: str, most: int = 48) -> str:
    """Text as a folder name: letters, digits, dot, plus, underscore and dash."""
    return re.sub(r"[^\w.+]+", "-", text, flags=re.ASCII).strip("-.")[:most].strip("-.") or "x"


def _label(job: ModuleType, spec: Mapping[str, Any]) -> str:
    """The choice, then what is short: `sft-epochs-2-lr-0.001`. A function of the spec alone, so that two studies that
    share a cell share its folder."""
    choice: Choice | None = getattr(job, "CHOICE", None)
    words = [str(spec[choice.field])] if choice else []
    for key, value in spec.items():
        values = value if isinstance(value, list) else [value]
        if not (choice and key == choice.field) and all(isinstance(v, (str, int, float)) for v in values):
            words.append(f"{key}-{'+'.join(map(str, values))}")
    return slug("-".join(words) or "default")
