"""Fetch files byte by byte, each byte once: what a killed process had received is kept and the rest is asked for.

A file grows under `parts/` by a name that is the same in every attempt, and comes to its place in `files/` by a rename
once its digest is right. Attempts that run at once, because one was wrongly thought dead, write the same bytes to the
same places.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from toolkit.checkpoints.hub import File
from toolkit.checkpoints.web import Passing, Patience, Web, shown
from toolkit.failures import HubUnavailable

PARALLEL = 8
BLOCK = 1 << 20
TRIES = 3  # at a file whose bytes are not those that its digest names

Report = Callable[[int, int], None]


def fetch(web: Web, files: Sequence[File], state: Path, report: Report, parallel: int = PARALLEL) -> Path:
    """Fetch files into `state/files` and return that folder; files that are there already are not asked for.

    state: a folder that survives attempts. report: told (bytes there, bytes of all) often, from several threads; what
    it raises ends the fetch.

    Raises:
        HubUnavailable: the server fails for too long, or sends other bytes than its digests name.
        ValueError: a file that is not there, is not ours to read, or changed.
        OSError: no room.
    """
    counter = _Counter(sum(file.size for file in files), report)
    todo = []
    for file in sorted(files, key=lambda file: -file.size):  # the largest first: it is what takes long
        if (state / "files" / file.path).is_file():
            counter.add(file.size)
        else:
            todo.append(file)
    with ThreadPoolExecutor(min(parallel, len(todo)) or 1) as threads:
        jobs = [threads.submit(_fetch, web, file, state, counter) for file in todo]
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        if any(job.exception() for job in done):
            counter.stopped = True  # the others end at their next block
            threads.shutdown(cancel_futures=True)
    for job in jobs:
        if not job.cancelled() and not isinstance(job.exception(), _Stopped):
            job.result()
    return state / "files"


class _Stopped(Exception):
    """Another file's fetch failed."""


class _Counter:
    """Bytes that are there, of all files together."""

    def __init__(self, total: int, report: Report) -> None:
        self.total, self.report, self.done, self.stopped = total, report, 0, False
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        with self.lock:
            if self.stopped:
                raise _Stopped
            self.done += count
            self.report(self.done, self.total)


def _fetch(web: Web, file: File, state: Path, counter: _Counter) -> None:
    final = state / "files" / file.path
    part = state / "parts" / f"{file.path}.{hashlib.sha256((file.digest + file.etag).encode()).hexdigest()[:12]}"
    for folder in (final.parent, part.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for _ in range(TRIES):
        found = _complete(web, file, part, counter)
        if found in (file.digest, ""):
            _arrive(part, final)
            return
        part.unlink(missing_ok=True)
        counter.add(-file.size)
    raise HubUnavailable(f"{shown(file.url)}: the digest should be {file.digest} and is {found}, {TRIES} times over")


def _arrive(part: Path, final: Path) -> None:
    try:
        os.replace(part, final)
    except FileNotFoundError:
        if not final.is_file():  # another attempt was faster
            raise


def _complete(web: Web, file: File, part: Path, counter: _Counter) -> str:
    """Append what is missing; returns the digest of the whole, "" if the file has none."""
    digest = _digest(file)
    # Made if it is not there, and never cut: another attempt may be at it.
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0) as out:
        while block := out.read(BLOCK):
            digest.update(block)
        counter.add(out.tell())
        patience = web.new_patience()
        while out.tell() < file.size:
            try:
                _append(web, file, out, digest, counter, patience)
            except Passing as error:
                patience.pause(str(error), error.told)
        os.fsync(out.fileno())
    return f"{file.digest.split(':')[0]}:{digest.hexdigest()}" if file.digest else ""


def _append(web: Web, file: File, out: Any, digest: Any, counter: _Counter, patience: Patience) -> None:
    """One request for what is missing."""
    start = out.tell()
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and file.etag:
        headers["If-Range"] = file.etag
    with web.stream("GET", file.url, headers) as response:
        if file.etag and response.headers.get("ETag") != file.etag:
            raise ValueError(f"{shown(file.url)} is not what it was when it was listed: launch again")
        skip = 0 if response.status_code == 206 else start  # a server that knows no ranges sends all of it again
        said = response.headers.get("Content-Range", f"bytes {start}-")
        if not said.startswith(f"bytes {start}-"):
            raise HubUnavailable(f"{shown(file.url)}: asked for bytes from {start}, got {said!r}")
        for block in response.iter_raw():
            block, skip = block[skip:], max(skip - len(block), 0)
            block = block[: file.size - out.tell()]
            if block:
                out.write(block)
                digest.update(block)
                counter.add(len(block))
                patience.progressed()
    if out.tell() < file.size:
        raise Passing(f"{shown(file.url)} ended after {out.tell():,} of {file.size:,} bytes")


def _digest(file: File) -> Any:
    kind = file.digest.split(":")[0]
    name = {"git": "sha1", "": "md5"}.get(kind, kind)
    digest = hashlib.new(name, usedforsecurity=False)  # hosts that forbid weak digests allow them so
    if kind == "git":
        digest.update(b"blob %d\0" % file.size)
    return digest
