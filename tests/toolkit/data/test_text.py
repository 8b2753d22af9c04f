"""Text and JSON files as documents: where they are cut, how they are divided, what a broken line says."""

import gzip
import json

import pytest
from datasets import load_from_disk

from tests.toolkit.data.conftest import ARTICLES, SHARED, content
from toolkit.data.datasets.text import Spec
from toolkit.data.files import find_files

TITLE = " = [^=].* = "


def texts(artifact, split="train"):
    return load_from_disk(str(artifact.path / "data"))[split]["text"][:]


def test_the_record_and_the_log_of_an_artifact_are_no_data(tmp_path):
    for name in ("rows.json", "artifact.json", "log.txt", "inner/log.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    found = find_files(tmp_path, (".json", ".txt"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["inner/log.txt", "rows.json"]


def test_wikitext_is_cut_at_the_titles_of_articles(make, wikitext):
    articles = texts(make("text", {"files": wikitext}, documents="heading", heading=TITLE))
    titles = [line for line in wikitext.read_text().split("\n") if line.startswith(" = ") and line[3] != "="]
    assert [article.split("\n")[0] for article in articles] == titles
    assert len(articles) == (len(titles) if (SHARED / "wikitext2_valid.txt").is_file() else ARTICLES) > 3
    words = wikitext.read_text().split()
    assert [word for article in articles for word in article.split()] == words


def test_paragraphs_lines_and_whole_files(make, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "2.md").write_text("second file\n")
    (tmp_path / "a" / "1.txt").write_bytes("\ufeffone\r\ntwo\r\n\r\n  \r\nthree\r\n".encode())
    (tmp_path / "a" / "notes.pdf").write_bytes(b"%PDF")
    folder = {"files": tmp_path / "a"}
    assert texts(make("text", folder, documents="paragraph")) == ["one\ntwo", "three", "second file"]
    assert texts(make("text", folder, documents="line")) == ["one", "two", "three", "second file"]
    assert texts(make("text", folder)) == ["one\ntwo\n\n  \nthree", "second file"]


def test_json_rows_are_documents_also_compressed(make, tmp_path):
    rows = [{"body": "a b"}, {"body": " "}, {"body": "ü\nü"}]
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as stream:
        stream.write("\n\n".join(json.dumps(row) for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows[:1]))
    assert texts(make("text", {"files": tmp_path}, field="body")) == ["a b", "a b", "ü\nü"]


def test_validation_is_an_exact_share_disjoint_and_seeded(make, tmp_path):
    lines = [f"line {i}" for i in range(2500)]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    values = {"documents": "line", "validation_fraction": 0.1}
    first, again, other = (make("text", {"files": tmp_path / "lines.txt"}, seed=s, **values) for s in (1, 1, 2))
    train, validation = texts(first), texts(first, "validation")
    assert len(validation) == 250 and sorted(train + validation) == sorted(lines)
    assert train == [line for line in lines if line not in set(validation)]
    assert content(first) == content(again)
    assert texts(other, "validation") != validation
    assert first.record["metrics"] == {"files": 1, "documents": 2500, "rows_train": 2250, "rows_validation": 250}


def test_a_broken_line_is_named_with_file_line_and_content(make, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "fine"}\n\n{"text": "cut of\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: broken JSON \(.*\): '\{\"text\": \"cut of'"):
        make("text", {"files": tmp_path / "rows.jsonl"})


@pytest.mark.parametrize(
    ("name", "data", "values", "message"),
    [
        ("a.jsonl", b'{"body": "x"}', {}, r"a\.jsonl:1: no field 'text'; the row has body"),
        ("a.jsonl", b'{"text": 3}', {}, r"a\.jsonl:1: field 'text' must be a string, not '3'"),
        ("a.jsonl", b'["x"]', {}, r"a\.jsonl:1: a row must be an object"),
        ("a.json", b'[{"text": "x"},\n {"text" "y"}]', {}, r"a\.json:2: broken JSON"),
        ("a.json", b'{"text": "x"}', {}, r"must hold a JSON array"),
        ("a.txt", b"fine\n\xff\xfe\n", {}, r"a\.txt: not UTF-8"),
        ("a.txt.gz", b"no gzip", {}, r"broken gzip file"),
        ("a.txt", b" \n\n", {}, r"holds no text"),
        ("a.txt", b"one", {"validation_fraction": 0.5}, r"gives 1 rows, too few for the splits train, validation"),
        ("a.txt", b"one", {"field": "body"}, r"only text files"),
        ("a.jsonl", b"{}", {"documents": "line"}, r"whose rows are the documents"),
        ("a.pdf", b"x", {}, r"a\.pdf has none; needed: .*\.txt"),
    ],
)
def test_bad_files_are_refused(make, tmp_path, name, data, values, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        make("text", {"files": tmp_path / name}, **values)


def test_a_truncated_gzip_file_is_refused(make, tmp_path):
    packed = gzip.compress(b"many words " * 9999)
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match="broken gzip file"):
        make("text", {"files": tmp_path / "a.txt.gz"})


def test_a_missing_path_and_an_empty_folder_are_refused(make, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has none"):
        make("text", {"files": tmp_path / "empty"})
    with pytest.raises(ValueError, match="gone does not exist"):
        make("text", {"files": tmp_path / "gone"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"documents": "heading"}, "belong together"),
        ({"heading": "x"}, "belong together"),
        ({"documents": "heading", "heading": "("}, "not a regular expression"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Spec(**{"dataset": "text", **values})
