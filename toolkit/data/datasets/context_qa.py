"""Texts with questions and answers about them, as a synthesizer is tuned on them (arXiv 2406.14491, section 2.1).

Rows come from JSON files (a text, a question and an answer each), or from a data set that has texts in one split and
questions in another, which a name joins: a question belongs to every text in which the name of its row stands. Writes
the split `train`, a row a text: `prompt` (the texts before it in its chain with their pairs, and the text),
`completion` (its pairs), and `text`, `questions` and `answers`.
"""

import re
from dataclasses import dataclass
from typing import Any

from toolkit.data import files
from toolkit.data.splits import Splits, open_split
from toolkit.stage import Artifact, Context

BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Spec:
    """shots: texts of a chain, drawn by `seed`. Each is asked about once, after those before it: so the pairs of all
    texts of a chain are learned, as in the paper, and a synthesizer can begin one as well as go on with it.

    context, question, answer: fields of the JSON rows; rows with the same text belong together. texts, pairs, name: the
    splits of a data set (`text`; `prompt` and `completion`) and the column of `pairs` that joins them. limit: texts.
    """

    dataset: str
    shots: int = 1
    context: str = "context"
    question: str = "question"
    answer: str = "answer"
    texts: str = "pretrain"
    pairs: str = "train"
    name: str = "person"
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("shots", "limit"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} is {value}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: what will be tuned, for its BOS and EOS. Either files (.json or .jsonl) or data."""

    model: Artifact
    files: Artifact | None = None
    data: Artifact | None = None


def fill(spec: Spec, inputs: Inputs, splits: Splits, ctx: Context) -> dict[str, Any]:
    """Metrics: pairs, and texts that no pair belongs to, which are left out."""
    import random

    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.generation import synthesis

    if (inputs.files is None) == (inputs.data is None):
        raise ValueError("context_qa needs either the input 'files' or the input 'data', and not both")
    found = _from_files(spec, inputs.files) if inputs.files is not None else _from_data(spec, inputs.data)
    known = [(text, pairs) for text, pairs in found.items() if pairs][: spec.limit]
    if len(known) < spec.shots:
        raise ValueError(f"{len(known)} texts have pairs, and shots is {spec.shots}; give more, or lower shots")
    mark = synthesis.marks(load_tokenizer(inputs.model.path))
    order = random.Random(spec.seed).sample(range(len(known)), len(known))
    for start in range(0, len(order), BATCH):
        rows: dict[str, list[Any]] = {k: [] for k in ("prompt", "completion", "text", "questions", "answers")}
        for place in range(start, min(start + BATCH, len(order))):
            before = order[place - place % spec.shots : place]
            text, pairs = known[order[place]]
            rows["prompt"].append(synthesis.chain([known[i] for i in before], text, mark))
            rows["completion"].append(synthesis.write(pairs))
            rows["text"].append(text)
            rows["questions"].append([pair.question for pair in pairs])
            rows["answers"].append([pair.answer for pair in pairs])
        splits.add("train", rows)
        ctx.progress(min(start + BATCH, len(known)), len(known), unit="text")
    return {"pairs": sum(len(pairs) for _, pairs in known), "texts_without_pairs": len(found) - len(known)}


def _from_files(spec: Spec, source: Artifact) -> dict[str, list[Any]]:
    from toolkit.generation.synthesis import Pair

    found: dict[str, list[Pair]] = {}
    for path in files.find_files(source.path, files.LINES + files.WHOLE):
        for place, row in files.read_rows(path):
            text, question, answer = (
                files.text_field(row, name, place).strip() for name in (spec.context, spec.question, spec.answer)
            )
            if not (text and question and answer):
                raise ValueError(f"{place}: the text, the question or the answer is empty: {files.show(row)}")
            found.setdefault(text, []).append(Pair(question=question, answer=answer))
    return found


def _from_data(spec: Spec, source: Artifact | None) -> dict[str, list[Any]]:
    from toolkit.generation.synthesis import Pair

    assert source is not None
    asked: dict[str, list[Pair]] = {}
    for row in open_split(source.path, spec.pairs, ["prompt", "completion", spec.name]):
        pair = Pair(question=_question(row["prompt"]), answer=row["completion"].strip())
        asked.setdefault(row[spec.name], []).append(pair)
    texts = open_split(source.path, spec.texts, ["text"])["text"][:]
    longest_first = sorted(asked, key=len, reverse=True)
    names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
    return {text: [pair for name in dict.fromkeys(names.findall(text)) for pair in asked[name]] for text in texts}


def _question(prompt: str) -> str:
    """A question as it stands in a prompt, without the `Answer:` that asks for the answer."""
    return prompt.strip().removesuffix("Answer:").removeprefix("Question:").strip()
