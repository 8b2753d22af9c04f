"""Compaction: a committed fine-tuned model becomes its difference to the model that it was made from, where it lies.

The differences are made elsewhere and read back bit for bit. Then, in this order: they come to lie beside the plain
files; `base.json`, by one rename, tells whoever reads the artifact from now on to restore it; the record names what is
there now, and under `whole` what it was; the plain files go, unless a stage that began before may still read them. So
the model is whole, one way or the other, whatever kills this and whenever; doing it again ends it. `undo` is the same
backwards.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.checkpoints.kept import kept_steps
from toolkit.checkpoints.whole import base_of, refer, whole
from toolkit.fingerprint import SHORT
from toolkit.manifest import bases, claims, record
from toolkit.manifest.bases import is_change
from toolkit.manifest.files import discard, seal, sync_folder
from toolkit.manifest.record import REFERENCE, SUFFIX
from toolkit.stage import Artifact

WORK = "compact-"  # begins the names of folders in ROOT/work
PAYS = 0.9  # that a difference may take at most, of what the weights take compressed by themselves
WHO = "who.json"


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an artifact could be stored: `base` is the input that is nearest, `before` and `after` bytes of weights.

    Without a base, `reason` says why it stays as it is.
    """

    before: int = 0
    after: int = 0
    base: Artifact | None = None
    reason: str = ""


def survey(folder: Path, inputs: Mapping[str, Artifact], scratch: Path) -> Form:
    """What compaction would do to an artifact that is plain; `after` is estimated from a sample.

    inputs: what it was made from. scratch: where such of them are restored as are stored as a change themselves.
    """
    from toolkit.checkpoints.forms.difference import estimate, paired
    from toolkit.checkpoints.tensors import read_folder

    told = record.read(folder)
    files = distinct(weights(folder, told), told)
    sizes = {name: told["files"][name]["size"] for name in files}
    before = sum(sizes.values())
    if not files:
        return Form(reason="it holds no weights in safetensors")
    found = []
    for artifact in inputs.values():
        if (artifact.path / "config.json").is_file():
            tensors = read_folder(whole(artifact.path, scratch))
            if paired(folder / next(iter(files)), tensors) > 0.5:
                after = sum(estimate(folder / name, tensors) * size for name, size in sizes.items())
                found.append(Form(before=before, after=round(after), base=artifact))
    if not found:
        return Form(before=before, after=before, reason="no input has its tensors")
    best = min(found, key=lambda form: form.after)
    alone = sum(estimate(folder / name, {}) * size for name, size in sizes.items())
    if best.after > PAYS * alone:
        return Form(before=before, after=before, reason="it is too far from what it was made from")
    return best


def compact(root: Path, folder: Path, base: Artifact, is_read: Callable[[], bool]) -> bool:
    """Store the weights of an artifact as differences to `base`; whether the plain ones are gone.

    is_read: whether a stage that runs may read the artifact; it is asked once new readers go another way.

    Raises:
        ValueError: the artifact or its base is damaged, gone or another, or is being compacted elsewhere.
        OSError: the disk is full; the artifact is as it was.
    """
    told = record.read(folder)
    with _workshop(root, told["fingerprint"]) as work:
        if "whole" not in told:
            _convert(folder, told, base, work)
    return free(folder, is_read)


def _convert(folder: Path, told: Mapping[str, Any], base: Artifact, work: Path) -> None:
    from toolkit.checkpoints.forms.difference import decode, encode
    from toolkit.checkpoints.tensors import read_folder

    out, names, made = work / "out", weights(folder, told), {}
    tensors = read_folder(whole(base.path, work))
    for name, others in distinct(names, told).items():
        part = out / f"{name}{SUFFIX}"
        part.parent.mkdir(parents=True, exist_ok=True)
        encode(folder / name, tensors, part)
        if decode(part, tensors, None) != told["files"][name]["digest"]:
            raise ValueError(f"{folder / name} is damaged: it is not the file of its record; see `tidemark verify`")
        for other in others:
            made[other + SUFFIX] = seal(part)
            _link(part, out / f"{other}{SUFFIX}")
    refer(out, base, "difference")
    made[REFERENCE] = seal(out / REFERENCE)
    kept = {name: entry for name, entry in told["files"].items() if name not in names}
    _move(out, folder, [name for name in made if name != REFERENCE])
    _move(out, folder, [REFERENCE])
    _check_base(folder)
    _put_record(out, folder, {**told, "files": kept | made, "whole": {name: told["files"][name] for name in names}})


def undo(root: Path, folder: Path, is_read: Callable[[], bool]) -> bool:
    """Make an artifact plain again, its record too; whether the differences are gone.

    Raises:
        ValueError: its base is gone or another, or a file does not come back bit for bit.
    """
    told = record.read(folder)
    with _workshop(root, told["fingerprint"]) as work:
        if "whole" in told:
            _bring_back(folder, told["whole"], work)
            files = {n: e for n, e in told["files"].items() if n != REFERENCE and not n.endswith(SUFFIX)}
            old = {key: value for key, value in told.items() if key != "whole"}
            everything = dict(sorted((files | told["whole"]).items()))
            _put_record(work / "out", folder, {**old, "files": everything})
        (folder / REFERENCE).unlink(missing_ok=True)
        sync_folder(folder)
    return free(folder, is_read)


def free(folder: Path, is_read: Callable[[], bool]) -> bool:
    """Delete what the record does not name any more: plain files of a change, or differences of what is plain."""
    told = record.read(folder)
    spare = told["whole"] if "whole" in told else [name + SUFFIX for name in weights(folder, told)]
    left = [name for name in spare if (folder / name).exists()]
    if left and is_read():
        return False
    for name in left:
        (folder / name).unlink(missing_ok=True)
    for parent in {(folder / name).parent for name in left}:
        sync_folder(parent)
    return True


def is_compacted(folder: Path) -> bool:
    """Whether an artifact is a change that compaction made, be it unfinished."""
    return is_change(folder) and bases.words(folder)["form"] == "difference"


def is_touched(folder: Path, told: Mapping[str, Any]) -> bool:
    """Whether compaction left anything in an artifact that `undo` would take back."""
    return is_compacted(folder) or any((folder / (name + SUFFIX)).exists() for name in weights(folder, told))


def weights(folder: Path, told: Mapping[str, Any]) -> list[str]:
    """The names of the safetensors files of the model of an artifact and of the steps that it keeps."""
    places = {".", *(f"steps/{step}" for step in kept_steps(folder))}
    names = told["whole"] if "whole" in told else told["files"]
    return [n for n in names if n.endswith(".safetensors") and str(Path(n).parent) in places]


def distinct(names: list[str], told: Mapping[str, Any]) -> dict[str, list[str]]:
    """One name of each content, with all that have it: the last kept step and the model are one file."""
    entries = told.get("whole", {}) | told["files"]
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(entries[name]["digest"], []).append(name)
    return {same[0]: same for same in found.values()}


def _bring_back(folder: Path, entries: Mapping[str, Any], work: Path) -> None:
    from toolkit.checkpoints.forms.difference import decode
    from toolkit.checkpoints.tensors import read_folder

    found = base_of(folder)
    assert found is not None, f"{folder} has a record of differences and no {REFERENCE}"
    tensors = read_folder(whole(found[1], work))
    names = list(entries)
    for name, others in distinct(names, {"files": entries}).items():
        part = work / "out" / name
        part.parent.mkdir(parents=True, exist_ok=True)
        decode(folder / f"{name}{SUFFIX}", tensors, part)
        if seal(part) != entries[name]:
            raise ValueError(f"{folder / name}{SUFFIX} gives another file than its record names; see `tidemark verify`")
        for other in others:
            _link(part, work / "out" / other)
    _move(work / "out", folder, names)


def _link(part: Path, target: Path) -> None:
    if part != target:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(part, target)


def _move(source: Path, target: Path, names: list[str]) -> None:
    """Rename files into an artifact, where their folders are; their bytes are on the disk already."""
    for name in names:
        os.replace(source / name, target / name)
    for parent in {(target / name).parent for name in names}:
        sync_folder(parent)


def _put_record(out: Path, folder: Path, told: Mapping[str, Any]) -> None:
    """Written elsewhere first: a part of it in the artifact would be a file that no record names."""
    (out / record.RECORD).write_bytes(record.encode(told))
    seal(out / record.RECORD)
    _move(out, folder, [record.RECORD])


def _check_base(folder: Path) -> None:
    """A base that was dropped before `base.json` told of its reader takes that back; the plain files are all there."""
    try:
        found = base_of(folder)
        if found is not None and record.is_dropped(found[1]):
            raise ValueError(f"the base {found[1]} was dropped meanwhile; `tidemark keep` keeps it")
    except ValueError:
        (folder / REFERENCE).unlink(missing_ok=True)
        raise


@contextmanager
def _workshop(root: Path, fingerprint: str) -> Iterator[Path]:
    """A folder in ROOT/work that one process at a time has for an artifact; what a dead one left is removed."""
    work = root / "work" / f"{WORK}{fingerprint[:SHORT]}"
    part = work.with_name(f".trash-{uuid.uuid4().hex}")  # `tidemark clean` removes what has no other name yet
    (part / "out").mkdir(parents=True)
    (part / WHO).write_text(json.dumps(claims.identity()))
    try:
        if work.is_dir() and not is_at_work(work):
            discard(work)
        os.rename(part, work)
    except OSError as error:
        shutil.rmtree(part)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ValueError(f"another process is at it, in {work}: wait until it ends, or remove that folder") from None
    try:
        yield work
    finally:
        discard(work)


def is_at_work(work: Path) -> bool:
    """Whether the process that has a folder of compaction may live."""
    try:
        return claims.liveness(json.loads((work / WHO).read_bytes())) is not False
    except FileNotFoundError:  # it is being removed just now
        return True
