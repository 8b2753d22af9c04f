"""Data for the report's page: the long table by columns, texts of models, JSON that may stand in a script tag."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from toolkit.analysis.gaps import encode, show

ROWS_IN_PAGE = 100_000  # about 7 MB of page
CHARACTERS = 1200  # of one text that a model wrote
# hazard: `</script>` or `<!--` inside a string would end or hide the script, U+2028 was once a line end in JavaScript
IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def script_json(data: Any) -> str:
    """JSON that cannot leave the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in IN_SCRIPT.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode()


def table_payload(table: pa.Table, limit: int = ROWS_IN_PAGE) -> dict[str, Any]:
    """The table by columns, `limit` rows at most: all cells that are not done come before others are left out.

    Text columns and axes are labels and codes; numbers are lists in which null is missing and "NaN" is not a number.
    """
    total = table.num_rows
    if total > limit:
        missing = pc.fill_null(pc.not_equal(table["state"], "done"), False).to_numpy()
        order = np.concatenate([np.flatnonzero(missing), np.flatnonzero(~missing)])[:limit]
        table = table.take(pa.array(np.sort(order)))
    columns = []
    for name in table.column_names:
        if name in ("value", "stderr", "n"):
            columns.append({"name": name, "values": [_finite(v) for v in table[name].to_pylist()]})
        else:
            codes, labels = encode(table[name])
            texts = [None if v is None else show(v) for v in labels]
            numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in labels if v is not None)
            columns.append({"name": name, "labels": texts, "codes": codes.tolist(), "numeric": numeric})
    return {"columns": columns, "total": total, "rows": table.num_rows}


def _finite(value: float | None) -> float | str | None:
    return (
        value
        if value is None or math.isfinite(value)
        else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    )


def head(path: Path, columns: tuple[str, ...], rows: int) -> list[dict[str, str]]:
    """The first rows of those `columns` that a parquet file has, each as text that is safe to show."""
    with pq.ParquetFile(path) as file:
        known = [name for name in columns if name in file.schema_arrow.names]
        batch = next(file.iter_batches(batch_size=rows, columns=known), None)
    if batch is None:
        return []
    texts = {name: [_text(value) for value in batch.column(name)] for name in known}
    return [dict(zip(texts, row)) for row in zip(*texts.values())]


def _text(value: pa.Scalar) -> str:
    if isinstance(value, (pa.StringScalar, pa.LargeStringScalar)) and value.is_valid:
        return visible(value.as_buffer().to_pybytes())  # as_py() would raise on bytes that are not UTF-8
    return visible(str(value.as_py()).encode("utf-8", "replace"))


def visible(text: bytes, most: int = CHARACTERS) -> str:
    """What a model wrote, cut to `most` characters; bytes that are no text are U+FFFD, control characters `\\x07`."""
    plain = text[: 4 * most].decode("utf-8", "replace")
    shown = "".join(c if c in "\n\t" or not _is_control(c) else _escape(c) for c in plain[:most])
    return (
        shown
        if len(text) <= len(plain[:most].encode("utf-8", "replace"))
        else f"{shown} … ({len(text):,} bytes in all)"
    )


def _is_control(character: str) -> bool:
    # C0, DEL and C1, and the marks that turn the direction of the text around them
    code = ord(character)
    return code < 32 or 127 <= code < 160 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
