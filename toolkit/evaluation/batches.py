"""Which requests go through a model together: the batches that lm-eval itself would form, in its order.

lm-eval sorts all requests of a kind by length and cuts. In fp32 a number depends on its batch in the last bits, so the
same batches give the same bits, whoever computes them: one process, several, or one that was killed in between.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Request = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, tokens of the continuation)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One pass. rows: requests (by number) that one sequence answers, a sequence after the other. longest: tokens."""

    rows: list[list[int]]
    longest: int
    sampled: bool = False

    def requests(self) -> list[int]:
        """All of them in one list."""
        return [number for row in self.rows for number in row]

    def pieces(self, most: int) -> "list[Batch]":
        """The same in parts of at most `most` sequences."""
        cuts = range(0, len(self.rows), most)
        return [Batch(rows=self.rows[i : i + most], longest=self.longest, sampled=self.sampled) for i in cuts]


def of_likelihoods(requests: Sequence[Request], room: Callable[[int], int]) -> list[Batch]:
    """Requests that differ in their last token alone share a sequence; the longest sequences come first."""
    same: dict[tuple[int, ...], list[int]] = {}
    for number, (_, context, continuation) in enumerate(requests):
        same.setdefault(tuple(context + continuation[:-1]), []).append(number)
    keyed = []
    for numbers in same.values():
        longest = max(numbers, key=lambda number: len(requests[number][2]))
        tokens = requests[longest][1] + requests[longest][2]
        keyed.append((-len(tokens), tokens, numbers))
    keyed.sort(key=lambda entry: entry[:2])
    return _cut([(-length, numbers) for length, _, numbers in keyed], room)


def of_windows(requests: Sequence[Request], room: Callable[[int], int]) -> list[Batch]:
    """Windows of texts, in the order of the texts."""
    longest = max((len(context) + len(continuation) for _, context, continuation in requests), default=0)
    return _cut([(longest, [number]) for number in range(len(requests))], room)


def of_generations(
    requests: Sequence[tuple[str, dict[str, Any]]], lengths: Sequence[int], room: Callable[[int], int], new_tokens: int
) -> list[Batch]:
    """Prompts with the same settings, the longest first. lengths: of the prompts, in tokens. new_tokens: of an answer,
    where the settings do not say."""
    same: dict[str, list[int]] = {}
    for number, (_, settings) in enumerate(requests):
        same.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(number)
    found = []
    for numbers in same.values():
        settings = requests[numbers[0]][1]
        more = settings.get("max_gen_toks", new_tokens)
        numbers.sort(key=lambda number: (-lengths[number], requests[number][0]))
        sampled = bool(settings.get("do_sample") or settings.get("temperature"))
        found += _cut([(lengths[number] + more, [number]) for number in numbers], room, sampled)
    return found


def _cut(
    rows: Iterable[tuple[int, list[int]]], room: Callable[[int], int], sampled: bool = False
) -> list[Batch]:  # fmt: skip
    found: list[Batch] = []
    free = 0
    for length, numbers in rows:
        if not free:
            found.append(Batch(rows=[], longest=length, sampled=sampled))
            free = room(length)
        found[-1].rows.append(numbers)
        free -= 1
    return found
