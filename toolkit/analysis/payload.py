"""Data for the report's page: the long table by columns, texts of models, JSON that may stand in a script tag.

The table is one block of bytes, the columns one after the other, and a head that says where each begins: a browser
reads a million rows of it in a moment, where the same as JSON would be 100 MB. gzip in base64 stands in the page.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from toolkit.analysis.gaps import encode, show

BYTES_OF_TABLE = 14_000_000  # of the page; the library that draws takes 5 MB more
CHARACTERS = 1200  # of one text that a model wrote
LABEL = 300  # characters of a coordinate
# hazard: `</script>` or `<!--` inside a string would end or hide the script, U+2028 was once a line end in JavaScript
IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def script_json(data: Any) -> str:
    """JSON that cannot leave the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in IN_SCRIPT.items():
        text = text.replace(character, escape)
    return text.encode("utf-8", "replace").decode()


def packed(data: bytes) -> str:
    """gzip in base64; equal bytes give equal text."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def packed_json(data: Any) -> str:
    """Plain data as `packed` JSON; a lone surrogate becomes a question mark."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return packed(text.encode("utf-8", "replace"))


def table_payload(table: pa.Table, budget: int = BYTES_OF_TABLE) -> tuple[dict[str, Any], str]:
    """The head and the `packed` bytes of a table, as many rows of it as `budget` bytes hold: all cells that are not
    done come before others are left out.

    Text columns, axes and n are labels and codes; value and stderr are numbers, NaN where they are missing (a value
    that is not a number belongs to a cell that is done). stderr has 7 digits.
    """
    total = table.num_rows
    head, text = _block(table)
    while len(text) > budget:
        rows = int(0.97 * head["rows"] * budget / len(text))
        head, text = _block(_first(table, rows))
    return {**head, "total": total}, text


def _first(table: pa.Table, limit: int) -> pa.Table:
    missing = pc.fill_null(pc.not_equal(table["state"], "done"), False).to_numpy()
    order = np.concatenate([np.flatnonzero(missing), np.flatnonzero(~missing)])[:limit]
    return table.take(pa.array(np.sort(order)))


def _block(table: pa.Table) -> tuple[dict[str, Any], str]:
    columns: list[dict[str, Any]] = []
    parts: list[bytes] = []
    start = 0
    for name in table.column_names:
        head, numbers = _column(name, table[name])
        columns.append({"name": name, "start": start, "type": numbers.dtype.str[1:], **head})
        data = numbers.tobytes()
        parts.append(data + bytes(-len(data) % 8))  # a typed array begins at a multiple of its width
        start += len(parts[-1])
    return {"columns": columns, "rows": table.num_rows}, packed(b"".join(parts))


def _column(name: str, column: pa.ChunkedArray) -> tuple[dict[str, Any], NDArray[Any]]:
    if name in ("value", "stderr"):
        numbers = pc.cast(column, pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
        return {}, numbers.astype("<f8" if name == "value" else "<f4")
    codes, labels = encode(column)
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in labels if v is not None)
    width = next(kind for kind in ("<u1", "<u2", "<u4") if len(labels) <= np.iinfo(kind).max + 1)
    return {"labels": [None if v is None else label(v) for v in labels], "numeric": numeric}, codes.astype(width)


def label(value: Any) -> str:
    """A coordinate as text that is safe to show."""
    return visible(show(value).encode("utf-8", "replace"), LABEL)


def chance_labels(chance: Mapping[str, float]) -> dict[str, float]:
    """By the labels that the page has for the tasks."""
    return {label(task): level for task, level in chance.items()}


def text_of(value: pa.Scalar) -> str:
    """One value of a column of texts, safe to show; bytes that are no UTF-8 are read too."""
    if isinstance(value, (pa.StringScalar, pa.LargeStringScalar)) and value.is_valid:
        return visible(value.as_buffer().to_pybytes())  # as_py() would raise on bytes that are not UTF-8
    return visible(str(value.as_py()).encode("utf-8", "replace"))


def visible(text: bytes, most: int = CHARACTERS) -> str:
    """What a model wrote, cut to `most` characters; bytes that are no text are U+FFFD, control characters `\\x07`."""
    plain = text[: 4 * most].decode("utf-8", "replace")
    shown = spelled(plain[:most])
    return (
        shown
        if len(text) <= len(plain[:most].encode("utf-8", "replace"))
        else f"{shown} … ({len(text):,} bytes in all)"
    )


def spelled(text: str) -> str:
    """`text` with control characters and marks that turn its direction spelled out; line ends and tabs stay."""
    return "".join(c if c in "\n\t" or not _is_control(c) else _escape(c) for c in text)


def _is_control(character: str) -> bool:
    # C0, DEL and C1, line ends of old, and the marks that turn the direction of the text around them
    code = ord(character)
    turns = code in (0x061C, 0x200E, 0x200F) or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return code < 32 or 127 <= code < 160 or code in (0x2028, 0x2029, 0xFEFF) or turns


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
