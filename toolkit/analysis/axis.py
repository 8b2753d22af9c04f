"""The checkpoint axis of a figure: where each coordinate stands, on one of three scales.

`log` is for steps and tokens, which are chosen log-spaced; 0 (the initialisation), which has no logarithm, stands one
gap left of the smallest other coordinate. `linear` is what it says. `even` gives every coordinate the same room, as a
categorical axis does.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TICKS = 8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """x[i] is the position of coordinate i; `ticks` and `labels` are what the axis shows; `title` names the scale."""

    x: tuple[float, ...]
    ticks: tuple[float, ...]
    labels: tuple[str, ...]
    title: str


def scales(coordinates: Sequence[Any], axis: str) -> dict[str, Scale]:
    """The scales that the coordinates (sorted, different) of `axis` allow; text has only `even`."""
    labels = compact_all(coordinates)
    found = {}
    if all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in coordinates):
        positive = [c for c in coordinates if c > 0]
        if len(positive) > 1 and min(coordinates) >= 0:
            title = f"{axis}, log scale" + (" with 0 set apart" if coordinates[0] == 0 else "")
            found["log"] = _scale(_logarithms(coordinates, positive), labels, title)
        found["linear"] = _scale([float(c) for c in coordinates], labels, axis)
    found["even"] = _scale([float(i) for i in range(len(coordinates))], labels, f"{axis}, evenly spaced")
    return found


def categories(labels: Sequence[Any], axis: str) -> dict[str, Scale]:
    """Bars and the columns of a heat map: each label has the same room, and none is left out."""
    x = tuple(float(i) for i in range(len(labels)))
    return {"even": Scale(x=x, ticks=x, labels=tuple(compact_all(labels)), title=axis)}


def _logarithms(coordinates: Sequence[float], positive: Sequence[float]) -> list[float]:
    lowest, highest = math.log10(positive[0]), math.log10(positive[-1])
    gap = max(0.12 * (highest - lowest), (highest - lowest) / (len(positive) - 1) if len(positive) < 9 else 0)
    return [math.log10(c) if c > 0 else lowest - gap for c in coordinates]


def _scale(x: list[float], labels: list[str], title: str) -> Scale:
    """Ticks at coordinates, as many as have room: the first and the last, and others that keep their distance."""
    room = (x[-1] - x[0]) / TICKS if len(x) > 1 else 0.0
    kept = [0] if x else []
    for i in range(1, len(x)):
        if x[i] - x[kept[-1]] >= room * 0.8 and (i == len(x) - 1 or x[-1] - x[i] >= room * 0.8):
            kept.append(i)
    if x and kept[-1] != len(x) - 1:
        kept.append(len(x) - 1)
    return Scale(x=tuple(x), ticks=tuple(x[i] for i in kept), labels=tuple(labels[i] for i in kept), title=title)


def compact_all(coordinates: Sequence[Any]) -> list[str]:
    """Each coordinate in as little room as tells it from the others: 18000, 738000 and 738020 are `18k`, `738k` and
    `738.02k`."""
    found = [compact(c, 3) for c in coordinates]
    for digits in (4, 5, 6, 8, 12):
        alike = {short for short, count in Counter(found).items() if count > 1}
        found = [compact(c, digits) if short in alike else short for c, short in zip(coordinates, found)]
    return found if len(set(found)) == len(set(coordinates)) else [str(c) for c in coordinates]


def compact(coordinate: Any, digits: int = 4) -> str:
    """A coordinate in little room: 1000 is `1k`, 143000 is `143k`, 2500000000 is `2.5B`; text as it is."""
    if isinstance(coordinate, bool) or not isinstance(coordinate, (int, float)):
        return str(coordinate).lower() if isinstance(coordinate, bool) else str(coordinate)
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if abs(coordinate) >= size:
            return f"{coordinate / size:.{digits}g}{letter}"
    return f"{coordinate:.{digits}g}"
