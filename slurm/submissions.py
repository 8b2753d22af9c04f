"""What was launched: `ROOT/submissions/<study>/<n>.json`, `prepared` before workers start and `submitted` after.

A submission holds the study and the cluster's profile as they were launched, so that workers do not read files which
the user goes on editing. On Slurm it names its arrays before any sbatch is called: a name is unique, so whoever comes
later can ask whether that array exists. An array is `prepared`, then `submitted`, or `dropped` when it is known not to
have come; should it come after all, its workers see that here and end.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jobs
import slurm
from slurm.queue import Queue, Snapshot
from toolkit import expand, study_file
from toolkit.manifest import claims
from toolkit.manifest.adopt import content_fingerprint
from toolkit.manifest.files import write_atomic
from toolkit.manifest.log import Reader
from toolkit.provenance import HOME
from toolkit.study import Cell, Study

PREFETCH = ".prefetch"  # ends the name under which `tidemark prefetch` runs the downloads of a study


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


def next_number(root: Path, study: str) -> int:
    """The number of the next launch. Ask before looking at what runs: whoever then takes it has seen all launches."""
    return max(numbers(root, study), default=0) + 1


def prepare(root: Path, study: Study, number: int, words: Mapping[str, Any]) -> bool:
    """Write submission `number` in state `prepared`; False if another launch has taken the number meanwhile.

    words: `options`, `profile`, `seconds` (`Estimates.words`) and `arrays`.
    """
    target = folder(root, study.name) / f"{number}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{number}.{os.getpid()}")
    head = {"state": "prepared", "who": claims.identity(), "home": str(HOME), "study": study.words()}
    write_atomic(part, json.dumps({**head, **words}, indent=1).encode())
    try:
        os.link(part, target)  # never overwritten: the loser of two launches learns of it here
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True


def changed(root: Path, study: str, number: int) -> int:
    """When a submission was written last, in ns of the file system's clock."""
    return (folder(root, study) / f"{number}.json").stat().st_mtime_ns


def cancel(root: Path, study: str, number: int, fingerprints: Sequence[str] | None) -> None:
    """Note that a person wants these cells of a launch no more, or none of it; its workers look at that.

    Raises:
        ValueError: the launch is submitting just now.
    """
    content = read(root, study, number)
    if content["state"] == "prepared" and claims.liveness(content["who"]) is not False:
        raise ValueError(f"launch {number} of {study!r} is submitting just now: try again in a moment")
    if fingerprints is None:
        write(root, study, number, {**content, "state": "cancelled"})
    else:
        known = {*content.get("cancelled", ()), *fingerprints}
        write(root, study, number, {**content, "cancelled": sorted(known)})


def write(root: Path, study: str, number: int, content: Mapping[str, Any]) -> None:
    """Write a submission anew; only its launcher does that, or whoever found it dead."""
    write_atomic(folder(root, study) / f"{number}.json", json.dumps(content, indent=1).encode())


def arrays(submission: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> array (shape, workers, exclude, state, job), of those that a launch counts on."""
    return {name: array for name, array in submission.get("arrays", {}).items() if array["state"] != "dropped"}


def check_home(submission: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: this process imports Tidemark from another place than the launch did, or from several.
    """
    places = {Path(str(module.__file__)).resolve().parents[1] for module in (expand, jobs, slurm)}
    launched = Path(submission["home"])
    if places != {launched.resolve()}:
        found = ", ".join(sorted(map(str, places)))
        raise ValueError(
            f"the launch runs Tidemark from {launched}, and here it is imported from {found}: install it editable from"
            " a checkout on shared storage, and let the profile's setup and python lead to it"
        )


def workers_folder(root: Path, study: str, number: int, shape: str) -> Path:
    """Where submitit keeps its files of the workers of a shape."""
    return folder(root, study) / f"{number}-{shape}"


def meeting_file(root: Path, study: str, number: int, shape: str, job: Mapping[str, Any]) -> Path:
    """Where the first task of a job of several nodes leaves word for the others."""
    return workers_folder(root, study, number, shape) / f"{job['job']}-{job['restarts']}.meet"


def remember(root: Path, study: Study) -> None:
    """Note a launch that has nothing to run, if it is news: `clean` keeps what the latest launch of a study names."""
    number = next_number(root, study.name)
    last = number - 1
    if last and (read(root, study.name, last)["study"] == _plain(study) or active(root, study.name)):
        return
    if prepare(root, study, number, {"options": {"workers": 0}}):
        submitted(root, study.name, number, [])


def _plain(study: Study) -> Any:
    return json.loads(json.dumps(study.words()))


def submitted(root: Path, study: str, number: int, workers: Sequence[Mapping[str, Any]] = ()) -> None:
    """Note that a submission is complete, and how to find its local workers."""
    write(root, study, number, {**read(root, study, number), "state": "submitted", "workers": list(workers)})


def active(root: Path, study: str, snapshot: Snapshot | None = None) -> list[int]:
    """The launches of a study that are at work: the launcher or a worker lives, or waits in Slurm's queue, or nobody
    can say. `snapshot` is what Slurm says now; without one it is asked where a launch was a cluster's."""
    return [n for n in numbers(root, study) if at_work(root, study, n, read(root, study, n), snapshot)]


def at_work(root: Path, study: str, number: int, content: Mapping[str, Any], snapshot: Snapshot | None = None) -> bool:
    """`active` for one launch."""
    if content["state"] == "prepared" and claims.liveness(content["who"]) is not False:
        return True
    live = arrays(content)
    if live:
        snapshot = snapshot or Queue(root).snapshot(fresh=True)
        return bool(snapshot.error) or any(j.name in live and (j.alive or j.waiting) for j in snapshot.jobs.values())
    return _local_worker(root, study, number, content)


def _local_worker(root: Path, study: str, number: int, content: Mapping[str, Any]) -> bool:
    workers: dict[str, Mapping[str, Any]] = {}
    for event in Reader(root, study).new_events():
        if event["event"] == "worker-started" and event["launch"] == number:
            workers[event["writer"]] = event["who"]
        elif event["event"] == "worker-ended":
            workers.pop(event["writer"], None)
    known = [*workers.values(), *content.get("workers", ())]
    return any(claims.liveness(who) is not False for who in known)
