"""Questions and answers about raw texts, from a synthesizer (Instruction Pre-Training, arXiv 2406.14491).

The texts are cut into `shots` rounds; a text is read after those of earlier rounds that it follows, with their pairs. A
chain breaks where a text gives no pair, or where it would grow too long. Writes a data set with the split `train`, a
row a text: `chain` (rows of one chain have one number and follow each other), `text`, `questions` and `answers`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.generation.models import Precision
from toolkit.stage import Artifact, Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from toolkit.generation.rows import Row
    from toolkit.generation.synthesis import Entry, Marks


@dataclass(frozen=True, kw_only=True)
class Spec:
    """split, field: the raw texts; limit: the first of them only. shots: texts of a chain, at most.

    max_length: tokens of a sequence of the model that will be trained on them; a chain stays below it. The paper takes
    shots 2 from scratch and 3 in continual pre-training.
    """

    recipe: str
    split: str = "train"
    field: str = "text"
    limit: int | None = None
    shots: int = 2
    max_new_tokens: int = 400
    max_length: int = 4096
    precision: Precision = "fp32"
    engine: Literal["hf", "vllm"] = "hf"

    def __post_init__(self) -> None:
        for name in ("limit", "shots", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.max_length <= self.max_new_tokens:
            raise ValueError(f"max_length {self.max_length} leaves nothing beside max_new_tokens {self.max_new_tokens}")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: a synthesizer, tuned on what `prepare` with the data set `context_qa` makes. data: raw texts."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out/data`; metrics count texts, pairs, texts without any, chains, and texts too long to be read."""
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.data.splits import open_split
    from toolkit.generation import synthesis
    from toolkit.generation.answers import Asker
    from toolkit.generation.engine import Decoding

    texts = open_split(inputs.data.path, spec.split, [spec.field], spec.limit)[spec.field][:]
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"row {i} of split {spec.split!r} has no text in {spec.field!r}: {text!r}; leave it out")
    mark = synthesis.marks(load_tokenizer(inputs.model.path))
    asker = Asker(model=inputs.model.path, precision=spec.precision, engine=spec.engine, ctx=ctx)
    encode = _encoder(spec, inputs.model.path)
    how = Decoding(max_new_tokens=spec.max_new_tokens)
    entries: list[Entry] = []
    last: list[Entry] = []  # of the round before
    too_long = 0
    for number, chunk in enumerate(synthesis.rounds(len(texts), spec.shots)):
        made, prompts = prompts_of([texts[i] for i in chunk], last, spec.max_length - spec.max_new_tokens, mark, encode)
        too_long += len(chunk) - len(prompts)
        for answer in asker.ask(prompts, how, f"round-{number}", before=chunk.start, total=len(texts), unit="text"):
            made[answer.id].pairs = synthesis.parse(answer.text)
        entries += made
        last = made
    return {**_write(entries, out), "too_long": too_long}


def prompts_of(
    texts: list[str], last: "list[Entry]", most: int, mark: "Marks", encode: "Callable[[str], Row | None]"
) -> "tuple[list[Entry], list[Row]]":
    """The entries of a round, without pairs yet, and the prompts of those that the synthesizer can read.

    last: the round before. most: tokens that a chain may have, as they are estimated. encode: None if it is too long.
    """
    from dataclasses import replace

    from toolkit.generation import synthesis

    entries, rows = [], []
    for i, text in enumerate(texts):
        before = last[i] if i < len(last) else None
        shown = synthesis.examples(before)
        prompt = synthesis.chain(shown, text, mark)
        row = encode(prompt) if shown and synthesis.words(prompt) <= most else None
        entries.append(synthesis.Entry(text=text, pairs=[], before=before if row is not None else None))
        row = row or encode(synthesis.chain([], text, mark))
        if row is not None:
            rows.append(replace(row, id=i))
    return entries, rows


def _encoder(spec: Spec, model: Path) -> "Callable[[str], Row | None]":
    from toolkit.checkpoints.check import read_config
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.generation.models import context_length
    from toolkit.generation.rows import encode

    tokenizer = load_tokenizer(model)
    room = (context_length(read_config(model)) or 1 << 62) - spec.max_new_tokens

    def one(prompt: str) -> "Row | None":
        row = encode(tokenizer, [prompt])[0]
        return row if len(row.tokens) <= room else None

    return one


def chains(entries: "list[Entry]") -> "list[list[Entry]]":
    """Entries by chains, in the order of their last texts. One without pairs is in none but its own."""
    followed = {id(entry.before) for entry in entries if entry.before is not None and entry.pairs}
    found = []
    for entry in entries:
        if id(entry) in followed:
            continue
        members = [entry]
        while members[0].pairs and members[0].before is not None:
            members.insert(0, members[0].before)
        found.append(members)
    return found


def _write(entries: "list[Entry]", out: Path) -> dict[str, int]:
    import pyarrow as pa

    from toolkit.data.splits import Splits

    found = chains(entries)
    rows = [(number, entry) for number, members in enumerate(found) for entry in members]
    strings = pa.list_(pa.string())
    splits = Splits(out / "data")
    splits.add(
        "train",
        {
            "chain": [number for number, _ in rows],
            "text": [entry.text for _, entry in rows],
            "questions": pa.array([[pair.question for pair in entry.pairs] for _, entry in rows], strings),
            "answers": pa.array([[pair.answer for pair in entry.pairs] for _, entry in rows], strings),
        },
    )
    splits.finish()
    return {
        "texts": len(entries),
        "pairs": sum(len(entry.pairs) for entry in entries),
        "without_pairs": sum(not entry.pairs for entry in entries),
        "chains": len(found),
    }
