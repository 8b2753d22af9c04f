"""The folder that `Splits` writes is one that `datasets` maps, the same bytes for the same rows."""

import json

import pyarrow as pa
import pytest
from datasets import load_from_disk

from toolkit.data import splits as module
from toolkit.data.splits import Splits


def write(folder, sizes):
    """Two splits, with 10 rows in all added in batches of the given sizes."""
    made = Splits(folder)
    start = 0
    for size in sizes:
        numbers = range(start, start + size)
        made.add("train", {"text": [f"row {i}" for i in numbers], "n": list(numbers)})
        start += size
    made.add("heldout", pa.table({"ids": pa.array([[1, 2], []], pa.list_(pa.int32()))}))
    return made.finish()


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_rows_come_back_in_order_from_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FLUSH_ROWS", 4)
    monkeypatch.setattr(module, "SHARD_BYTES", 50)
    assert write(tmp_path / "data", [3, 3, 4]) == {"train": 10, "heldout": 2}
    data = load_from_disk(str(tmp_path / "data"))
    assert data["train"]["n"][:] == list(range(10)) and data["train"][7]["text"] == "row 7"
    assert data["heldout"]["ids"][:] == [[1, 2], []] and data["heldout"].features["ids"].feature.dtype == "int32"
    assert len(data["train"].cache_files) == 2 and data["train"].split == "train"


def test_equal_rows_are_equal_bytes_and_other_rows_another_fingerprint(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, [5, 5])
    write(tmp_path / "c", [5, 4])
    assert files(tmp_path / "a") == files(tmp_path / "b")
    marks = {json.loads((tmp_path / n / "train" / "state.json").read_text())["_fingerprint"] for n in "abc"}
    assert len(marks) == 2


def test_columns_may_come_in_another_order_and_narrower_types_widen(tmp_path):
    made = Splits(tmp_path / "data")
    made.add("train", {"n": [1], "text": ["a"]})
    made.add("train", {"text": ["b"], "n": pa.array([2], pa.int8())})
    made.finish()
    assert load_from_disk(str(tmp_path / "data"))["train"][:] == {"n": [1, 2], "text": ["a", "b"]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"txt": ["b"], "n": [1]}, r"columns \['n', 'txt'\], but its first rows have \['n', 'text'\]"),
        ({"text": ["b"], "n": ["x"]}, "split 'train': a row has another type than the first rows"),
        ({"text": ["b", 3], "n": [1, 2]}, "split 'train': the values of a column have several types"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, rows, message):
    made = Splits(tmp_path / "data")
    made.add("train", {"text": ["a"], "n": [0]})
    with pytest.raises(ValueError, match=message):
        made.add("train", rows)


def test_splits_without_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no rows at all"):
        Splits(tmp_path / "a").finish()
    made = Splits(tmp_path / "b")
    made.add("train", {"text": pa.array([], pa.string())})
    with pytest.raises(ValueError, match="split 'train' has no rows"):
        made.finish()
