import base64
import gzip
import html.parser
import json
import math
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toolkit.analysis.browse import item_sets
from toolkit.analysis.contents import _follows
from toolkit.analysis.origin import duration, origin
from toolkit.analysis.payload import script_json, table_payload, visible
from toolkit.analysis.report import failures, stages, write_report
from toolkit.plan import CellState

from .fake_study import HOSTILE, NEVER, FakeStudy

MADE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)


def write(study: FakeStudy, path: Path) -> Path:
    return write_report(path, name=study.name, text=study.text, logs=study.logs, made=MADE, **study.arguments())


@pytest.fixture(scope="module")
def page(study: FakeStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(study, tmp_path_factory.mktemp("report with space") / "report.html")


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data


def test_nothing_is_loaded_from_elsewhere(page: Path) -> None:
    reader = Reader(page.read_text())
    for tag, attributes in reader.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("#", "data:,")), (tag, name, value)
    styles = re.findall(r"<style[^>]*>(.*?)</style>", page.read_text(), re.S)
    assert styles and not any("url(" in s or "@import" in s for s in styles)


def test_tokens_follow_a_step_beside_rows_that_have_none() -> None:
    table = pa.table({"step": [1, 2, 3, 3], "tokens": [None, 20, 30, 30], "shots": [0, 0, 0, 4]})
    assert _follows(table, "step", "tokens") and not _follows(table, "step", "shots")
    assert not _follows(pa.table({"step": [1, 2], "tokens": [20, 20]}), "step", "tokens")


def test_what_models_wrote_opens_no_tag(page: Path) -> None:
    reader = Reader(page.read_text())
    assert [tag for tag, _ in reader.tags].count("script") == 7
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in reader.tags)
    text = page.read_text()
    assert HOSTILE not in text and "&lt;script&gt;document.title" in text and "<b>not bold" not in text


def test_equal_inputs_give_an_equal_page(study: FakeStudy, page: Path, tmp_path: Path) -> None:
    assert write(study, tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert list(tmp_path.iterdir()) == [tmp_path / "again.html"]


def test_json_cannot_leave_its_script() -> None:
    hostile = ["</script><!--", "\u2028\u2029&", "\ud800 lone"]
    text = script_json(hostile)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text)[:2] == hostile[:2]


@pytest.mark.parametrize(
    "written, shown",
    [
        (b"plain \n\ttext", "plain \n\ttext"),
        (b"a\x00b\x1b[31m\x7f", "a\\x00b\\x1b[31m\\x7f"),
        (b"\xff\xfe ok", "\ufffd\ufffd ok"),
        ("\u202eabc".encode(), "\\u202eabc"),
        (b"x" * 2000, "x" * 1200 + " … (2,000 bytes in all)"),
        ("é".encode() * 1200, "é" * 1200),
    ],
)
def test_hostile_text_becomes_visible(written: bytes, shown: str) -> None:
    assert visible(written) == shown


def test_predictions_that_are_not_utf8_are_shown(own_study: FakeStudy) -> None:
    cell = next(c for c in own_study.cells if c.stage == "answers")
    raw = pa.array([b"ok \xff\xfe " + b"y" * 1_000_000]).cast(pa.binary())
    broken = pa.StringArray.from_buffers(1, raw.buffers()[1], raw.buffers()[2])
    own_study.commit(cell, predictions={"id": [0], "prompt": ["p"], "prediction": broken, "gold": ["g"]})
    (found,) = [one for one in item_sets([cell], own_study.folders)]
    said = found["texts"][found["sides"][0]["answers"][0][1]]
    assert said.startswith("ok \ufffd\ufffd yyy") and "1,000,006 bytes in all" in said


def test_items_put_the_answers_of_all_cells_under_their_prompt(study: FakeStudy) -> None:
    (found,) = item_sets([c for c in study.cells if c.stage == "answers"], study.folders)
    done = [c for c in study.cells if c.stage == "answers" and c.fingerprint in study.folders]
    assert (len(found["sides"]), found["kept"], found["total"]) == (len(done), 20, 20)
    assert found["sides"][0]["name"] == "step 0, model checkpoint" and found["name"] == "answers · bios"
    prompt, _, right, _ = found["sides"][0]["answers"][0]
    assert found["texts"][prompt].startswith("Which answer") and right in (True, False)
    assert found["texts"][found["gold"][0]] == "Princeton University"


def test_failures_have_reason_remedy_and_log(study: FakeStudy) -> None:
    (failed,) = failures(study.cells, study.states, study.logs)
    assert (failed.name, failed.reason, failed.attempt) == ("tuned[step=300]", "DISK_FULL", 2)
    assert "tidemark clean" in failed.remedy and failed.log.startswith("step 11 loss 4.1")


def test_origin_adds_up(study: FakeStudy) -> None:
    found = origin(study.cells, study.states, study.folders)
    assert found.stages["tuned"].done == 4 and found.stages["tuned"].seconds == pytest.approx(44.0)
    assert found.commits == {"4f1c9d2": sum(s.state == "done" for s in study.states.values())}
    assert found.packages["torch"].keys() == {"2.13.0"} and found.gpu_seconds == 0
    assert found.seeds["tuned spec.seed"] == ["0"]
    assert [duration(s) for s in (0.44, 59.96, 60, 3725, 90000, 0)] == [
        "0.4 s",
        "60.0 s",
        "1 min",
        "1 h 2 min",
        "1 d 1 h",
        "0.0 s",
    ]


def test_stages_count_their_cells(study: FakeStudy) -> None:
    tuned = next(s for s in stages(study.cells, study.states) if s.stage == "tuned")
    assert dict(tuned.states) == {"done": 4, "running": 0, "failed": 1, "blocked": 0, "never-run": 0}
    assert (tuned.axes, tuned.inputs) == (["step"], ["checkpoint", "people"])


def decoded(head: dict[str, Any], text: str) -> dict[str, list[Any]]:
    """The columns of a table as the page reads them."""
    block = gzip.decompress(base64.b64decode(text))
    found = {}
    for column in head["columns"]:
        numbers = np.frombuffer(block, "<" + column["type"], head["rows"], column["start"]).tolist()
        found[column["name"]] = [column["labels"][code] for code in numbers] if "labels" in column else numbers
    return found


def test_the_table_in_the_page_is_the_table(table: pa.Table) -> None:
    columns = decoded(*table_payload(table))
    for name in ("stage", "model", "task", "metric", "state", "fingerprint"):
        assert columns[name] == table[name].to_pylist()
    assert [int(step) if step else None for step in columns["step"]] == table["step"].to_pylist()
    assert [None if math.isnan(v) else v for v in columns["value"]] == table["value"].to_pylist()
    assert all(a == pytest.approx(b, rel=1e-6) for a, b in zip(columns["stderr"], table["stderr"].to_pylist()) if b)


def test_a_large_table_keeps_missing_cells_and_says_how_many_rows_there_are(table: pa.Table) -> None:
    head, text = table_payload(table, budget=1000)
    states = decoded(head, text)["state"]
    missing = table.num_rows - table["state"].to_pylist().count("done")
    assert len(text) <= 1000 and head["rows"] < head["total"] == table.num_rows
    assert head["rows"] - states.count("done") == missing


def test_making_a_report_imports_no_torch(study: FakeStudy) -> None:
    heavy = {"torch", "transformers", "datasets"}
    script = f"import sys, toolkit.analysis.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3]).returncode == 0


def test_a_study_that_has_not_begun_has_a_report(study: FakeStudy, tmp_path: Path) -> None:
    states: dict[str, CellState] = dict.fromkeys(study.states, NEVER)
    path = write_report(
        tmp_path / "r.html", name="new", text="", cells=study.cells, states=states, folders={}, axes=study.axes
    )
    assert "0 of 77 cells are done" in path.read_text()
