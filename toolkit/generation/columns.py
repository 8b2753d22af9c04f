"""The rows of a split with columns added to them, as a data set artifact of their own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.data.splits import Splits

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["string", "strings", "int", "float"]


def add_columns(out: Path, split: str, rows: "Dataset", added: dict[str, tuple[Sequence[Any], Kind]]) -> None:
    """Write `out/data`. added: name -> (a value or None for each row, what it is); replaces columns of these names."""
    import pyarrow as pa

    types = {"string": pa.string(), "strings": pa.list_(pa.string()), "int": pa.int64(), "float": pa.float64()}
    table = rows.with_format("arrow")[:]
    for name, (values, kind) in added.items():
        column = pa.array(values, types[kind])
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    splits = Splits(out / "data")
    splits.add(split, table.replace_schema_metadata(None))
    splits.finish()
