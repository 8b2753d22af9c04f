"""A data set that is on disk already: a folder of `datasets.save_to_disk`, or of .parquet or .arrow files.

Rows are streamed, never cached elsewhere. A file's split is what its name says before the first dash, as in
`train-00000-of-00002.parquet`, or what `splits` says.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.data.splits import Splits
from toolkit.lookup import unknown
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 1000
ENDINGS = (".parquet", ".arrow")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """splits: new name -> old name; of files also a pattern such as `mnli/dev-*.parquet`. Empty takes every split.

    rename: old column -> new column. keep: columns to keep, by their new names; empty keeps all.
    rows: at most so many rows of each split, from its beginning.
    """

    dataset: str
    splits: dict[str, str] = field(default_factory=dict)
    rename: dict[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """files: the folder (or a single .parquet or .arrow file)."""

    files: Artifact


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """No metrics of its own."""
    path = inputs.files.path
    found = _saved(spec, path) if _is_saved(path) else _from_files(spec, path)
    for i, (name, batches) in enumerate(found.items()):
        left = spec.rows
        for table in batches:
            table = table if left is None else table.slice(0, left)
            splits.add(name, _columns(spec, table, name))
            left = None if left is None else left - table.num_rows
            if left == 0:
                break
        ctx.progress(i + 1, len(found), unit="split")
    return {}


def _is_saved(path: Path) -> bool:
    return any((_root(path) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _root(path: Path) -> Path:
    """A data set artifact has its splits in `data/`."""
    return path / "data" if (path / "data" / "dataset_dict.json").is_file() else path


def _saved(spec: Spec, path: Path) -> Mapping[str, Iterable["pa.Table"]]:
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(str(_root(path)), keep_in_memory=False)
    offered = loaded if isinstance(loaded, DatasetDict) else DatasetDict({str(loaded.split or "train"): loaded})
    for old in spec.splits.values():
        if old not in offered:
            raise ValueError(f"{path}: {unknown('split', old, offered)}")
    chosen = spec.splits or {name: name for name in offered}
    # flatten_indices would write a cache: the iterator applies a selection by itself.
    return {new: offered[old].with_format("arrow").iter(batch_size=BATCH) for new, old in chosen.items()}


def _from_files(spec: Spec, path: Path) -> Mapping[str, Iterable["pa.Table"]]:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in ENDINGS)
    if not found or found[0].suffix not in ENDINGS:
        raise ValueError(f"{path} holds neither a saved data set (dataset_dict.json) nor {' or '.join(ENDINGS)} files")
    base = path if path.is_dir() else path.parent
    groups: dict[str, list[Path]] = {}
    for member in found:
        groups.setdefault(member.stem.split("-")[0], []).append(member)
    if not spec.splits:
        _refuse_ambiguous(groups, base)
        return {name: _tables(members) for name, members in groups.items()}
    chosen = {}
    for new, old in spec.splits.items():
        if old in groups:
            _refuse_ambiguous({old: groups[old]}, base)
        matching = set(base.glob(old))
        chosen[new] = groups.get(old) or [p for p in found if p in matching]
        if not chosen[new]:
            raise ValueError(f"{path}: no file matches the pattern {old!r}, and {unknown('split', old, groups)}")
    return {name: _tables(members) for name, members in chosen.items()}


def _refuse_ambiguous(groups: Mapping[str, list[Path]], base: Path) -> None:
    """Two configurations of a data set lie in two folders and would be mixed."""
    for name, members in groups.items():
        folders = sorted({str(p.parent.relative_to(base)) for p in members})
        if len(folders) > 1:
            raise ValueError(
                f"split {name!r} is in several folders of {base}: {', '.join(folders)}; choose one, for example "
                f"splits: {{{name}: {folders[0]}/{name}*}}"
            )


def _tables(members: Iterable[Path]) -> Iterator["pa.Table"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in members:
        try:
            if path.suffix == ".parquet":
                batches: Iterable[pa.RecordBatch] = pq.ParquetFile(path).iter_batches(batch_size=BATCH)
            else:
                batches = _arrow(path)
            for batch in batches:
                yield pa.Table.from_batches([batch])
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: broken {path.suffix} file: {error}") from None


def _arrow(path: Path) -> Iterator["pa.RecordBatch"]:
    """Record batches of an Arrow file in either format, memory-mapped."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            source.seek(0)
            yield from pa.ipc.open_stream(source)


def _columns(spec: Spec, table: "pa.Table", split: str) -> "pa.Table":
    """The table with the columns and names that the spec asks for."""
    from datasets import Features

    for old in spec.rename:
        if old not in table.column_names:
            raise ValueError(f"rename: split {split!r}: {unknown('column', old, table.column_names)}")
    names = [spec.rename.get(name, name) for name in table.column_names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"rename: split {split!r} would have two columns {twice!r}; drop one by renaming it too")
    for name in spec.keep:
        if name not in names:
            raise ValueError(f"keep: split {split!r}: {unknown('column', name, names)}")
    # What `datasets` knows of the columns (class labels) stands in the schema under the old names.
    known = Features.from_arrow_schema(table.schema)
    features = Features({spec.rename.get(name, name): kind for name, kind in known.items()})
    return (
        table.rename_columns(names).select(list(features)).cast(features.arrow_schema).select(list(spec.keep) or names)
    )
