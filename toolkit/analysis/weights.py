"""How much tuning and training moved each layer, as a figure, from the rows of `toolkit.merging.weights`."""

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.analysis.axis import scales
from toolkit.analysis.charts import Chart, Panel, Point, Series
from toolkit.analysis.formats import number

LINES = {"delta_over_base_abs": "instruct - base", "change_over_base_abs": "trained - base"}


def layers(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Mean |difference| over mean |base|, layer by layer; that of the whole model stands behind a line's name.

    Raises:
        ValueError: no layer is among the rows.
    """
    numbered = {
        int(row["name"].split()[1]): row for row in rows if row["part"] == "layer" and row["name"].startswith("layer ")
    }
    if not numbered:
        raise ValueError("no layer was measured: the names of the tensors hold no number between dots")
    places = sorted(numbered)  # files may hold layer 10 before layer 2
    whole = next(row for row in rows if row["part"] == "whole")
    series = [
        Series(
            key=(key,),
            name=f"{label} (whole: {number(whole[key])})",
            points=tuple(Point(at=at, value=numbered[place][key]) for at, place in enumerate(places)),
        )
        for key, label in LINES.items()
        if whole.get(key) is not None
    ]
    return Chart(
        kind="lines", axis="layer", measure="mean |difference| / mean |base|",
        panels=(Panel(title="", series=tuple(series)),), scales={"linear": scales(places, "layer")["linear"]},
    )  # fmt: skip
