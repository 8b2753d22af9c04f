"""What `absmax` and `zero_point` share: 8-bit weights by tensor or row, and activations in floats or in integers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Artifact, Context

SPLIT, ROWS = "train", 32  # of the calibration set, where the spec says nothing


@dataclass(frozen=True, kw_only=True)
class Spec:
    """granularity: `tensor`, one range for a weight matrix; `row`, one for each of its rows (outputs); `vector`, that
    and one for each token's activations. activations: `none` multiplies in floats; `dynamic` quantizes what comes, by
    its own range; `static` by a range measured on `rows` rows of `split` of the input `data` (32 of train).
    """

    scheme: str
    granularity: Literal["tensor", "row", "vector"] = "row"
    activations: Literal["none", "dynamic", "static"] = "none"
    split: str | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        if self.granularity == "vector" and self.activations != "dynamic":
            raise ValueError(
                f"granularity vector is for each token's activations too, and they are {self.activations}: set"
                " activations to dynamic, or granularity to row"
            )
        if self.activations != "static" and (self.split, self.rows) != (None, None):
            raise ValueError(f"split and rows are of calibration, for activations: static; they are {self.activations}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}: calibration needs at least one")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a plain one. data: rows to calibrate on, with `input_ids` or `text`; for static activations only."""

    model: Artifact
    data: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context, affine: bool) -> dict[str, Any]:
    """Fill `out` with the quantized model and the errors of its layers.

    Raises:
        ValueError: calibration without data or data without calibration; a model that cannot be quantized.
    """
    from toolkit.quantization import calibrate, store
    from toolkit.quantization.errors import bytes_of, finish
    from toolkit.quantization.integers import absmax, zero_point

    if (spec.activations == "static") != (inputs.data is not None):
        raise ValueError(
            f"activations are {spec.activations}, and the input data, which static ones are calibrated on, is"
            f" {'there' if inputs.data else 'not there'}"
        )
    source, extra, found = inputs.model.path, None, []
    words: dict[str, Any] = {"kind": "weights"}
    if spec.activations != "none":
        words = {"kind": "both", "affine": affine, "by_row": spec.granularity == "vector"}
    if inputs.data is not None:
        split, rows = spec.split or SPLIT, spec.rows or ROWS
        extra, told = calibrate.ranges(source, inputs.data.path, split, rows, affine, ctx)
        found = [told]
    dim = None if spec.granularity == "tensor" else 1
    turn = zero_point if affine else absmax
    errors = store.write(source, out, words, lambda weight: turn(weight, dim), ctx, extra)
    return finish(out, bytes_of(source), errors, *found)
