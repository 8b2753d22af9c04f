"""Adoption: files that a user already has become an artifact without being copied.

The artifact's folder holds only a record with `source`; its fingerprint is that of the content, so the same files are
the same artifact wherever they lie, and changed files are another one.
"""

import json
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.fingerprint import fingerprint
from toolkit.manifest.files import content_files, digest_file, write_atomic
from toolkit.manifest.record import RECORD, artifact_folder, encode, find, publish, with_head

JOB = "folder"
SETTLED_SECONDS = 2.0  # file systems stamp changes with ticks of up to this length (the two seconds are FAT's)


def adopt(root: Path, *, path: Path, label: str) -> Path:
    """Make the file or folder `path` an artifact of the root; returns the artifact's folder.

    Raises:
        ValueError: nothing is there (the message names the nearest names), it holds no file, or it cannot be read.
    """
    path = Path(os.path.abspath(path.expanduser()))
    cache = root / "index" / "content.json"
    identity, files = content_fingerprint(path, cache)
    fields = {"source": str(path), "source_is_file": path.is_file(), "spec": {}, "inputs": {}, "metrics": {}}
    full = with_head(JOB, label, identity, {**fields, "files": files})
    found = find(root, JOB, label, identity)
    folder = artifact_folder(root, JOB, label, identity)
    if found is None:
        out = root / "work" / f"adopt-{uuid.uuid4().hex}"
        out.mkdir(parents=True)
        return publish(root, full, out)
    if found["source"] != str(path) and not _holds(Path(found["source"]), identity, cache):
        write_atomic(folder / RECORD, encode(full))  # the same files, which are now elsewhere
    return folder


def _holds(path: Path, identity: str, cache: Path) -> bool:
    try:
        return content_fingerprint(path, cache)[0] == identity
    except ValueError:
        return False


def content_fingerprint(path: Path, cache: Path | None = None) -> tuple[str, dict[str, Any]]:
    """The identity of a file or folder and its files: relative name -> {"size": bytes, "digest": "xxh3:..."}.

    Links are followed; names that start with a dot are left out (a download's `.cache`, `.git`). `cache` is a
    disposable JSON file of digests by absolute name, size, times and inode: with it, 14 GB that were hashed before cost
    a stat.

    Raises:
        ValueError: nothing is there (the message names the nearest names), it holds no file, or it cannot be read.
    """
    known = _load_cache(cache)
    fresh: dict[str, list[Any]] = {}
    try:
        files = {name: _entry(file, known, fresh) for name, file in sorted(content_files(path))}
    except OSError as error:
        raise ValueError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    if not files:
        raise ValueError(f"{path} holds no file (names that start with a dot do not count)")
    if cache is not None and fresh:
        _save_cache(cache, {**known, **fresh})
    return fingerprint(JOB, 1, {"files": files}, {}), files


def _entry(file: Path, known: Mapping[str, list[Any]], fresh: dict[str, list[Any]]) -> dict[str, Any]:
    key, stamp = str(file.absolute()), _stamp(file)
    if key in known and known[key][:-1] == stamp:
        return {"size": stamp[0], "digest": known[key][-1]}
    digest = digest_file(file)
    if _stamp(file) != stamp:
        raise ValueError(f"{file} changed while it was read: wait until it is complete")
    # A change within the tick of the last one leaves the stamp as it is: files that are still warm are not cached.
    if abs(time.time() - max(stamp[1], stamp[2]) / 1e9) > SETTLED_SECONDS:
        fresh[key] = [*stamp, digest]
    return {"size": stamp[0], "digest": digest}


def _stamp(file: Path) -> list[int]:
    """Size, modification and change time in ns, inode; the change time sees an edit that kept the modification time."""
    found = os.stat(file)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _load_cache(cache: Path | None) -> dict[str, list[Any]]:
    try:
        found = json.loads(cache.read_bytes()) if cache is not None else {}
    except (OSError, ValueError):  # disposable: whatever is wrong with it, the files are hashed again
        return {}
    return found if isinstance(found, dict) and all(isinstance(v, list) for v in found.values()) else {}


def _save_cache(cache: Path, content: Mapping[str, list[Any]]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, json.dumps(content).encode(), sync=False)
    except OSError:  # a root that this user may only read: the digests are computed again next time
        return
