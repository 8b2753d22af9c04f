"""How large are weights and differences of weights, tensor by tensor, layer by layer and as a whole.

With a base, a model tuned from it and one trained on from it: delta = instruct - base, change = trained - base.
The ratio of mean |change| to mean |delta| is the criterion of the delta merge's source: small means that training moved
the weights little where instruction tuning moved them much. Means are over all elements.

Sums over pieces are exact, so that neither threads nor the order of work change a digit. Against float64 throughout
they agree to six digits and more.
"""

import json
import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from toolkit.merging.stream import Chunk, Place

WHAT = ("base", "instruct", "delta", "change")
RATIOS = (("delta", "base"), ("change", "base"), ("change", "delta"))
KEYS = (  # of the sums, in the order of `toolkit.merging.compiled.sums`; the last three take a trained model
    "base_abs", "base_square", "instruct_abs", "instruct_square", "delta_abs", "delta_square",
    "change_abs", "change_square", "product",
)  # fmt: skip
SAMPLE, WINDOW = 64, 1024  # rows and neighbouring columns of a matrix whose effective rank is taken
FILE = "weights.parquet"


class Weights:
    """Sums of what was measured, by tensor. shapes: of all tensors. seed: chooses the rows of each sample.

    `sums` holds finished tensors; the sums of their pieces are kept only as long as there are pieces to come.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> None:
        from toolkit.merging import compiled  # noqa: F401 - compiled before threads begin

        self.shapes, self.seed = shapes, seed
        self.sums: dict[str, dict[str, float]] = {}
        self.ranks: dict[str, dict[str, float]] = {}
        self._open: dict[str, _Open] = {}
        self._lock = Lock()

    def measure(self, place: "Place", base: "Chunk", instruct: "Chunk", trained: "Chunk | None") -> None:
        """Measure a piece, flat, of fp32 or of the bits of bf16."""
        import numpy as np

        from toolkit.merging import compiled

        models = [np.asarray(x) for x in (base, instruct, trained) if x is not None]
        tensor = self._tensor(place.name)
        tensor.sample(place, models)
        found = compiled.sums(models[0], models[1], models[2 if len(models) > 2 else 0])
        if tensor.add(place.count, found.tolist()[: 3 * len(models)]):
            self._close(place.name, tensor)

    def _tensor(self, name: str) -> "_Open":
        with self._lock:
            if name not in self._open:
                self._open[name] = _Open(name, self.shapes[name], self.seed)
            return self._open[name]

    def _close(self, name: str, tensor: "_Open") -> None:
        """Everything of a tensor was seen: keep its sums and effective ranks, let go of the rest."""
        columns = zip(*tensor.pieces, strict=True)
        self.sums[name] = {key: math.fsum(column) for key, column in zip(KEYS, columns, strict=False)}
        ranks = {what: effective_rank(rows) for what, rows in tensor.differences().items()}
        self.ranks[name] = {what: rank for what, rank in ranks.items() if rank is not None}
        with self._lock:
            del self._open[name]

    def rows(self) -> Iterator[dict[str, Any]]:
        """The whole, then each layer, then each tensor: `part`, `name`, `elements`, and the numbers of `_row`."""
        names = [name for name in self.shapes if name in self.sums]
        layers: dict[str, list[str]] = {}
        for name in names:
            layers.setdefault(layer(name), []).append(name)
        yield {"part": "whole", "name": "all", **self._row(names)}
        for label, inside in layers.items():
            yield {"part": "layer", "name": label, **self._row(inside)}
        for name in names:
            yield {"part": "tensor", "name": name, **self._row([name])}

    def _row(self, names: list[str]) -> dict[str, Any]:
        """Means of |x| and x^2, ratios of them, cosine of delta and change, mean effective rank of the samples."""
        elements = sum(math.prod(self.shapes[name]) for name in names)
        total = {key: math.fsum(self.sums[name][key] for name in names) for key in self.sums[names[0]]}
        found: dict[str, Any] = {"elements": elements}
        found |= {
            key: total[key] / elements for what in WHAT for key in (f"{what}_abs", f"{what}_square") if key in total
        }
        for over, under in RATIOS:
            for kind in ("abs", "square"):
                if found.get(f"{under}_{kind}") and f"{over}_{kind}" in found:
                    found[f"{over}_over_{under}_{kind}"] = found[f"{over}_{kind}"] / found[f"{under}_{kind}"]
        length = math.sqrt(total["delta_square"]) * math.sqrt(total.get("change_square", 0.0))
        if length > 0:
            found["cosine"] = total["product"] / length
        for what in ("delta", "change"):
            ranks = [self.ranks[name][what] for name in names if what in self.ranks[name]]
            if ranks:
                found[f"{what}_effective_rank"] = math.fsum(ranks) / len(ranks)
        return found

    def metrics(self) -> dict[str, float]:
        """The numbers of the whole model."""
        return {key: value for key, value in next(self.rows()).items() if key not in ("part", "name", "elements")}


def compare(folders: Mapping[str, Path], threads: int) -> Weights:
    """Measure models without merging them. folders: `base` and `instruct`, and `trained` if there are three.

    Raises:
        ValueError: models that do not fit each other.
    """
    from toolkit.merging.models import pair
    from toolkit.merging.statistics import floats
    from toolkit.merging.stream import Room, all_halves, walk

    tensors = pair(
        {role: folders[role] for role in ("base", "instruct", "trained") if role in folders}, base="base"
    ).tensors
    sizes = Weights({name: tensor.shape for name, tensor in tensors["base"].items()})

    def work(place: "Place", chunks: "list[Chunk]", room: Room) -> None:
        base, instruct, *trained = chunks
        sizes.measure(place, base, instruct, trained[0] if trained else None)

    names = floats(tensors)
    walk(tensors, names, work, halves=all_halves(tensors, names), threads=threads)
    return sizes


class _Open:
    """A tensor that is being measured: the sums of its pieces, and some rows of its differences if it is a matrix."""

    def __init__(self, name: str, shape: tuple[int, ...], seed: int) -> None:
        import numpy as np

        from toolkit.merging.rounding import random_words

        self.missing, self.pieces, self.lock = math.prod(shape), [], Lock()  # type: int, list[list[float]], Lock
        self.starts: list[int] = []  # the first elements of the chosen rows
        self.rows: list[Any] = []  # of each model, as they are stored: differences of all at once cost less
        if len(shape) == 2 and min(shape) > 1:
            height, width = shape
            draw = random_words(seed, f"sample of {name}", 0, height + 1, "uint32").astype(np.uint64)
            count, self.window = min(height, SAMPLE), min(width, WINDOW)
            keys = (draw[:height] << np.uint64(32)) + np.arange(height, dtype=np.uint64)  # so that no two are equal
            chosen = np.sort(np.partition(keys, count - 1)[:count] & np.uint64(0xFFFFFFFF))
            left = int(draw[height]) % (width - self.window + 1)
            self.starts = [row * width + left for row in chosen.tolist()]

    def add(self, count: int, sums: list[float]) -> bool:
        """The sums of a piece; whether it was the last one."""
        with self.lock:
            self.pieces.append(sums)
            self.missing -= count
            return self.missing == 0

    def sample(self, place: "Place", models: Sequence[Any]) -> None:
        """Copy what of the chosen rows lies in this piece of base, instruct and trained."""
        import numpy as np

        if not self.starts:
            return
        end = place.first + place.count
        low = bisect_right(self.starts, place.first - self.window)
        high = bisect_left(self.starts, end)
        if low < high and not self.rows:
            with self.lock:
                self.rows = self.rows or [np.empty((len(self.starts), self.window), x.dtype) for x in models]
        for number in range(low, high):
            start = self.starts[number]
            first, last = max(start, place.first), min(start + self.window, end)
            for rows, model in zip(self.rows, models, strict=True):
                rows[number, first - start : last - start] = model[first - place.first : last - place.first]

    def differences(self) -> "dict[str, torch.Tensor]":
        """The chosen rows of delta and, where there is a trained model, of change, in fp32."""
        import torch

        if not self.rows:
            return {}
        half = self.rows[0].dtype.itemsize == 2
        base, *others = (torch.from_numpy(x).view(torch.bfloat16 if half else torch.float32).float() for x in self.rows)
        return {what: other - base for what, other in zip(("delta", "change"), others, strict=False)}


def effective_rank(rows: "torch.Tensor") -> float | None:
    """exp of the entropy of the singular values, each as a share of their sum; None for zeros and what is not finite.

    Singular values are square roots of the eigenvalues of rows x rows^T in float64: those below 1e-7 of the largest are
    taken as 0. O. Roy, M. Vetterli, "The effective rank", EUSIPCO 2007.
    """
    import torch

    rows = rows.double()
    products = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    if not 0 < float(products.trace()) < math.inf:  # the sum of all squares
        return None
    squares = torch.linalg.eigvalsh(products)
    values = squares[squares > 1e-14 * squares[-1]].sqrt()
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))


def layer(name: str) -> str:
    """`layer 7` for what has a number between dots, `outside` for embeddings, the last norm and the head."""
    found = re.search(r"\.(\d+)\.", name)
    return f"layer {found[1]}" if found else "outside"


def save(rows: Iterable[Mapping[str, Any]], out: Path) -> None:
    """Write `weights.parquet`: a row for the whole, for each layer and each tensor."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow.json import ReadOptions, read_json

    def plain(row: Mapping[str, Any]) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}

    # Hazard: for arrays of Python's numbers pyarrow imports pandas, which takes half a second and 60 MB; JSON it reads.
    lines = "\n".join(json.dumps(plain(row)) for row in rows)
    table = read_json(pa.py_buffer(lines.encode()), read_options=ReadOptions(use_threads=False))
    pq.write_table(table, out / FILE, compression="zstd")
