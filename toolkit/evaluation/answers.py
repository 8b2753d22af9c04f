"""What a model answered to single requests, kept on disk, so that nothing is asked twice.

A request is known by its tokens (likelihoods) or its text and settings (generations) and by its batch (`within`), a
model by the digests of its files and all else that decides numbers (`identity`): lm-eval's own cache does not know
whose answers it holds. Answers are written in segments of their own, by rename, so that a lost attempt or a neighbour
cannot spoil them.
"""

import hashlib
import json
import time
import uuid
from array import array
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from toolkit.generation.shards import write
from toolkit.stage import Artifact

Answer: TypeAlias = tuple[float, bool] | str  # (log-likelihood in nats, every token was the likeliest), or a text

FLUSH_SECONDS = 20.0  # what a kill can cost
SEGMENT = pa.schema(
    [("key", pa.binary(16)), ("likelihood", pa.float64()), ("greedy", pa.bool_()), ("text", pa.string())]
)


def likelihood_key(context: Sequence[int], continuation: Sequence[int]) -> bytes:
    """Of the likelihood of tokens after others."""
    tokens = array("q", [len(context), *context, *continuation])
    return hashlib.sha256(b"likelihood" + tokens.tobytes()).digest()[:16]


def generation_key(prompt: str, settings: Mapping[str, Any], draw: int = 0) -> bytes:
    """Of a text after a prompt. draw: which one, where they are sampled and differ."""
    words = json.dumps([prompt, settings, draw], sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(b"generation" + words.encode()).digest()[:16]


def within(keys: Sequence[bytes], batches: Sequence[Sequence[Sequence[int]]]) -> list[bytes]:
    """The keys of requests as asked in these batches (rows of request numbers).

    In fp32, the last bits of a likelihood depend on what is computed beside it; without the batch in its key, a number
    would depend on which cell ran first.
    """
    found = list(keys)
    for rows in batches:
        batch = hashlib.sha256(b"/".join(b"".join(keys[number] for number in row) for row in rows)).digest()
        for number in (number for row in rows for number in row):
            found[number] = hashlib.sha256(keys[number] + batch).digest()[:16]
    return found


def identity(model: Artifact, folder: Path, **how: Any) -> str:
    """A digest of the model's files and of what else decides an answer: `how`, and the versions of the libraries.

    folder: where the files are, if the record does not have their digests (a folder of one's own).
    """
    digests = {name: entry["digest"] for name, entry in model.record.get("files", {}).items()} or {
        path.name: _digest(path) for path in sorted(folder.iterdir()) if path.is_file()
    }
    versions = {name: version(name) for name in ("torch", "transformers", "tokenizers", "lm_eval")}
    words = json.dumps([digests, versions, how], sort_keys=True, default=str)
    return hashlib.sha256(words.encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Answers:
    """Answers by key: those in `folder`, which outlives an attempt, and those of other cells in `shared`.

    shared: None where other cells' answers are neither read nor added to.
    """

    def __init__(self, folder: Path, shared: Path | None = None) -> None:
        self.folder, self.shared = folder, shared
        self._known: dict[bytes, Answer] = {}
        self._fresh: dict[bytes, Answer] = {}
        self._flushed = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.read(shared)
        self._theirs = set(self._known)
        self.read(folder)

    def __getitem__(self, key: bytes) -> Answer:
        return self._known[key]

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def put(self, keys: Sequence[bytes], answers: Sequence[Answer]) -> None:
        """Keep answers; what was kept is on disk within FLUSH_SECONDS."""
        new = dict(zip(keys, answers, strict=True))
        self._known |= new
        self._fresh |= new
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet."""
        self._flushed = time.monotonic()
        if self._fresh:
            _write(self.folder, self._fresh)
            self._fresh = {}

    def read(self, folder: Path | None) -> None:
        """Take in what others have written to a folder; what cannot be read is as good as not there."""
        for path in sorted(folder.glob("*.parquet")) if folder is not None and folder.is_dir() else ():
            try:
                columns = pq.read_table(path).to_pydict()
            except (OSError, pa.ArrowException):
                continue
            for key, likelihood, greedy, text in zip(*(columns[name] for name in SEGMENT.names), strict=True):
                self._known[key] = (likelihood, greedy) if text is None else text

    def share(self, unless: set[bytes]) -> None:
        """Give other cells what they do not have yet, but for the keys `unless`."""
        new = {key: value for key, value in self._known.items() if key not in self._theirs and key not in unless}
        if self.shared is not None and new:
            self.shared.mkdir(parents=True, exist_ok=True)
            _write(self.shared, new)


def _write(folder: Path, answers: Mapping[bytes, Answer]) -> None:
    rows = [
        (
            {"key": key, "text": value}
            if isinstance(value, str)
            else {"key": key, "likelihood": value[0], "greedy": value[1]}
        )
        for key, value in answers.items()
    ]
    write(folder / f"{uuid.uuid4().hex}.parquet", pa.Table.from_pylist(rows, SEGMENT), compression="zstd")
