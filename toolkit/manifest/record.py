"""Artifacts: a folder and its record `artifact.json`, which names every file with its size and digest, and its own.

The record is written last and the whole folder is published by one rename, so an artifact exists exactly when
`ROOT/artifacts/<job>/<label>-<fp12>` does. Killed before the rename, nothing is there; after it, everything is.
One that can be made again may be dropped (`dropping.py`): its folder and record stay, its files are gone.
An adopted artifact (`adopt.py`) holds a record only: its files stay where the user keeps them.
"""

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from toolkit.failures import FilesNotVisible, UpstreamDamaged
from toolkit.fingerprint import SHORT
from toolkit.manifest.files import content_files, digest_file, discard, list_files, seal, sync_folder, write_atomic

RECORD = "artifact.json"
LOG = "log.txt"  # what the stage printed: kept beside the files, never part of the record
REFERENCE = "base.json"  # in an artifact that is stored as a change to another (toolkit/checkpoints/whole.py)
SUFFIX = ".difference"  # ends the name of a file that holds the change of a file of weights
DROPPED = "artifact.dropped"  # a marker beside the record: the files are gone, or going
FORMAT = 1
VISIBLE_SECONDS = 60.0  # NFS clients keep attributes and negative look-ups for up to 60 s (acregmax, acdirmax)


def artifact_folder(root: Path, job: str, label: str, fingerprint: str) -> Path:
    """Where the artifact of a cell is or will be; `label` is a slug."""
    return root / "artifacts" / job / f"{label}-{fingerprint[:SHORT]}"


def commit(
    root: Path,
    *,
    job: str,
    label: str,
    fingerprint: str,
    out: Path,
    record: Mapping[str, Any],
    timeout: float = VISIBLE_SECONDS,
) -> Path:
    """Publish the folder `out` as the artifact of `fingerprint`; returns its final folder.

    `record` is JSON data (spec, inputs, metrics, provenance); the files, their sizes and digests are added. `out` is on
    the root's file system and nobody writes to it any more: each attempt has its own. The loser of a race reads the
    winner's record, discards its own `out` and returns the winner's folder.

    Raises:
        ValueError: `out` holds a link, pipe or device that cannot be kept, or a file with the record's name.
        UpstreamDamaged: the final folder exists, and after `timeout` seconds is still not this artifact.
        OSError: the disk is full; nothing is published.
    """
    full = with_head(job, label, fingerprint, record)
    json.dumps(full)  # a value that JSON cannot hold must fail before gigabytes are hashed
    if _is_foreign(out / RECORD, fingerprint):
        raise ValueError(
            f"job {job!r} wrote a file named {RECORD!r}, which is the name of the record; give it another name"
        )
    if is_dropped(out):
        raise ValueError(
            f"job {job!r} wrote a file named {DROPPED!r}, which marks what was dropped; give it another name"
        )
    full["files"] = {name: seal(out / name) for name in list_files(out) if name not in (RECORD, LOG)}
    for folder, _, _ in os.walk(out, topdown=False):
        sync_folder(Path(folder))
    return publish(root, full, out, timeout)


def with_head(job: str, label: str, fingerprint: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record that opens with what identifies it."""
    head = {"format": FORMAT, "job": job, "label": label, "fingerprint": fingerprint}
    return {**head, **record, **head}


def publish(root: Path, full: Mapping[str, Any], out: Path, timeout: float = VISIBLE_SECONDS) -> Path:
    """The last steps of `commit`: write the whole record into `out`, whose files are on the disk, and rename it."""
    write_atomic(out / RECORD, encode(full))
    final = artifact_folder(root, full["job"], full["label"], full["fingerprint"])
    final.parent.mkdir(parents=True, exist_ok=True)
    _rename(out, final, full["fingerprint"], timeout)
    sync_folder(final.parent)
    sync_folder(final.parent.parent)  # the job's folder may be new
    return final


def encode(full: Mapping[str, Any]) -> bytes:
    """The text of a record, with a digest over everything else that it says."""
    return json.dumps({**full, "record_digest": _own_digest(full)}, indent=1).encode()


def _own_digest(record: Mapping[str, Any]) -> str:
    said = json.loads(json.dumps({key: value for key, value in record.items() if key != "record_digest"}))
    return f"xxh3:{xxhash.xxh3_128_hexdigest(json.dumps(said, sort_keys=True).encode())}"


def _rename(out: Path, final: Path, fingerprint: str, timeout: float) -> None:
    try:
        os.rename(out, final)
    except OSError as error:
        # ENOENT: an NFS server that was asked twice (the first answer got lost) renamed `out` the first time.
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT) or not final.is_dir():
            raise
        if error.errno != errno.ENOENT and is_dropped(final):
            return _replace(out, final, fingerprint, timeout)
        check_identity(read(final, timeout), fingerprint, final)
        discard(out)


def _replace(out: Path, final: Path, fingerprint: str, timeout: float) -> None:
    """Publish over an artifact that was dropped. Killed in between, it is one that was never made; of two that make it
    anew, the second may take the first's away instead, and puts it back."""
    trash = final.with_name(f".trash-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # the other has just moved it
        os.rename(final, trash)
    if trash.is_dir():
        found = read(trash)
        if found["fingerprint"] != fingerprint or not is_dropped(trash):
            with suppress(OSError):  # a third is there by now: this one is to go
                os.rename(trash, final)
        check_identity(found, fingerprint, final)
    _rename(out, final, fingerprint, timeout)
    shutil.rmtree(trash, ignore_errors=True)


def is_dropped(folder: Path) -> bool:
    """Whether the files of a committed artifact are gone, or must be taken for gone."""
    return os.path.lexists(folder / DROPPED)


def _is_foreign(path: Path, fingerprint: str) -> bool:
    """Whether a job made this file; a record that an earlier try at the same commit left behind may be replaced."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return not isinstance(found, dict) or found.get("fingerprint") != fingerprint


def read(folder: Path, timeout: float = 0.0) -> dict[str, Any]:
    """The record of a committed artifact; one that cannot be read is tried again for `timeout` seconds.

    Raises:
        UpstreamDamaged: there is none, it is not a record, or a newer Tidemark wrote it.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            record = json.loads((folder / RECORD).read_bytes())
            break
        except (OSError, ValueError) as error:
            if time.monotonic() >= deadline:
                raise UpstreamDamaged(f"{folder / RECORD} cannot be read: {error}; {_remedy(folder)}") from error
        time.sleep(min(0.5, timeout))
        refresh(folder)
    if not _is_record(record):
        raise UpstreamDamaged(f"{folder / RECORD} is not a record; {_remedy(folder)}")
    if record["format"] != FORMAT:
        raise UpstreamDamaged(
            f"{folder / RECORD} has format {record['format']!r}: update this Tidemark, which reads {FORMAT}"
        )
    return dict(record)


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not {"format", "job", "label", "fingerprint", "files"} <= record.keys():
        return False
    entries = record["files"].values() if isinstance(record["files"], dict) else [None]
    return all(isinstance(entry, dict) and {"size", "digest"} <= entry.keys() for entry in entries)


def _remedy(folder: Path) -> str:
    return f"move the folder away (mv '{folder}' '{folder}.damaged') and launch again to make it anew"


def refresh(folder: Path) -> None:
    """Opening a folder makes an NFS client ask the server again; one that is not there (yet) has nothing to refresh."""
    try:
        os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return


def check_identity(record: Mapping[str, Any], fingerprint: str, folder: Path) -> None:
    """Compare the whole fingerprint, of which the folder's name holds 48 bits.

    Raises:
        UpstreamDamaged: the record has another one.
    """
    if record["fingerprint"] != fingerprint:
        raise UpstreamDamaged(
            f"{folder} belongs to fingerprint {record['fingerprint']}, not to {fingerprint}, although both would have"
            " this name: change the label (the stage's name) of one of the two"
        )


def find(
    root: Path, job: str, label: str, fingerprint: str, *, timeout: float = VISIBLE_SECONDS
) -> dict[str, Any] | None:
    """The record of a cell that was committed under this label, or None if its folder does not exist.

    A folder arrives by one rename, so one without a readable record is waited for, `timeout` seconds.
    `index.committed` knows artifacts whatever their label.

    Raises:
        UpstreamDamaged: the record stays away or unreadable, or belongs to another fingerprint.
    """
    folder = artifact_folder(root, job, label, fingerprint)
    if not folder.is_dir():
        return None
    record = read(folder, timeout)
    check_identity(record, fingerprint, folder)
    return record


def files_root(folder: Path, record: Mapping[str, Any]) -> Path:
    """The folder that the names in `record["files"]` are relative to; an adopted artifact's files lie elsewhere."""
    if "source" not in record:
        return folder
    source = Path(record["source"])
    return source.parent if record["source_is_file"] else source


def payload(folder: Path, record: Mapping[str, Any]) -> Path:
    """What a stage is given as `Artifact.path`: the committed folder, or the adopted file or folder."""
    return Path(record["source"]) if "source" in record else folder


def missing_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Names in the record that are not there in full size."""
    base = files_root(folder, record)

    def whole(name: str, size: int) -> bool:
        try:
            return os.stat(base / name).st_size == size
        except OSError:
            return False

    return [name for name, entry in record["files"].items() if not whole(name, entry["size"])]


def wait_visible(folder: Path, record: Mapping[str, Any], timeout: float = VISIBLE_SECONDS) -> None:
    """Wait until every file of the record is there with its size.

    Raises:
        FilesNotVisible: after `timeout` seconds some are not; the message lists them.
    """
    base, deadline = files_root(folder, record), time.monotonic() + timeout
    while missing := missing_files(folder, record):
        if time.monotonic() >= deadline:
            listed = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise FilesNotVisible(
                f"{len(missing)} of {len(record['files'])} files of {base} are not there or not whole after"
                f" {timeout:g} s: {listed}; if they do not appear, run `tidemark verify`"
            )
        time.sleep(min(0.2, timeout))
        for parent in {(base / name).parent for name in missing}:
            refresh(parent)


def verify(folder: Path, *, deep: bool = True) -> list[str]:
    """What is wrong with a committed artifact, one sentence each; empty if nothing is. `deep` reads every byte.

    Of one that was dropped, the record is looked at and what does not belong to it.
    """
    try:
        record = read(folder)
    except UpstreamDamaged as error:
        return [str(error)]
    problems = []
    if record.get("record_digest") != _own_digest(record):
        problems.append(f"{RECORD}: changed since it was written (its digest differs)")
    if not folder.name.endswith(f"-{record['fingerprint'][:SHORT]}"):
        problems.append(f"{RECORD}: fingerprint {record['fingerprint']} is not the one in the folder's name")
    base = files_root(folder, record)
    for name, entry in record["files"].items() if not is_dropped(folder) else ():
        problems.extend(_check_file(base / name, name, entry, deep))
    try:
        problems.extend(f"{name}: not in the record" for name in _unknown_files(folder, record))
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return problems


def _unknown_files(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """Names that are there although the record does not have them; a study would read what was added to its folder."""
    if "source" not in record:
        # Killed half-way, compaction leaves files beside those of the record that say the same: it ends that itself.
        passing = {REFERENCE, *record.get("whole", ()), *(name + SUFFIX for name in record["files"])}
        known = {RECORD, LOG, DROPPED, *record["files"], *passing}
        return [name for name in list_files(folder) if name not in known]
    added = [name for name, _ in content_files(Path(record["source"])) if name not in record["files"]]
    return sorted(added) + [name for name in list_files(folder) if name not in (RECORD, LOG)]


def _check_file(path: Path, name: str, entry: Mapping[str, Any], deep: bool) -> list[str]:
    try:
        size = os.stat(path).st_size
        if size != entry["size"]:
            return [f"{name}: {size} bytes, recorded {entry['size']}"]
        if deep and (found := digest_file(path)) != entry["digest"]:
            return [f"{name}: digest {found}, recorded {entry['digest']}"]
    except FileNotFoundError:
        return [f"{name}: missing ({path})"]
    except OSError as error:
        return [f"{name}: cannot be read: {error.strerror} ({path})"]
    return []
