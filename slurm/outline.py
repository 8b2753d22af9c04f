"""The cells of a large study without expanding it: a snapshot for `tidemark status`, which may be deleted at any time.

A snapshot stands for one text of the study, one version of the code and the adopted files as they were; whatever else
is found, the study is expanded and the snapshot made anew. Expanding 100,000 cells takes a second, reading them 0.2 s.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from slurm import submissions
from toolkit import provenance
from toolkit.manifest.files import write_atomic
from toolkit.plan import Node
from toolkit.study import Cell, Study

LARGE = 2000  # cells up to which expanding is as fast


class Row(NamedTuple):
    """What `status` asks of a cell."""

    stage: str
    name: str
    job: str
    fingerprint: str
    inputs: Mapping[str, "Row"]


def nodes(root: Path, study: Study) -> Sequence[Node]:
    """The cells of a study, every one after its inputs: as the snapshot holds them, or expanded.

    Raises:
        StudyError: what is wrong with the study, and where.
    """
    snapshot = root / "index" / f"cells-{study.name}.json"
    content = _read(snapshot)
    if content is not None and content["key"] == _key(study) and _unchanged(root, content["sources"]):
        return _rows(content["stages"])
    cells = submissions.cells_of(root, study)
    if len(cells) > LARGE:
        _write(snapshot, {"key": _key(study), "sources": _sources(cells), "stages": _columns(cells)})
    return cells


def _key(study: Study) -> str:
    """Digest of all that expansion is a function of, but for what lies in adopted files."""
    words = json.dumps(study.words())
    return hashlib.sha256(f"{provenance.identity()['code']} {words}".encode()).hexdigest()


def _sources(cells: Sequence[Cell]) -> dict[str, str]:
    return {str(cell.source): cell.fingerprint for cell in cells if cell.source is not None}


def _unchanged(root: Path, sources: Mapping[str, str]) -> bool:
    try:
        return all(submissions.content(root, Path(path)) == print_ for path, print_ in sources.items())
    except ValueError:  # gone, or not to be read: expansion says it with the line of the study
        return False


def _columns(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Stage by stage, columns of names, fingerprints and, for each input, of places in the list of all cells."""
    place = {id(cell): i for i, cell in enumerate(cells)}
    found = []
    for stage, group in groupby(cells, key=lambda cell: cell.stage):
        mine = list(group)
        inputs = {key: [place[id(cell.inputs[key])] for cell in mine] for key in mine[0].inputs}
        names, prints = [cell.name for cell in mine], [cell.fingerprint for cell in mine]
        found.append({"stage": stage, "job": mine[0].job, "names": names, "fingerprints": prints, "inputs": inputs})
    return found


def _rows(stages: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    for stage in stages:
        keys = list(stage["inputs"])
        picked = zip(*([rows[i] for i in column] for column in stage["inputs"].values()))
        inputs = [dict(zip(keys, upstream)) for upstream in picked] if keys else [{}] * len(stage["names"])
        cells = zip(stage["names"], stage["fingerprints"], inputs, strict=True)
        rows += [Row(stage["stage"], name, stage["job"], print_, upstream) for name, print_, upstream in cells]
    return rows


def _read(snapshot: Path) -> dict[str, Any] | None:
    """The content of a snapshot; None if there is none, or it is not whole."""
    try:
        digest, data = snapshot.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if digest != xxhash.xxh3_128_hexdigest(data).encode():
        return None
    content: dict[str, Any] = json.loads(data)
    return content


def _write(snapshot: Path, content: Mapping[str, Any]) -> None:
    data = json.dumps(content, separators=(",", ":")).encode()
    try:
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(snapshot, xxhash.xxh3_128_hexdigest(data).encode() + b"\n" + data, sync=False)
    except OSError:  # a full disk, or a root that this user may only read: it is expanded again next time
        return
