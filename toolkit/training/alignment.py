"""Two tokenizers on one text: where both have read the same characters, what comes next can be compared.

A student's row is turned back to text, document by document, and the text is tokenised as the teacher knows it. Special
tokens of the student become the teacher's end-of-text token, and the one that begins a text the one of the teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from toolkit.checkpoints.folders import load_tokenizer

NONE = -1


@dataclass(frozen=True, kw_only=True)
class Read:
    """A row as the teacher reads it. positions: they restart with each document. at: for each of the student's tokens,
    the teacher's after which both have read the same text, or NONE."""

    ids: list[int]
    positions: list[int]
    at: list[int]


class Alignment:
    """Reads rows of the student's token ids as the teacher would."""

    def __init__(self, student: Path, teacher: Path, limit: int | None) -> None:
        """limit: positions that the teacher has.

        Raises:
            ValueError: the teacher's tokenizer cannot say where its tokens end, or has no end-of-text token.
        """
        ours, self.theirs = load_tokenizer(student), load_tokenizer(teacher)
        if not (ours.is_fast and self.theirs.is_fast) or self.theirs.eos_token_id is None:
            raise ValueError(
                f"alignment is uld, and the tokenizers in {student} and {teacher} must both be fast ones"
                " (tokenizer.json), the teacher's with an end-of-text token (eos_token)"
            )
        self.ours: Tokenizer = ours.backend_tokenizer  # type: ignore[attr-defined]
        self.special: dict[int, int] = dict.fromkeys(ours.all_special_ids, int(self.theirs.eos_token_id))
        if ours.bos_token_id not in (None, ours.eos_token_id) and self.theirs.bos_token_id is not None:
            self.special[int(ours.bos_token_id)] = int(self.theirs.bos_token_id)
        self.limit = limit

    def read(self, ids: Sequence[int], starts: Sequence[bool]) -> Read:
        """starts: whether a token is the first of a document that sees none before it.

        Raises:
            ValueError: the teacher needs more positions for the row than it has.
        """
        found = Read(ids=[], positions=[], at=[NONE] * len(ids))
        begin = document = 0
        for end in range(1, len(ids) + 1):
            if end < len(ids) and not (starts[end] or ids[end] in self.special or ids[end - 1] in self.special):
                continue  # within a piece of text
            document = len(found.ids) if starts[begin] else document
            self._add(found, list(ids[begin:end]), begin, document)
            begin = end
        if self.limit is not None and len(found.ids) > self.limit:
            raise ValueError(
                f"a row of {len(ids)} tokens has {len(found.ids)} as the teacher reads it, and the teacher has"
                f" {self.limit} positions: pack with a smaller sequence_length"
            )
        return found

    def _add(self, found: Read, ids: list[int], begin: int, document: int) -> None:
        before = len(found.ids)
        if ids[0] in self.special:
            found.ids.append(self.special[ids[0]])
            found.at[begin] = before
        else:
            text, ends = _spans(self.ours, ids)
            told: Any = self.theirs(text, add_special_tokens=False, return_offsets_mapping=True)
            # Of several tokens that end within a character the last one has read it.
            theirs = {end: before + number for number, (_, end) in enumerate(told["offset_mapping"])}
            found.ids.extend(told["input_ids"])
            for number, end in enumerate(ends):
                if end is not None:
                    found.at[begin + number] = theirs.get(end, NONE)
        found.positions.extend(range(before - document, len(found.ids) - document))


def _spans(tokenizer: Tokenizer, ids: list[int]) -> tuple[str, list[int | None]]:
    """The text, and how much of it there is after each token; None where a token ends within a character."""
    stream, text, ends = DecodeStream(skip_special_tokens=False), "", []
    for token in ids:
        piece = stream.step(tokenizer, token)
        text += piece or ""
        ends.append(len(text) if piece else None)
    return text, ends
