"""What was launched: `ROOT/submissions/<study>/<n>.json`, `prepared` before workers start and `submitted` after.

A submission holds the study as it was launched, so that workers do not read a file which the user goes on editing.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jobs
from toolkit import expand, study_file
from toolkit.manifest import claims
from toolkit.manifest.adopt import content_fingerprint
from toolkit.manifest.files import write_atomic
from toolkit.manifest.log import Reader
from toolkit.study import Cell, Study


def cells_of(root: Path, study: Study) -> list[Cell]:
    """The cells of a study, with the digests of adopted files taken from the root's cache where they are known.

    Raises:
        StudyError: what is wrong with the study, and where.
    """
    return expand.expand(study, jobs.load, partial(content, root))


def content(root: Path, path: Path) -> str:
    """The fingerprint of an adopted file or folder.

    Raises:
        ValueError: it is not there, or cannot be read.
    """
    return content_fingerprint(path, root / "index" / "content.json")[0]


def cells(root: Path, study: str, number: int) -> list[Cell]:
    """The cells of a launch."""
    return cells_of(root, study_file.build(read(root, study, number)["study"]))


def folder(root: Path, study: str) -> Path:
    """Where the submissions of a study are."""
    return root / "submissions" / study


def numbers(root: Path, study: str) -> list[int]:
    """The launches of a study, oldest first."""
    return sorted(int(path.stem) for path in folder(root, study).glob("[0-9]*.json"))


def read(root: Path, study: str, number: int) -> dict[str, Any]:
    """One submission."""
    found: dict[str, Any] = json.loads((folder(root, study) / f"{number}.json").read_text())
    return found


def prepare(root: Path, study: Study, options: Mapping[str, Any]) -> int | None:
    """Write a new submission in state `prepared`; returns its number, or None if another launch took it just now."""
    number = max(numbers(root, study.name), default=0) + 1
    target = folder(root, study.name) / f"{number}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{number}.{os.getpid()}")
    content = {"state": "prepared", "who": claims.identity(), "study": study.words(), "options": dict(options)}
    write_atomic(part, json.dumps(content, indent=1).encode())
    try:
        os.link(part, target)  # never overwritten: the loser of two launches learns of it here
    except FileExistsError:
        return None
    finally:
        part.unlink()
    return number


def remember(root: Path, study: Study) -> None:
    """Note a launch that has nothing to run, if it is news: `clean` keeps what the latest launch of a study names."""
    last = max(numbers(root, study.name), default=0)
    if last and (read(root, study.name, last)["study"] == _plain(study) or active(root, study.name) is not None):
        return
    number = prepare(root, study, {"workers": 0})
    if number is not None:
        submitted(root, study.name, number, [])


def _plain(study: Study) -> Any:
    return json.loads(json.dumps(study.words()))


def submitted(root: Path, study: str, number: int, workers: list[dict[str, Any]]) -> None:
    """Note that the workers of a submission were started, and how to find them."""
    content = {**read(root, study, number), "state": "submitted", "workers": workers}
    write_atomic(folder(root, study) / f"{number}.json", json.dumps(content, indent=1).encode())


def active(root: Path, study: str) -> int | None:
    """The latest launch of a study if its launcher or a worker still runs (or runs where this host cannot see)."""
    number = max(numbers(root, study), default=0)
    if not number:
        return None
    content = read(root, study, number)
    if content["state"] == "prepared" and claims.liveness(content["who"]) is not False:
        return number
    workers: dict[str, Mapping[str, Any]] = {}
    for event in Reader(root, study).new_events():
        if event["event"] == "worker-started" and event["launch"] == number:
            workers[event["writer"]] = event["who"]
        elif event["event"] == "worker-ended":
            workers.pop(event["writer"], None)
    known = [*workers.values(), *content.get("workers", ())]
    return number if any(claims.liveness(who) is not False for who in known) else None
