"""What a teacher said of every position, on disk: its K most likely tokens and one bucket for all others.

A folder holds `logits.json` (what they are of), the teacher's tokenizer and `logits/shard-NNNNN.parquet`, each with the
next rows of the data; a row group is a row, so that any of them is read without its neighbours. Of a row with L tokens
there are L - 1 positions: `ids` (K each) and `log_probs` (K + 1 each, the last is the bucket's), 6 bytes an entry.
"""

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

META = "logits.json"


@dataclass(frozen=True, kw_only=True)
class Meta:
    """digest: of the rows (`datasets` has it with them). a_shard: rows of each shard but the last."""

    rows: int
    digest: str
    row_tokens: int
    top: int
    temperature: float
    a_shard: int


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` is, or will be."""
    return folder / "logits" / f"shard-{number:05d}.parquet"


class StoredLogits:
    """An artifact of the recipe `logits`, read row by row."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.meta = Meta(**json.loads((folder / META).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{folder} holds no stored logits: {META} cannot be read ({error}); make them with `job: generate` and"
                " `recipe: logits`"
            ) from error
        self.rows, self.digest, self.temperature = self.meta.rows, self.meta.digest, self.meta.temperature
        self._files: dict[int, pq.ParquetFile] = {}

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """ids (L - 1, K) int64 and log-probabilities (L - 1, K + 1) float16."""
        shard, place = divmod(number, self.meta.a_shard)
        if shard not in self._files:
            self._files[shard] = pq.ParquetFile(shard_path(self.folder, shard))
        table = self._files[shard].read_row_group(place)
        positions = self.meta.row_tokens - 1
        ids, log_probs = (
            table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(positions, -1)
            for name in ("ids", "log_probs")
        )
        return ids.astype(np.int64), log_probs


def write_meta(folder: Path, meta: Meta) -> None:
    """`logits.json`."""
    (folder / META).write_text(json.dumps(asdict(meta), indent=1) + "\n")


def write_shard(path: Path, ids: np.ndarray, log_probs: np.ndarray, tail: float) -> None:
    """Rows as they come from the model: (rows, L - 1, K) and (rows, L - 1, K + 1); `path` is whole or not there.

    tail: the probability in the bucket, summed over all positions; it stays with the shard.
    """
    rows = len(ids)
    columns = {
        "ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.astype(np.int32).reshape(-1)), ids[0].size),
        "log_probs": pa.FixedSizeListArray.from_arrays(
            pa.array(log_probs.astype(np.float16).reshape(-1)), log_probs[0].size
        ),
    }
    table = pa.table(columns).replace_schema_metadata({"tail": repr(tail), "rows": str(rows)})
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    pq.write_table(table, part, row_group_size=1, use_dictionary=False, compression="zstd", write_statistics=False)
    part.replace(path)


def tail_of(path: Path, rows: int) -> float | None:
    """The tail of a shard that is there and has so many rows, else None."""
    if not path.is_file():
        return None
    words: Any = pq.read_schema(path).metadata
    return float(words[b"tail"]) if int(words[b"rows"]) == rows else None
