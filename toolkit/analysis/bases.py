"""Which value of which axis is the base that others were made from: `model=checkpoint` in a study that tunes its
checkpoints, `train=base` in published tables."""

from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from toolkit.analysis.gaps import encode, keys
from toolkit.study import Cell

BASE = "base"  # what tables of others call it


def base_of(cells: Sequence[Cell], table: pa.Table) -> tuple[str, str] | None:
    """(axis, value), or None where nothing is made from something else.

    An axis whose values are stages (a union opens it) has a base if one of them is upstream of all others; any other
    axis if one of its values is called `base`.
    """
    above = _above(cells)
    axes = [name for name in keys(table) if name not in ("stage", "task", "metric")]
    for axis in axes:
        labels = [label for label in encode(table[axis])[1] if isinstance(label, str)]
        if len(labels) > 1 and all(label in above for label in labels):
            for label in labels:
                if all(label in above[other] for other in labels if other != label):
                    return axis, label
    for axis in axes:
        labels = encode(table[axis])[1]
        if BASE in labels and len([label for label in labels if label is not None]) > 1:
            return axis, BASE
    return None


def _above(cells: Sequence[Cell]) -> dict[str, set[str]]:
    """Stage -> the stages that it is made from, at any distance."""
    direct: dict[str, set[str]] = {}
    for cell in cells:
        direct.setdefault(cell.stage, set()).update(above.stage for above in cell.inputs.values())
    return {stage: set(_walk(stage, direct)) - {stage} for stage in direct}


def _walk(stage: str, direct: Mapping[str, set[str]]) -> Iterator[str]:
    seen, waiting = {stage}, [stage]
    while waiting:
        for above in direct.get(waiting.pop(), ()):
            if above not in seen:
                seen.add(above)
                waiting.append(above)
                yield above
