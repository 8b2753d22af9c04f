"""A figure of how much tuning and training moved each layer, from the rows of `toolkit.merging.weights`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from toolkit.analysis.drawing import COLOURS
from toolkit.analysis.plots import HEIGHT, MARKERS, STYLE, WIDTH

LINES = {"delta_over_base_abs": "instruct - base", "change_over_base_abs": "trained - base"}


def layers(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean |difference| over mean |base|, layer by layer; dotted: over the whole model.

    Raises:
        ValueError: no layer is among the rows.
    """
    inside = [row for row in rows if row["part"] == "layer" and row["name"].startswith("layer ")]
    if not inside:
        raise ValueError("no layer was measured: the names of the tensors hold no number between dots")
    whole = next(row for row in rows if row["part"] == "whole")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 1.5, HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for (key, label), colour, marker in zip(LINES.items(), COLOURS, MARKERS):
            if whole.get(key) is not None:
                places = [int(row["name"].split()[1]) for row in inside]
                axes.plot(places, [row[key] for row in inside], color=colour, marker=marker, label=label)
                axes.axhline(whole[key], color=colour, linestyle=":", linewidth=0.8)
        axes.set(xlabel="layer", ylabel="mean |difference| / mean |base|")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    return figure
