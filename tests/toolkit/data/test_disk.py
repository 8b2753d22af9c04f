"""Data sets that are on disk: every format gives the same rows; splits and columns as the spec says."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk

from tests.toolkit.data.conftest import content

FEATURES = Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])})
ROWS = {"sentence": [f"row {i}" for i in range(2500)], "label": [i % 2 for i in range(2500)]}
WHOLE = Dataset.from_dict(ROWS, features=FEATURES)


def load(artifact):
    return load_from_disk(str(artifact.path / "data"))


def parquet(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_a_saved_data_set_keeps_rows_and_class_labels(make, tmp_path):
    DatasetDict({"train": WHOLE, "dev": WHOLE.select(range(10))}).save_to_disk(str(tmp_path / "saved"))
    data = load(make("disk", {"files": tmp_path / "saved"}, rename={"sentence": "text"}))
    assert list(data) == ["train", "dev"] and data["train"]["text"][:] == ROWS["sentence"]
    assert data["dev"].features["label"] == FEATURES["label"]


def test_an_artifact_of_prepare_and_a_single_saved_split(make, tmp_path):
    WHOLE.save_to_disk(str(tmp_path / "one"))
    first = make("disk", {"files": tmp_path / "one"}, splits={"heldout": "train"}, keep=["sentence"])
    second = make("disk", {"files": first.path}, rows=1100)
    assert load(second)["heldout"]["sentence"][:] == ROWS["sentence"][:1100]
    assert load(second)["heldout"].column_names == ["sentence"]


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_files_of_every_format_in_shards(make, tmp_path, kind):
    table = pa.table(ROWS)
    for shard in range(2):
        part = table.slice(shard * 1250, 1250)
        if kind == "parquet":
            parquet(tmp_path / f"train-{shard:05d}-of-00002.parquet", part)
            continue
        opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with opened(str(tmp_path / f"train-{shard:05d}-of-00002.arrow"), part.schema) as sink:
            sink.write_table(part)
    first, again = (make("disk", {"files": tmp_path}) for _ in range(2))
    assert load(first)["train"][:] == ROWS
    assert content(first) == content(again)


def test_patterns_choose_among_configurations(make, tmp_path):
    for name in ("mnli", "qqp"):
        parquet(tmp_path / name / "train-0.parquet", pa.table({"text": [name]}))
    with pytest.raises(
        ValueError, match=r"split 'train' is in several folders .*: mnli, qqp; .*\{train: mnli/train\*\}"
    ):
        make("disk", {"files": tmp_path})
    with pytest.raises(ValueError, match="several folders"):
        make("disk", {"files": tmp_path}, splits={"train": "train"})
    data = load(make("disk", {"files": tmp_path}, splits={"train": "qqp/train*"}))
    assert data["train"]["text"][:] == ["qqp"]
    assert load(make("disk", {"files": tmp_path / "mnli" / "train-0.parquet"}))["train"]["text"][:] == ["mnli"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"splits": {"train": "trian"}}, "unknown split 'trian'; did you mean 'train'"),
        ({"rename": {"sentense": "text"}}, "unknown column 'sentense'; did you mean 'sentence'"),
        ({"rename": {"sentence": "label"}}, "two columns 'label'"),
        ({"keep": ["text"]}, "keep: split 'train': unknown column 'text'"),
    ],
)
@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_wrong_names_are_refused_with_the_right_ones(make, tmp_path, kind, values, message):
    if kind == "saved":
        DatasetDict({"train": WHOLE}).save_to_disk(str(tmp_path / "in"))
    else:
        parquet(tmp_path / "in" / "train.parquet", pa.table(ROWS))
    with pytest.raises(ValueError, match=message):
        make("disk", {"files": tmp_path / "in"}, **values)


def test_folders_without_data_and_broken_files_are_refused(make, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="neither a saved data set"):
        make("disk", {"files": tmp_path / "in"})
    with pytest.raises(ValueError, match="does not exist"):
        make("disk", {"files": tmp_path / "gone"})
    parquet(tmp_path / "in" / "train.parquet", pa.table(ROWS))
    whole = (tmp_path / "in" / "train.parquet").read_bytes()
    (tmp_path / "in" / "train.parquet").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"train\.parquet: broken \.parquet file"):
        make("disk", {"files": tmp_path / "in"})
    with pytest.raises(ValueError, match="rows is 0"):
        make("disk", {"files": tmp_path / "in"}, rows=0)
