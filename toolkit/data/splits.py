"""Write a data set artifact, and open one: named splits of rows in Arrow files that `datasets.load_from_disk` maps.

Rows are given in batches and leave memory as soon as a few megabytes are together, so a corpus may be larger than
memory. The folder is laid out as by `datasets.DatasetDict.save_to_disk`, which itself would first need every row in a
cache folder. The fingerprint that `datasets` stores is a digest of the rows here, so equal rows give equal bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from toolkit.lookup import unknown

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict

    Rows: TypeAlias = Mapping[str, Sequence[Any] | pa.Array] | pa.Table

FLUSH_ROWS = 1000  # rows of one record batch: what `datasets` itself writes
FLUSH_BYTES = 16 << 20
SHARD_BYTES = 500 << 20


def open_data(artifact: Path) -> "DatasetDict":
    """The splits of a data set artifact (or of a folder that `save_to_disk` wrote), memory-mapped.

    Hazard: `map` and `filter` of what is returned write cache files into the artifact's folder; give them
    `keep_in_memory=True` or a `cache_file_name`.

    Raises:
        ValueError: there is no data set in the folder.
    """
    from datasets import DatasetDict, load_from_disk

    folder = artifact / "data" if (artifact / "data").is_dir() else artifact
    if not (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{artifact} holds no data set: there is no dataset_dict.json in it or in its data/ folder")
    data = load_from_disk(str(folder), keep_in_memory=False)
    assert isinstance(data, DatasetDict)
    return data


def open_split(artifact: Path, name: str, columns: Sequence[str] = (), limit: int | None = None) -> "Dataset":
    """The first `limit` rows (None: all) of a split, which must have `columns` and at least one row.

    Raises:
        ValueError: no data set there, no such split, a column that is not there, no rows.
    """
    data = open_data(artifact)
    if name not in data:
        raise ValueError(f"{artifact}: {unknown('split', name, data)}")
    rows = data[name]
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        have = ", ".join(sorted(rows.column_names))
        raise ValueError(f"split {name!r} of {artifact} has no column {missing[0]!r}; it has {have}")
    if not len(rows):
        raise ValueError(f"split {name!r} of {artifact} has no rows")
    return rows if limit is None else rows.select(range(min(limit, len(rows))))


class Splits:
    """The splits of one data set in the making; `finish` completes the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, _Split] = {}

    def add(self, name: str, rows: "Rows") -> None:
        """Append rows to a split: columns of equal length, or an Arrow table. The first rows fix the columns.

        Raises:
            ValueError: the columns or their types differ from those of the split's first rows.
        """
        if name not in self._writers:
            self._writers[name] = _Split(self.folder / name, name)
        self._writers[name].add(rows)

    def finish(self) -> dict[str, int]:
        """Write the metadata; returns the rows of every split.

        Raises:
            ValueError: no split, or a split without rows.
        """
        rows = {name: writer.finish() for name, writer in self._writers.items()}
        empty = [name for name, count in rows.items() if not count]
        if empty or not rows:
            raise ValueError(f"split {empty[0]!r} has no rows" if empty else "the data set has no rows at all")
        (self.folder / "dataset_dict.json").write_text(json.dumps({"splits": list(rows)}))
        return rows


class _Split:
    """One split: buffers tables, writes them as record batches, opens a new shard after `SHARD_BYTES`."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True)
        self.folder, self.name = folder, name
        self.rows = self.written = 0
        self.shards: list[str] = []
        self.digest = hashlib.blake2b(digest_size=8)
        self.schema: pa.Schema | None = None
        self._sink: Any = None
        self._buffer: list[pa.Table] = []
        self._buffered = [0, 0]  # rows, bytes

    def add(self, rows: "Rows") -> None:
        table = self._table(rows)
        self._buffer.append(table)
        self._buffered[0] += table.num_rows
        self._buffered[1] += table.nbytes
        if self._buffered[0] >= FLUSH_ROWS or self._buffered[1] >= FLUSH_BYTES:
            self._flush()

    def _table(self, rows: "Rows") -> "pa.Table":
        import pyarrow as pa

        try:
            table = rows if isinstance(rows, pa.Table) else pa.table(dict(rows))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"split {self.name!r}: the values of a column have several types: {error}") from None
        if self.schema is None:
            self.schema = _with_features(table.schema)
        elif set(table.column_names) != set(self.schema.names):
            raise ValueError(
                f"rows of split {self.name!r} have columns {sorted(table.column_names)}, "
                f"but its first rows have {sorted(self.schema.names)}"
            )
        try:
            return table.select(self.schema.names).cast(self.schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"split {self.name!r}: a row has another type than the first rows: {error}") from None

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._buffer:
            return
        if self._sink is None:
            self.shards.append(f"data-{len(self.shards):05d}.arrow")
            assert self.schema is not None
            self._sink = pa.ipc.new_stream(str(self.folder / self.shards[-1]), self.schema)
            self.written = 0
        for batch in pa.concat_tables(self._buffer).combine_chunks().to_batches(max_chunksize=FLUSH_ROWS):
            self._sink.write_batch(batch)
            self.digest.update(batch.serialize())
        self.rows += self._buffered[0]
        self.written += self._buffered[1]
        self._buffer, self._buffered = [], [0, 0]
        if self.written >= SHARD_BYTES:
            self._close()

    def _close(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def finish(self) -> int:
        from datasets import DatasetInfo, Features

        self._flush()
        self._close()
        info = DatasetInfo(features=Features.from_arrow_schema(self.schema))
        info.write_to_directory(str(self.folder))
        state: dict[str, Any] = {
            "_data_files": [{"filename": name} for name in self.shards],
            "_fingerprint": self.digest.hexdigest(),
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": self.name,
        }
        (self.folder / "state.json").write_text(json.dumps(state, indent=2))
        return self.rows


def _with_features(schema: "pa.Schema") -> "pa.Schema":
    """The schema as `datasets` writes it, with its description of the columns (class labels and the like) kept."""
    from datasets import Features

    written: pa.Schema = Features.from_arrow_schema(schema).arrow_schema
    return written
