import re
import xml.etree.ElementTree as ET
from collections import Counter

from toolkit.analysis.graph import dag_svg
from toolkit.analysis.report import stages
from toolkit.plan import StagePlan, plan

from .fake_study import FakeStudy

SVG = "{http://www.w3.org/2000/svg}"


def boxes(svg: str) -> dict[str, tuple[float, float, float, float]]:
    """Name -> x, y, width, height of every box."""
    found = {}
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        rect = next(r for r in group.iter(f"{SVG}rect") if r.get("class") == "box")
        name = next(t.text for t in group.iter(f"{SVG}text"))
        found[str(name)] = tuple(float(str(rect.get(k))) for k in ("x", "y", "width", "height"))
    return found  # type: ignore[return-value]


def test_inputs_stand_left_of_what_uses_them(study: FakeStudy) -> None:
    places = boxes(dag_svg(stages(study.cells, study.states)))
    assert set(places) == {c.stage for c in study.cells}
    for cell in study.cells:
        for above in cell.inputs.values():
            assert places[above.stage][0] + places[above.stage][2] < places[cell.stage][0]


def test_no_boxes_overlap_and_all_are_inside(study: FakeStudy) -> None:
    svg = dag_svg(stages(study.cells, study.states))
    _, _, width, height = map(float, str(ET.fromstring(svg).get("viewBox")).split())
    places = list(boxes(svg).values())
    for i, (x, y, w, h) in enumerate(places):
        assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
        for x2, y2, w2, h2 in places[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_an_edge_for_each_pair_of_stages(study: FakeStudy) -> None:
    paths = [
        p for p in ET.fromstring(dag_svg(stages(study.cells, study.states))).iter(f"{SVG}path") if p.get("marker-end")
    ]
    assert len(paths) == len({(a.stage, c.stage) for c in study.cells for a in c.inputs.values()})


def test_the_plan_can_be_drawn(study: FakeStudy) -> None:
    assert boxes(dag_svg(plan(study.cells, study.states, {}, {}))) == boxes(dag_svg(stages(study.cells, study.states)))


def test_names_are_escaped() -> None:
    name = "<script>alert(1)</script>&"
    svg = dag_svg([StagePlan(stage=name, job="a<b", axes=["x<y"], inputs=[], states=Counter(done=1))])
    assert "<script" not in svg and name in boxes(svg)


def test_an_empty_study_is_an_empty_picture() -> None:
    assert not boxes(dag_svg([]))


def test_shares_of_states_fill_the_bar(study: FakeStudy) -> None:
    svg = dag_svg([StagePlan(stage="s", job="j", axes=[], inputs=[], states=Counter(done=3, failed=1))])
    widths = [float(w) for w in re.findall(r'class="(?:done|failed)"[^>]*width="([\d.]+)"', svg)]
    assert len(widths) == 2 and abs(widths[0] / widths[1] - 3) < 0.05
