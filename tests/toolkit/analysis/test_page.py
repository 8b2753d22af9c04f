"""The report clicked through in a headless Chromium: every section, every choice, and what hostile texts do there."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from toolkit.analysis.report import write_report
from toolkit.analysis.stats import mean_interval, wilson

from .browser import CHROMIUM, Browser
from .fake_study import DONE, STEPS, FakeStudy, N, build, skill
from .test_report import write

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")
READY = "document.documentElement.dataset.ready === 'yes'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the fake study, whose evaluations keep items as well."""
    study = build(tmp_path_factory.mktemp("page"))
    with_items(study)
    return write(study, tmp_path_factory.mktemp("report with space") / "report.html")


def with_items(study: FakeStudy) -> None:
    for cell in study.cells:
        if cell.stage == "scores" and cell.fingerprint in study.folders:
            right = np.random.default_rng(7).random(60) < skill(cell.coords["step"], cell.coords["model"])
            said = {
                "task": ["piqa"] * 60,
                "doc_id": list(range(60)),
                "filter": ["none"] * 60,
                "correct": right.tolist(),
            }
            texts = {"prompt": [f"goal {i}" for i in range(60)], "gold": [f"b{i % 2}" for i in range(60)]}
            answers = {"prediction": [g if r else "c" for g, r in zip(texts["gold"], right)]}
            likely = {"loglikelihoods": [[-1.0, -2.0]] * 60}
            record = json.loads((study.folders[cell.fingerprint] / "artifact.json").read_text())
            rows = {"rows": pq.read_table(study.folders[cell.fingerprint] / "rows.parquet")}
            study.commit(cell, record["metrics"], 6.0, items={**said, **texts, **answers, **likely}, **rows)


@pytest.fixture(scope="module")
def tab(page: Path) -> Iterator[Browser]:
    with Browser(page) as browser:
        browser.wait(READY)
        yield browser


def show(tab: Browser, section: str) -> None:
    tab.run(f"location.hash = '#{section}'")
    tab.wait(f"document.getElementById('{section}').classList.contains('shown')")


def choose(tab: Browser, place: str, name: str, text: str) -> None:
    """Pick the option with this text of the choice with this name."""
    tab.run(
        f"(() => {{ const s = document.querySelector('#{place} select[data-column=\"{name}\"]'); "
        f"s.value = [...s.options].find((o) => o.textContent === '{text}').value; s.dispatchEvent(new Event('change')); }})()"
    )


def drawn(tab: Browser, plot: str) -> None:
    tab.wait(f"document.getElementById('{plot}') !== null")
    tab.run(f"document.getElementById('{plot}').scrollIntoView()")
    tab.wait(f"document.querySelectorAll('#{plot} .plot-container').length > 0")


def hover(tab: Browser, plot: str) -> None:
    """Move the pointer to the first point that says something; `Plotly.Fx.hover` draws no label on a heat map."""
    place = tab.run(
        f"(() => {{ const p = document.getElementById('{plot}'), box = p.getBoundingClientRect();"
        " const t = p._fullData.find((t) => t.text), at = (a, v) => a._offset + a.d2p(v), all = p._fullLayout;"
        " const [x, y] = [all[t.xaxis.replace('x', 'xaxis')], all[t.yaxis.replace('y', 'yaxis')]];"
        " return [box.x + at(x, t.x[0]), box.y + at(y, t.y[0])]; })()"
    )
    for move in (3, 0):
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] + move, y=place[1])
    tab.wait(f"document.querySelector('#{plot} .hovertext') !== null")


def asked(tab: Browser) -> list[str]:
    """What was requested; a heat map is an image that is in the page itself."""
    return [address for address in tab.requests if not address.startswith("data:")]


def texts(tab: Browser, selector: str) -> list[str]:
    return tab.run(f"[...document.querySelectorAll('{selector}')].map((e) => e.textContent)")


def test_every_section_opens_without_errors_or_requests(tab: Browser, page: Path) -> None:
    sections = tab.run("[...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))")
    assert sections == [
        "overview", "curves", "heat", "comparisons", "merges", "dynamics", "signals", "weights", "items", "table", "losses",
        "failures", "provenance",
    ]  # fmt: skip
    for section in sections:
        tab.run(f"document.querySelector('nav a[href=\"#{section}\"]').click()")
        tab.wait(f"document.getElementById('{section}').classList.contains('shown')")
        assert tab.run("document.querySelectorAll('main > section.shown').length") == 1
        assert tab.run("document.querySelector('nav a[aria-current]').hash") == f"#{section}"
        for plot in tab.run(f"[...document.querySelectorAll('#{section} .plot')].map((p) => p.id)"):
            drawn(tab, plot)
    assert tab.run("document.title") == "quickstart · Tidemark report"  # what models wrote did not run
    assert asked(tab) == [page.as_uri()] and tab.errors == []


def test_curves_have_the_numbers_and_intervals_of_the_library(tab: Browser) -> None:
    show(tab, "curves")
    choose(tab, "curve-controls", "metric", "exact_match")
    choose(tab, "curve-controls", "stage", "quality")
    drawn(tab, "curves-0")
    trace = "document.getElementById('curves-0').data.find((t) => t.name === 'tuned' && t.mode === 'lines+markers')"
    wanted = [round(skill(s, "tuned") * N) / N for s in STEPS]
    assert tab.run(f"{trace}.y") == [None if s == 300 else v for s, v in zip(STEPS, wanted)]
    band = tab.run(
        "document.getElementById('curves-0').data.find((t) => t.name === 'checkpoint' && t.fill === 'toself').y"
    )
    bounds = [wilson(round(skill(s, "checkpoint") * N) / N, N) for s in STEPS]
    assert band[: len(STEPS)] == pytest.approx([float(high) for _, high in bounds], abs=1e-9)
    assert band[len(STEPS) : -1] == pytest.approx([float(low) for low, _ in reversed(bounds)], abs=1e-9)
    strip = (
        "document.getElementById('curves-0').data.find((t) => t.yaxis === 'y2' && t.marker.symbol === 'square-open')"
    )
    assert "blocked: UPSTREAM" in tab.run(f"{strip}.text[0]") and tab.run(f"{strip}.at") == [STEPS.index(300)]
    assert tab.errors == []


def test_every_choice_of_the_curves_does_something(tab: Browser) -> None:
    show(tab, "curves")
    for name in ("metric", "stage"):
        choose(tab, "curve-controls", name, "all")
    names = tab.run("[...document.querySelectorAll('#curve-controls select')].map((s) => s.dataset.column)")
    assert names == ["over", "scale", "show", "task", "metric", "stage", "model", "shots"]
    choose(tab, "curve-controls", "task", "piqa")
    assert texts(tab, "#curve-panels figcaption") == ["piqa · acc", "piqa · bits_per_byte"]
    choose(tab, "curve-controls", "shots", "4")
    drawn(tab, "curves-0")
    assert texts(tab, "#curves-0 + .legend > *")[:3] == ["●checkpoint", "■tuned", "◆merged"]
    chance = "document.getElementById('curves-0').data.find((t) => t.name === 'chance')"
    assert tab.run(f"{chance}.y") == [0.5, 0.5]  # two choices
    choose(tab, "curve-controls", "model", "tuned")
    drawn(tab, "curves-0")
    x = "document.getElementById('curves-0').data.find((t) => t.mode === 'lines+markers').x"
    assert tab.run(x) != list(STEPS)
    choose(tab, "curve-controls", "scale", "linear")
    tab.wait(f"JSON.stringify({x}) === '[0,30,100,300,1000]'")
    choose(tab, "curve-controls", "scale", "even")
    tab.wait(f"JSON.stringify({x}) === '[0,1,2,3,4]'")
    choose(tab, "curve-controls", "show", "change by tuning")
    drawn(tab, "curves-0")
    gains = tab.run("document.getElementById('curves-0').data.find((t) => t.mode === 'lines+markers').y")
    base, tuned = (round(min(1, skill(0, m, 4) * 0.55 + 0.45) * N) / N for m in ("checkpoint", "tuned"))
    assert gains[0] == pytest.approx(tuned - base)
    choose(tab, "curve-controls", "over", "shots")
    tab.wait("document.querySelector('#curve-controls select[data-column=step]') !== null")
    for name in ("task", "model"):
        choose(tab, "curve-controls", name, "all")
    choose(tab, "curve-controls", "over", "step")
    choose(tab, "curve-controls", "show", "scores")
    assert tab.errors == []


def test_a_line_can_be_hidden_by_its_legend_and_a_point_leads_to_its_origin(tab: Browser) -> None:
    show(tab, "curves")
    choose(tab, "curve-controls", "metric", "exact_match")
    drawn(tab, "curves-0")
    tuned = "document.getElementById('curves-0').data.filter((t) => t.legendgroup === '1').map((t) => t.visible)"
    for state in ("false", "true"):
        tab.run("document.querySelectorAll('#curves-0 + .legend button')[1].click()")
        tab.wait(f"{tuned}.every((v) => v === {state})")
    row = tab.run("document.getElementById('curves-0').data.find((t) => t.mode === 'lines+markers').customdata[4]")
    tab.run(f"document.getElementById('curves-0').emit('plotly_click', {{points: [{{customdata: {row}}}]}})")
    tab.wait("document.getElementById('lineage-box').open")
    tab.run("document.getElementById('lineage-box').close()")
    choose(tab, "curve-controls", "metric", "all")
    assert tab.errors == []


def test_the_heat_map_has_a_place_for_every_checkpoint_and_task(tab: Browser) -> None:
    show(tab, "heat")
    choose(tab, "heat-controls", "metric", "acc")
    choose(tab, "heat-controls", "model", "tuned")
    choose(tab, "heat-controls", "shots", "0")
    drawn(tab, "heat-0")
    z = tab.run("document.getElementById('heat-0').data[0].z")
    wanted = round(min(1, skill(1000, "tuned")) * N) / N
    assert len(z) == len(STEPS) and z[4] == [
        pytest.approx(wanted),
        pytest.approx(round((wanted * 0.55 + 0.45) * N) / N, abs=0.01),
    ]
    assert z[3] == [None, None]
    assert "blocked" in texts(tab, "#heat-0 .annotation-text")
    choose(tab, "heat-controls", "columns", "model")
    drawn(tab, "heat-0")
    assert len(tab.run("document.getElementById('heat-0').data[0].z[0]")) == 3
    choose(tab, "heat-controls", "show", "relative change")
    drawn(tab, "heat-0")
    choose(tab, "heat-controls", "rows", "task")
    assert tab.errors == []


def test_comparisons_are_filtered_and_say_who_is_better(tab: Browser) -> None:
    show(tab, "comparisons")
    assert "of" in texts(tab, "#pair-note")[0]
    choose(tab, "pair-controls", "axis", "model")
    shown = "[...document.querySelectorAll('#pairs tbody tr')].filter((tr) => !tr.hidden)"
    rows = tab.run(f"{shown}.map((tr) => [...tr.cells].map((td) => td.textContent))")
    assert rows and all(row[2] == "checkpoint" and row[3] in ("tuned", "merged") for row in rows)
    assert {row[4] for row in rows} >= {"better", "same scores"}
    choose(tab, "pair-controls", "verdict", "better")
    assert set(tab.run(f"{shown}.map((tr) => tr.cells[4].textContent)")) == {"better"}
    assert tab.errors == []


def test_items_stand_side_by_side_and_can_be_those_that_differ(tab: Browser) -> None:
    show(tab, "items")
    tab.wait("document.querySelectorAll('#items-list article').length > 0")
    choose(tab, "items-controls", "items of", "scores · piqa")
    tab.wait("document.querySelector('#items-list .written').textContent === 'goal 0'")
    choose(tab, "items-controls", "A", "step 1000, model checkpoint, shots 0")
    choose(tab, "items-controls", "B", "step 1000, model tuned, shots 0")
    right = {m: np.random.default_rng(7).random(60) < skill(1000, m) for m in ("checkpoint", "tuned")}
    differ = int(np.sum(right["checkpoint"] != right["tuned"]))
    for keep, count in (("all", 60), ("they differ", differ), ("only A is right", 0), ("only B is right", differ)):
        choose(tab, "items-controls", "keep", keep)
        tab.wait(f"document.getElementById('items-note').textContent === '{count} items.'")
    first = texts(tab, "#items-list article:first-child .side .mark")
    assert first == ["✗ wrong", "✓ right"] and "gold" in texts(tab, "#items-list article dt")
    choose(tab, "items-controls", "keep", "all")
    tab.run(
        "(() => { const f = document.querySelector('#items-controls input'); f.value = 'GOAL 59'; f.dispatchEvent(new Event('input')); })()"
    )
    tab.wait("document.getElementById('items-note').textContent === '1 items.'")
    assert tab.errors == []


def test_hostile_answers_are_shown_and_inert(tab: Browser) -> None:
    show(tab, "items")
    choose(tab, "items-controls", "items of", "answers · bios")
    tab.run(
        "(() => { const f = document.querySelector('#items-controls input'); f.value = 'onerror'; f.dispatchEvent(new Event('input')); })()"
    )
    tab.wait("document.querySelectorAll('#items-list article').length > 3")
    assert any("<img src=x onerror=" in text for text in texts(tab, "#items-list .written"))
    assert any("\\x07" in text for text in texts(tab, "#items-list .written"))
    assert tab.run("document.querySelectorAll('#items-list img, #items-list script').length") == 0
    assert tab.run("document.title") == "quickstart · Tidemark report" and tab.errors == []


def test_a_number_leads_down_to_data_code_and_machine(tab: Browser) -> None:
    show(tab, "table")
    tab.wait("document.querySelectorAll('#rows tbody tr').length === 50")
    choose(tab, "filters", "stage", "scores")
    choose(tab, "filters", "model", "tuned")
    tab.run("document.querySelector('#rows tbody button.plain').click()")
    tab.wait("document.getElementById('lineage-box').open")
    names = texts(tab, "#lineage-body summary b")
    assert names[0] == "scores[step=0,model=tuned,shots=0]" and set(names[1:]) >= {
        "tuned[step=0]",
        "checkpoint[step=0]",
        "people",
    }
    said = tab.run("document.getElementById('lineage-body').textContent")
    for fact in (
        "4f1c9d2",
        "xxh3:8c1d",
        "host node01",
        "torch 2.13.0",
        "rows.parquet",
        "job",
        "95 % interval",
        '"tasks"',
    ):
        assert fact in said, fact
    tab.run("document.querySelector('#lineage-box form button').click()")
    tab.wait("!document.getElementById('lineage-box').open")
    for name in ("stage", "model"):
        choose(tab, "filters", name, "all")
    assert tab.errors == []


def test_the_table_sorts_filters_and_finds(tab: Browser) -> None:
    show(tab, "table")

    def column(name: str) -> Any:
        script = "[...document.querySelectorAll('#rows thead th')].findIndex((th) => th.dataset.name === '%s')" % name
        return tab.run(f"[...document.querySelectorAll('#rows tbody tr')].map((tr) => tr.cells[{script}].textContent)")

    def find(text: str) -> None:
        tab.run(
            f"(() => {{ const f = document.getElementById('find'); f.value = '{text}'; f.dispatchEvent(new Event('input')); }})()"
        )

    choose(tab, "filters", "state", "failed")
    assert column("stage") == ["tuned"] and column("value") == ["–"] and column("state") == ["failed: DISK_FULL"]
    choose(tab, "filters", "state", "done")
    choose(tab, "filters", "metric", "acc")
    click = "document.querySelector('#rows th[data-name=value] button').click()"
    tab.run(click)
    values = [float(v) for v in column("value")]
    assert values == sorted(values) and len(values) == 42
    tab.run(click)
    assert [float(v) for v in column("value")] == sorted(values, reverse=True)
    for name in ("metric", "state"):
        choose(tab, "filters", name, "all")
    find("PIQA")
    assert set(column("task")) == {"piqa"} and "of 60" in texts(tab, "#table-pager")[0]
    find("")
    lines = tab.run("csv()").splitlines()
    assert lines[0].startswith("stage,job,step,model") and len(lines) == 1 + int(
        texts(tab, "#table-pager span")[0].split()[-1]
    )
    assert tab.errors == []


def test_the_policy_stops_a_foreign_script(tab: Browser) -> None:
    tab.run("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.owned = 1'}))")
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')")
    assert tab.run("window.owned") is None
    assert any("Content Security Policy" in e for e in tab.errors)
    tab.errors.clear()


def test_the_theme_follows_the_system_and_the_button(tab: Browser) -> None:
    show(tab, "curves")
    drawn(tab, "curves-0")

    page = "getComputedStyle(document.body).backgroundColor"
    text = "document.querySelector('#curves-0 .xtick text')"  # away while the figure is drawn anew
    ink = f"{text} && getComputedStyle({text}).fill"
    tab.wait(f"{text} !== null")
    light = tab.run(page), tab.run(ink)
    tab.set_dark(True)
    tab.wait(f"{page} === 'rgb(18, 23, 28)' && {ink} !== '{light[1]}'")
    tab.run("document.getElementById('theme').click()")
    tab.wait(f"{page} === '{light[0]}' && ({ink}) === '{light[1]}'")
    tab.run("localStorage.clear()")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_of_the_page(page: Path, width: int) -> None:
    with Browser(page, width=width, dark=True) as browser:
        browser.wait(READY)
        for section in browser.run("[...document.querySelectorAll('main > section')].map((s) => s.id)"):
            show(browser, section)
            first = {"curves": ".panel", "items": "article", "table": "tbody tr"}.get(section, "h1, h2")
            browser.wait(f"document.querySelector('#{section} :is({first})') !== null")
            assert browser.run("document.documentElement.scrollWidth") == width, section
            inside = ".scroll, nav, pre, .js-plotly-plot"
            over = browser.run(
                f"[...document.querySelectorAll('section.shown *, header *')].filter((e) => !e.closest('{inside}') && "
                "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
            )
            assert over == [] and browser.errors == []


def test_hostile_names_of_axes_tasks_and_stages_are_inert(tmp_path: Path) -> None:
    """Coordinates and tasks come from studies and from published files: they reach labels, hover texts and legends."""
    evil = "</script><img src=x onerror=\"document.title='owned'\">\u202e\u2028\x1b $x_{ %{y}"
    study = FakeStudy(root=tmp_path, name=f"quick {evil}", text=f"name: {evil}", axes=("step", evil))
    for step, model in itertools.product((1, 10, 100), (evil, f"{evil} 2")):
        cell = study.add("scores", "evaluate", DONE, coords={"step": step, evil: model})
        rows = {"task": [f"{evil} task"], "metric": ["acc"], "value": [0.5], "stderr": [0.01], "n": [100]}
        said = {"task": [f"{evil} task"], "doc_id": [0], "filter": ["none"], "prompt": [evil], "gold": [evil]}
        answer = {"prediction": [evil + "x" * 1_000_000], "correct": [False], "loglikelihoods": [[-1.0, -2.0]]}
        study.commit(cell, rows=rows, items={**said, **answer})
    path = write(study, tmp_path / "evil.html")
    assert "\u202e" not in path.read_text() and "\x1b" not in path.read_text() and path.stat().st_size < 7 << 20
    with Browser(path) as browser:
        browser.wait(READY)
        for section in browser.run("[...document.querySelectorAll('main > section')].map((s) => s.id)"):
            show(browser, section)
            for plot in browser.run(f"[...document.querySelectorAll('#{section} .plot')].map((p) => p.id)"):
                drawn(browser, plot)
                hover(browser, plot)
                assert "onerror" in " ".join(texts(browser, f"#{plot} .hovertext")), plot
            assert browser.run("document.documentElement.scrollWidth") == 1280, section
        show(browser, "items")
        browser.wait("document.querySelectorAll('#items-list .written').length > 2")
        assert "bytes in all" in browser.run("document.getElementById('items-list').textContent")
        show(browser, "table")
        browser.run("document.querySelector('#rows tbody button.plain').click()")
        browser.wait("document.getElementById('lineage-box').open")
        assert browser.run("document.querySelectorAll('main img, dialog img').length") == 0
        assert "onerror" in browser.run("document.querySelector('#rows').textContent")
        assert browser.run("document.title").startswith("quick </script>") and browser.errors == []
        assert asked(browser) == [path.as_uri()]


def test_seeds_are_averaged_with_a_t_interval(study: FakeStudy, tmp_path: Path) -> None:
    cells = [c for c in study.cells if c.stage == "quality" and c.coords["model"] == "checkpoint"]
    values = {0: 0.5, 1: 0.4, 2: 0.45}
    twins = FakeStudy(root=tmp_path)
    for cell, (seed, value) in itertools.product(cells, values.items()):
        twin = twins.add("quality", "evaluate", DONE, coords={**cell.coords, "seed": seed})
        rows = {"task": ["t"], "metric": ["f1"], "value": [value], "stderr": [0.01], "n": [100]}
        twins.commit(twin, rows=rows)
    path = write(dataclasses.replace(twins, axes=("step", "model", "seed")), tmp_path / "seeds.html")
    with Browser(path) as browser:
        browser.wait(READY)
        show(browser, "curves")
        drawn(browser, "curves-0")
        band, line = browser.run("document.getElementById('curves-0').data.slice(0, 2).map((t) => t.y)")
        mean, low, high = mean_interval(list(values.values()))
        assert line == pytest.approx([mean] * 5) and (band[0], band[5]) == (pytest.approx(high), pytest.approx(low))
        assert browser.errors == []


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
    path = write_report(tmp_path / "large.html", name="large", text="", **large.arguments())
    assert path.stat().st_size < 20 << 20
    with Browser(path) as browser:
        browser.wait(READY)
        seconds = browser.run("performance.now() / 1000")
        loaded = browser.run("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1000")
        assert loaded < 10  # 1 s on a quiet machine
        show(browser, "table")
        browser.wait("document.querySelectorAll('#rows tbody tr').length === 50")
        assert "of 100,000" in texts(browser, "#table-pager")[0]
        show(browser, "curves")
        drawn(browser, "curves-0")
        assert browser.errors == []
        print(f"100,000 rows: {path.stat().st_size / 1e6:.1f} MB, loaded in {loaded:.2f} s, ready by {seconds:.2f} s")
