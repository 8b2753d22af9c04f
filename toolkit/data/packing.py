"""Documents as token blocks of one length: tokenize, end each document with EOS, concatenate, cut.

Everything is streamed: a batch of documents becomes an int32 array, whole blocks leave at once, and what is left over
waits for the next batch. Memory is that of one batch, or of the largest single document.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BATCH_BYTES = 4 << 20  # text tokenized at once
BATCH_ROWS = 1000


def text_batches(rows: "Dataset", field: str) -> Iterator[list[str]]:
    """The texts of a column in lists of at most `BATCH_ROWS` texts and about `BATCH_BYTES` bytes.

    Raises:
        ValueError: the column holds something else than text, or nothing in one of its rows.
    """
    import pyarrow.compute as pc

    kind = getattr(rows.features[field], "dtype", None)
    if kind not in ("string", "large_string"):
        raise ValueError(f"column {field!r} of split {rows.split!s} is no text but {rows.features[field]}")
    for table in rows.select_columns([field]).with_format("arrow").iter(batch_size=BATCH_ROWS):
        column = table.column(field)
        if column.null_count:
            raise ValueError(f"column {field!r} of split {rows.split!s} has rows without a text (null); remove them")
        ends = pc.cumulative_sum(pc.binary_length(column).cast("int64")).to_numpy()
        start = 0
        while start < len(column):
            before = ends[start - 1] if start else 0
            stop = max(int(ends.searchsorted(before + BATCH_BYTES, side="right")), start + 1)
            yield column.slice(start, stop - start).to_pylist()
            start = stop


def encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], bos: bool) -> "tuple[np.ndarray, np.ndarray]":
    """(tokens, lengths): the documents' ids one after the other, each ended by EOS, and their lengths with EOS."""
    import numpy as np

    prefix = [tokenizer.bos_token_id] if bos else []
    encoded = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    pieces = [prefix + item.ids + [tokenizer.eos_token_id] for item in encoded]
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    tokens = np.fromiter((token for piece in pieces for token in piece), dtype=np.int32, count=int(lengths.sum()))
    return tokens, lengths


class Packer:
    """Cuts a stream of documents into blocks of `length` tokens.

    With `positions`, each token also gets its position in its document's part of the block: a model that is given these
    position_ids does not look across documents. (In transformers that holds only with use_cache=False.)
    """

    def __init__(self, length: int, positions: bool) -> None:
        import numpy as np

        self.length, self.positions = length, positions
        self.blocks = 0
        self._tokens: np.ndarray = np.empty(0, dtype=np.int32)
        self._starts: np.ndarray = np.empty(0, dtype=bool)

    @property
    def left(self) -> int:
        """Tokens that fill no block yet."""
        return len(self._tokens)

    def push(self, tokens: "np.ndarray", lengths: "np.ndarray", limit: int | None = None) -> "pa.Table | None":
        """The blocks that are complete now, at most `limit`; None if there is none."""
        import numpy as np
        import pyarrow as pa

        starts = np.zeros(len(tokens), dtype=bool)
        starts[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
        tokens = np.concatenate([self._tokens, tokens])
        starts = np.concatenate([self._starts, starts])
        count = len(tokens) // self.length
        count = count if limit is None else min(count, limit)
        used = count * self.length
        self._tokens, self._starts = tokens[used:].copy(), starts[used:].copy()
        self.blocks += count
        if not count:
            return None
        columns = {"input_ids": _lists(tokens[:used], self.length)}
        if self.positions:
            columns["position_ids"] = _lists(restarts(starts[:used].reshape(count, self.length)), self.length)
        return pa.table(columns)


def restarts(starts: "np.ndarray") -> "np.ndarray":
    """Positions that count from the last start, or from the row's beginning; bool [n, length] -> int32 [n * length]."""
    import numpy as np

    columns = np.arange(starts.shape[1], dtype=np.int32)
    last = np.maximum.accumulate(np.where(starts, columns, 0), axis=1)
    return (columns - last).astype(np.int32).reshape(-1)


def _lists(flat: "np.ndarray", length: int) -> Any:
    import numpy as np
    import pyarrow as pa

    offsets: Any = pa.array(np.arange(0, len(flat) + 1, length, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(flat))
