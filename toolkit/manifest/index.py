"""Fast answers from the manifest. Everything under `ROOT/index` is a snapshot that may be deleted at any time.

`committed` lists names and opens nothing. `records` keeps a parquet file of what it has read, and reads new folders
only. `attempts_state` folds the log and remembers how far it read. A snapshot that is missing, torn or out of date is
made anew; it is replaced by rename, so any number of processes may do so at once and the last one wins.

A parquet file costs the import of pyarrow (0.1 to 0.3 s), which is more than reading two thousand records; the folded
log is kept as columns in JSON, which 100,000 cells load in 0.1 s without it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from toolkit.failures import UpstreamDamaged
from toolkit.fingerprint import SHORT
from toolkit.manifest import record as records_module
from toolkit.manifest.files import write_atomic
from toolkit.manifest.log import Reader

SMALL = 2000  # artifacts up to which reading every record is faster than importing pyarrow
ENDS = ("lost", "failed", "committed")  # events that end an attempt, from the weakest word to the strongest


class Summary(NamedTuple):
    """A record without its files; `folder` is `<job>/<name>`, `stamp` its time in ns, the last four are JSON texts."""

    folder: str
    stamp: int
    fingerprint: str
    job: str
    label: str
    spec: str
    inputs: str
    metrics: str
    provenance: str


def committed(root: Path) -> dict[str, dict[str, str]]:
    """job -> first 12 digits of the fingerprint -> name of the folder, for every committed artifact.

    A cell that was committed under two labels (stages of two studies) has two folders; any one of them is it.
    """
    found: dict[str, dict[str, str]] = {}
    try:
        jobs = sorted(entry.name for entry in os.scandir(root / "artifacts") if entry.is_dir())
    except FileNotFoundError:
        return {}  # nothing was ever launched in this root
    for job in jobs:
        names = sorted(name for name in os.listdir(root / "artifacts" / job) if name[-SHORT - 1 : -SHORT] == "-")
        found[job] = {name[-SHORT:]: name for name in names}
    return found


def records(root: Path) -> tuple[dict[str, Summary], list[str]]:
    """Fingerprint -> summary of every committed artifact, and one message for each whose record cannot be read."""
    wanted = _stamps(root)
    snapshot = root / "index" / "records.parquet"
    cached = _load_records(snapshot) if len(wanted) > SMALL else {}
    kept = {name: cached[name] for name, stamp in wanted.items() if name in cached and cached[name].stamp == stamp}
    fresh, problems = _read_records(root, {name: stamp for name, stamp in wanted.items() if name not in kept})
    gone = len(cached) - len(kept)
    kept.update(fresh)
    # Written again when a fiftieth of it is out of date: that much is read quickly, and writing is not free.
    if len(wanted) > SMALL and (len(fresh) + gone) * 50 > len(kept):
        _save_records(snapshot, kept.values())
    return {summary.fingerprint: summary for summary in kept.values()}, problems


def _stamps(root: Path) -> dict[str, int]:
    """`<job>/<name>` -> time in ns at which the record came into the folder.

    A folder that was removed and made again has its old name and often its old inode: only a stat tells them apart.
    """
    found = {}
    for job, names in committed(root).items():
        parent = os.open(root / "artifacts" / job, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names.values():
                with suppress(FileNotFoundError):  # removed since it was listed
                    found[f"{job}/{name}"] = os.stat(name, dir_fd=parent).st_mtime_ns
        finally:
            os.close(parent)
    return found


def _read_records(root: Path, wanted: Mapping[str, int]) -> tuple[dict[str, Summary], list[str]]:
    found, problems = {}, []
    for folder, stamp in wanted.items():
        try:
            record = records_module.read(root / "artifacts" / folder)
        except UpstreamDamaged as error:
            problems.append(str(error))
            continue
        parts = (json.dumps(record.get(key, {})) for key in ("spec", "inputs", "metrics", "provenance"))
        found[folder] = Summary(folder, stamp, record["fingerprint"], record["job"], record["label"], *parts)
    return found, problems


def _load_records(snapshot: Path) -> dict[str, Summary]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(snapshot, page_checksum_verification=True) as file:
            columns = [file.read([name])[name].to_pylist() for name in Summary._fields]
    except (OSError, KeyError, pa.ArrowException):  # not there, torn, damaged, or of another version
        return {}
    return {summary.folder: summary for summary in map(Summary._make, zip(*columns))}


def _save_records(snapshot: Path, summaries: Iterable[Summary]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict(zip(Summary._fields, zip(*summaries)))
    table = pa.table({name: pa.array(values, _arrow_type(name)) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    _save(snapshot, sink.getvalue().to_pybytes())


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    return pa.int64() if name == "stamp" else pa.string()


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, sync=False)
    except OSError:  # a full disk, or a root that this user may only read: the answer is right without a snapshot
        return


class Attempt(NamedTuple):
    """The last word on the latest attempt at a cell. `time` is the clock of `worker`: never compare it across hosts."""

    attempt: int
    event: str
    reason: str
    message: str
    worker: str
    time: float
    offset: int


def attempts_state(root: Path, study: str) -> dict[str, Attempt]:
    """Fingerprint -> what the log of a study last said of it; reads only what was appended since the last call.

    The order of events is that of attempts; within one, an end outranks what is not one, `committed` outranks `failed`
    and that `lost` (which others say of a worker that they cannot see), and else the later line counts. Clocks do not.
    """
    snapshot = root / "index" / f"attempts-{study}.json"
    state, latest = _load_attempts(snapshot)
    reader = Reader(root, study, state)
    if reader.outdated():
        reader, latest = Reader(root, study), {}
    count = 0
    for count, event in enumerate(reader.iterate(), start=1):
        if "fingerprint" in event and isinstance(event.get("attempt"), int):
            _fold(latest, event)
    if count > SMALL:
        _save_attempts(snapshot, reader.state(), latest)
    return latest


def _fold(latest: dict[str, Attempt], event: Mapping[str, Any]) -> None:
    said = Attempt(
        event["attempt"],
        event.get("event", ""),
        event.get("reason") or "",
        event.get("message") or "",
        event["writer"],
        event["time"],
        event["offset"],
    )
    known = latest.get(event["fingerprint"])
    if known is None or _rank(known) <= _rank(said):
        latest[event["fingerprint"]] = said


def _rank(said: Attempt) -> tuple[int, int, int, str]:
    strength = ENDS.index(said.event) + 1 if said.event in ENDS else 0
    return said.attempt, strength, said.offset, said.worker


def _load_attempts(snapshot: Path) -> tuple[dict[str, Any] | None, dict[str, Attempt]]:
    """The reader's state and the folded attempts; nothing if the snapshot is not whole."""
    try:
        digest, data = snapshot.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None, {}
    if digest != xxhash.xxh3_128_hexdigest(data).encode():
        return None, {}
    content = json.loads(data)
    if content.get("fields") != list(Attempt._fields):
        return None, {}  # another version of Tidemark wrote it
    return content["state"], dict(zip(content["cells"], map(Attempt._make, zip(*content["columns"]))))


def _save_attempts(snapshot: Path, state: Mapping[str, Any], latest: Mapping[str, Attempt]) -> None:
    columns = list(zip(*latest.values()))
    content = {"fields": Attempt._fields, "state": state, "cells": list(latest), "columns": columns}
    data = json.dumps(content, separators=(",", ":")).encode()
    _save(snapshot, xxhash.xxh3_128_hexdigest(data).encode() + b"\n" + data)
