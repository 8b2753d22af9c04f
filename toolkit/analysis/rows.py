"""The measurements inside artifacts as one arrow table, and a disposable parquet index that makes reading them again
cheap.

An evaluation holds them in `rows.parquet`; any other job has the numeric metrics of its record. Rows of published
results say in a column `coords` (JSON text) to which point each belongs, since one artifact holds many. `harness` is
what scored a task, with its version, as the record tells, and the version of the task where the row has it.

The index is one file with the rows of many artifacts, each artifact's rows next to each other; an entry counts only
while the record that it was read from still has the same modification time. Deleting it costs time, never a result.
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.manifest.record import RECORD, files_root

MEASUREMENT = pa.schema(
    [
        ("task", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("stderr", pa.float64()),
        ("n", pa.int64()),
        ("coords", pa.string()),
        ("version", pa.string()),
    ]
)
OPTIONAL = ("coords", "version")  # columns that most evaluations have no use for
NAMES = pa.dictionary(pa.int32(), pa.string())
INDEX = pa.schema(
    [("artifact", NAMES), ("stamp", pa.int64()), ("task", NAMES), ("metric", NAMES), ("coords", NAMES)]
    + [("harness", NAMES)]
    + [MEASUREMENT.field(name) for name in ("value", "stderr", "n")]
)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """`table` has the columns of `INDEX`; `where[fingerprint] = (start, count)` are the rows of one artifact.

    Fingerprints whose files were not there to read stand in `invisible` with the path that was looked for.
    """

    table: pa.Table
    where: Mapping[str, tuple[int, int]]
    invisible: Mapping[str, str]


def read(folder: Path) -> pa.Table:
    """The measurements of one committed artifact (`MEASUREMENT`, and `harness`), ordered by task and metric.

    An artifact without any has one row of nulls, so that it stays visible in a table.

    Raises:
        FileNotFoundError: the record, or a file that it names, is not there (yet).
        ValueError: `rows.parquet` is not what an evaluation writes.
    """
    record = json.loads((folder / RECORD).read_bytes())
    table = _measurements(folder, record)
    word = harness(record)
    words = [f"{word}, task {version}" if word and version else word for version in table["version"].to_pylist()]
    return table.drop_columns("version").append_column("harness", pa.array(words, pa.string()))


def _measurements(folder: Path, record: Mapping[str, Any]) -> pa.Table:
    path = files_root(folder, record) / "rows.parquet"
    if path.exists() or "rows.parquet" in record.get("files", {}):
        table = _read_rows(path)
    else:
        table = _numeric(record.get("metrics", {}))
    if not table.num_rows:
        return pa.table({f.name: pa.nulls(1, f.type) for f in MEASUREMENT}, schema=MEASUREMENT)
    return table.sort_by([("task", "ascending"), ("metric", "ascending")])


def harness(record: Mapping[str, Any]) -> str | None:
    """`lm_eval 0.4.13` where the spec names tasks; versions of it may score one task in two ways."""
    packages = record.get("provenance", {}).get("identity", {}).get("packages", {})
    return f"lm_eval {packages['lm_eval']}" if record.get("spec", {}).get("tasks") and "lm_eval" in packages else None


def _read_rows(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        table = file.read()
    needed = [name for name in MEASUREMENT.names if name not in OPTIONAL]
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}: the rows of an evaluation have {', '.join(needed)}, "
            f"this file has {', '.join(table.column_names)}; move its folder away and launch again"
        )
    for name in OPTIONAL:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, MEASUREMENT.field(name).type))
    return table.select(MEASUREMENT.names).cast(MEASUREMENT)


def _numeric(metrics: Mapping[str, Any]) -> pa.Table:
    found = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    size = len(found)
    known = {"metric": pa.array(list(found), pa.string()), "value": pa.array(list(found.values()), pa.float64())}
    return pa.table({f.name: known.get(f.name, pa.nulls(size, f.type)) for f in MEASUREMENT}, schema=MEASUREMENT)


def collect(folders: Mapping[str, Path], index: Path | None = None) -> Rows:
    """The measurements of many artifacts (fingerprint -> committed folder), through the index file where one is given.

    Raises:
        ValueError: an artifact's `rows.parquet` is not what an evaluation writes.
    """
    stamps, invisible = _stamps(folders)
    known = _load(index)
    entries = _entries(known)
    fresh, gone = _read_new(folders, stamps, entries)
    if fresh is not None:
        known = _merge(known, fresh)
        entries = _entries(known)
        if index is not None:
            _save(known, index)
    where = {fp: (start, count) for fp, (start, count, stamp) in entries.items() if stamps.get(fp) == stamp}
    return Rows(table=known, where=where, invisible={**invisible, **gone})


def _stamps(folders: Mapping[str, Path]) -> tuple[dict[str, int], dict[str, str]]:
    """Modification time (ns) of each record; the paths of those that are not there."""
    stamps, invisible = {}, {}
    for fingerprint, folder in folders.items():
        record = os.path.join(folder, RECORD)
        try:
            stamps[fingerprint] = os.stat(record).st_mtime_ns
        except FileNotFoundError:  # hazard: a network file system may not show a committed folder yet
            invisible[fingerprint] = record
    return stamps, invisible


def _read_new(
    folders: Mapping[str, Path], stamps: Mapping[str, int], entries: Mapping[str, tuple[int, int, int]]
) -> tuple[pa.Table | None, dict[str, str]]:
    tables, names, times, gone = [], [], [], {}
    for fingerprint, stamp in stamps.items():
        if fingerprint in entries and entries[fingerprint][2] == stamp:
            continue
        try:
            tables.append(read(folders[fingerprint]))
        except FileNotFoundError as error:
            gone[fingerprint] = str(error.filename)
            continue
        names.append(fingerprint)
        times.append(stamp)
    if not tables:
        return None, gone
    owner = np.repeat(np.arange(len(tables), dtype=np.int32), [t.num_rows for t in tables])
    rows = pa.concat_tables(tables).combine_chunks()
    columns = [pa.DictionaryArray.from_arrays(owner, pa.array(names)), pa.array(np.array(times, np.int64)[owner])]
    columns += [rows[name].cast(NAMES) for name in ("task", "metric", "coords", "harness")]
    columns += [rows[name] for name in ("value", "stderr", "n")]
    return pa.table(columns, schema=INDEX), gone


def _entries(table: pa.Table) -> dict[str, tuple[int, int, int]]:
    """Fingerprint -> (first row, rows, stamp), from runs of equal artifacts."""
    if not table.num_rows:
        return {}
    artifact = table["artifact"].combine_chunks()
    codes = artifact.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=codes[0] - 1))
    counts = np.diff(starts, append=len(codes))
    stamps = table["stamp"].to_numpy()[starts]
    names = artifact.dictionary.take(pa.array(codes[starts])).to_pylist()
    return dict(zip(names, zip(starts.tolist(), counts.tolist(), stamps.tolist())))


def _merge(known: pa.Table, fresh: pa.Table) -> pa.Table:
    """`known` with the rows of `fresh` in place of older ones of the same artifacts."""
    replaced = pc.is_in(known["artifact"].cast(pa.string()), fresh["artifact"].combine_chunks().dictionary)
    kept = known.filter(pc.invert(replaced))
    return pa.concat_tables([kept, fresh]).unify_dictionaries().combine_chunks()


def _load(index: Path | None) -> pa.Table:
    empty = INDEX.empty_table()
    if index is None or not index.exists():
        return empty
    try:
        table = pq.read_table(index, read_dictionary=INDEX.names, page_checksum_verification=True)
    except (OSError, pa.ArrowException):  # torn, damaged or of another version: it may always be thrown away
        return empty
    if table.schema.names != INDEX.names:
        return empty
    return table.unify_dictionaries().combine_chunks().cast(INDEX)


def _save(table: pa.Table, index: Path) -> None:
    part = index.with_name(f".{index.name}.{uuid.uuid4().hex}")
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)
        part.replace(index)
    except OSError:  # a full disk, or a root that this user may only read: the table is right without an index
        return
