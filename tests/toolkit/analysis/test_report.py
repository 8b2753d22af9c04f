import html.parser
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toolkit.analysis.origin import duration, origin
from toolkit.analysis.payload import script_json, table_payload, visible
from toolkit.analysis.report import failures, samples, stages, write_report
from toolkit.plan import CellState

from .browser import CHROMIUM, Browser
from .fake_study import DONE, HOSTILE, NEVER, FakeStudy

MADE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")


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


def test_what_models_wrote_opens_no_tag(page: Path) -> None:
    reader = Reader(page.read_text())
    assert [tag for tag, _ in reader.tags].count("script") == 4
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
    columns = {"id": [0], "prompt": ["p"], "prediction": broken, "gold": ["g"]}
    own_study.commit(cell, predictions=columns)
    sample = next(s for s in samples(own_study.cells, own_study.folders) if s.prompt == "p")
    assert sample.answers[0][1].startswith("ok \ufffd\ufffd yyy") and "1,000,006 bytes in all" in sample.answers[0][1]


def test_samples_put_the_answers_of_all_cells_under_their_prompt(study: FakeStudy) -> None:
    found = samples(study.cells, study.folders)
    assert len(found) == 6 and {s.stage for s in found} == {"answers"}
    done = sum(c.stage == "answers" and c.fingerprint in study.folders for c in study.cells)
    assert len(found[0].answers) == done and found[0].gold == "Princeton University"
    assert {right for _, _, right in found[0].answers} == {True, False}
    assert found[0].answers[0][0] == "step 0, model checkpoint"


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


def test_a_large_table_keeps_missing_cells_and_says_how_many_rows_there_are(table: pa.Table) -> None:
    payload = table_payload(table, limit=40)
    columns = {c["name"]: c for c in payload["columns"]}
    states = [columns["state"]["labels"][code] for code in columns["state"]["codes"]]
    missing = table.num_rows - table["state"].to_pylist().count("done")
    assert (payload["rows"], payload["total"]) == (40, table.num_rows)
    assert 40 - states.count("done") == missing


def test_making_a_report_imports_no_torch(study: FakeStudy) -> None:
    heavy = {"torch", "transformers", "datasets", "pandas"}
    script = f"import sys, toolkit.analysis.report; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3]).returncode == 0


def test_a_study_that_has_not_begun_has_a_report(study: FakeStudy, tmp_path: Path) -> None:
    states: dict[str, CellState] = dict.fromkeys(study.states, NEVER)
    path = write_report(
        tmp_path / "r.html", name="new", text="", cells=study.cells, states=states, folders={}, axes=study.axes
    )
    assert "0 of 77 cells are done" in path.read_text()


@pytest.fixture(scope="module")
def tab(page: Path) -> Iterator[Browser]:
    with Browser(page) as browser:
        yield browser


@needs_browser
def test_the_page_opens_without_errors_or_requests(tab: Browser, page: Path) -> None:
    tab.wait("document.querySelectorAll('#rows tbody tr').length === 50")
    assert tab.run("document.title") == "quickstart · Tidemark report"  # what models wrote did not run
    for plot in tab.run("[...document.querySelectorAll('#curves > .panels .plot, #losses .plot')].map((p) => p.id)"):
        tab.run(f"document.getElementById('{plot}').scrollIntoView()")
        tab.wait(f"document.querySelectorAll('#{plot} .scatterlayer .trace').length > 0")
    assert tab.requests == [page.as_uri()] and tab.errors == []


@needs_browser
def test_the_policy_stops_a_foreign_script(tab: Browser) -> None:
    tab.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.owned = 1'}))")
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')")
    assert tab.run("window.owned") is None
    assert any("Content Security Policy" in e for e in tab.errors)
    tab.errors.clear()


@needs_browser
def test_the_table_sorts_filters_and_finds(tab: Browser) -> None:
    def column(name: str) -> Any:
        script = "[...document.querySelectorAll('#rows thead th')].findIndex((th) => th.dataset.name === '%s')" % name
        return tab.run(f"[...document.querySelectorAll('#rows tbody tr')].map((tr) => tr.cells[{script}].textContent)")

    def choose(name: str, label: str) -> None:
        tab.run(
            "(() => { const s = document.querySelector('select[data-column=%s]'); "
            "s.value = [...s.options].find((o) => o.textContent === '%s').value; s.dispatchEvent(new Event('change')); })()"
            % (name, label)
        )

    choose("state", "failed")
    assert column("stage") == ["tuned"] and column("value") == ["–"] and column("state") == ["failed: DISK_FULL"]
    choose("state", "all")
    choose("metric", "acc")
    click = "document.querySelector('#rows th[data-name=value] button').click()"
    tab.run(click)
    values = [float(v) for v in column("value")]
    assert values == sorted(values) and len(values) == 42
    tab.run(click)
    assert [float(v) for v in column("value")] == sorted(values, reverse=True)
    choose("metric", "all")
    tab.run(
        "(() => { const f = document.getElementById('find'); f.value = 'PIQA'; f.dispatchEvent(new Event('input')); })()"
    )
    assert set(column("task")) == {"piqa"} and "of 51" in tab.run("document.getElementById('shown').textContent")
    tab.run(
        "(() => { const f = document.getElementById('find'); f.value = ''; f.dispatchEvent(new Event('input')); })()"
    )
    assert tab.errors == []


@needs_browser
def test_the_scale_of_the_curves_can_be_switched(tab: Browser) -> None:
    tab.run("document.getElementById('curves').scrollIntoView()")
    tab.wait("document.querySelectorAll('#curves-0 .scatterlayer .trace').length > 0")
    x = "document.getElementById('curves-0').data.find((t) => t.mode === 'lines+markers').x"
    assert tab.run(x) != [0, 30, 100, 300, 1000]
    tab.run(
        "(() => { const s = document.getElementById('scale'); s.value = 'linear'; s.dispatchEvent(new Event('change')); })()"
    )
    tab.wait(f"JSON.stringify({x}) === '[0,30,100,300,1000]'")
    assert tab.errors == []


@needs_browser
def test_a_line_can_be_hidden_by_its_legend(tab: Browser) -> None:
    tab.run("document.getElementById('curves').scrollIntoView()")
    tab.wait("document.querySelectorAll('#curves-0 + .legend button').length === 3")
    names = "[...document.querySelectorAll('#curves-0 + .legend > *')].map((e) => e.textContent.slice(1))"
    assert tab.run(names) == ["checkpoint", "tuned", "merged", "never-run", "blocked"]
    tuned = "document.getElementById('curves-0').data.filter((t) => t.legendgroup === 'tuned').map((t) => t.visible)"
    tab.run("document.querySelectorAll('#curves-0 + .legend button')[1].click()")
    tab.wait(f"{tuned}.every((v) => v === false)")
    tab.run("document.querySelectorAll('#curves-0 + .legend button')[1].click()")
    tab.wait(f"{tuned}.every((v) => v === true)")
    assert tab.errors == []


@needs_browser
def test_the_theme_follows_the_system_and_the_button(tab: Browser) -> None:
    def colours() -> tuple[str, str]:
        text = "document.querySelector('#curves-0 .xtick text')"
        tab.wait(f"{text} !== null")
        return tab.run("getComputedStyle(document.body).backgroundColor"), tab.run(f"getComputedStyle({text}).fill")

    light = colours()
    tab.set_dark(True)
    tab.wait(f"getComputedStyle(document.body).backgroundColor !== '{light[0]}'")
    dark = colours()
    assert dark[0] == "rgb(18, 23, 28)" and light[1] != dark[1]
    tab.run("document.getElementById('theme').click()")
    assert colours() == light
    tab.run("localStorage.clear()")


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_of_the_page(page: Path, width: int) -> None:
    with Browser(page, width=width, dark=True) as browser:
        browser.wait("document.querySelectorAll('#rows tbody tr').length === 50")
        assert browser.run("document.documentElement.scrollWidth") == width
        inside = ".scroll, nav, pre, .js-plotly-plot"
        over = browser.run(
            f"[...document.querySelectorAll('body *')].filter((e) => !e.closest('{inside}') && "
            "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
        )
        assert over == [] and browser.errors == []


@needs_browser
def test_a_hundred_thousand_rows_open_quickly(tmp_path: Path) -> None:
    size = 100_000
    random = np.random.default_rng(0)
    large = FakeStudy(root=tmp_path)
    for step in range(10):
        cell = large.add("quality", "evaluate", DONE, coords={"step": step, "model": "m"})
        rows = {
            "task": [f"task{i // 4:05d}" for i in range(size // 10)], "metric": ["a", "b", "c", "d"] * (size // 40),
            "value": random.random(size // 10), "stderr": random.random(size // 10), "n": np.full(size // 10, 100),
        }  # fmt: skip
        large.commit(cell, rows=rows)
    started = time.monotonic()
    path = write(large, tmp_path / "large.html")
    took = time.monotonic() - started
    assert path.stat().st_size < 20 << 20 and took < 30
    with Browser(path) as browser:
        browser.wait("document.querySelectorAll('#rows tbody tr').length === 50")
        seconds = browser.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000")
        assert seconds < 10  # 1 s on a quiet machine
        assert "of 100,000" in browser.run("document.getElementById('shown').textContent") and browser.errors == []
        print(f"100,000 rows: {path.stat().st_size / 1e6:.1f} MB, made in {took:.1f} s, ready in {seconds:.2f} s")
