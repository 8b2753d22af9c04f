"""Rows of embeddings are paired by their tokens: an id means whatever its own tokenizer says.

The output has the vocabulary of one of the models, the reference. For each of its rows another model has the row of the
same token; a row that stands for no token in either (padding) is paired by its number. What a model lacks is taken from
the reference: a token that only it knows keeps its row there.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from toolkit.checkpoints.folders import vocabulary

# (first row, how many, first row in the model, or None where the reference's are taken), in order, without gaps
Alignment = list[tuple[int, int, int | None]]


def align(
    folders: Mapping[str, Path], rows: Mapping[str, int], like: str, base: str
) -> tuple[dict[str, Alignment], str]:
    """How the rows of each model go with those of `like`, where they do not lie alike; and what was done, in words.

    rows: of each model's embeddings. base: the role whose own tokens may be left out, since the others come from it.

    Raises:
        ValueError: a model knows tokens that the reference does not, and not from the base: they would be lost.
    """
    tokens = {role: vocabulary(folder) for role, folder in folders.items()}
    ours, size = tokens[like], rows[like]
    by_id = {number: token for token, number in ours.items()}
    found: dict[str, Alignment] = {}
    remarks = []
    for role in folders:
        theirs = tokens[role]
        if role == like or (theirs == ours and rows[role] == size):
            continue
        lost = sorted(theirs.keys() - ours.keys())
        if role != base and (new := [token for token in lost if token not in tokens.get(base, {})]):
            raise ValueError(
                f"{role} has {len(new)} tokens that {like}, whose vocabulary the output would have, lacks (such"
                f" as {new[0]!r}): they would be lost. Give the output the vocabulary of {role}, or add them to {like}"
            )
        taken = set(theirs.values())
        chosen = [_row(by_id.get(row), row, theirs, taken, rows[role]) for row in range(size)]
        found[role] = _runs(chosen)
        remarks.append(_remark(role, like, chosen, by_id, lost, rows[role]))
    return found, "; ".join(remarks)


def _row(token: str | None, row: int, theirs: Mapping[str, int], taken: set[int], rows: int) -> int | None:
    if token is not None:
        return theirs.get(token)
    return row if row < rows and row not in taken else None


def _runs(chosen: Iterable[int | None]) -> Alignment:
    """Neighbouring rows that are neighbours in the model too, as one."""
    runs: Alignment = []
    for row, own in enumerate(chosen):
        if runs:
            first, count, start = runs[-1]
            if own == (None if start is None else start + count):
                runs[-1] = (first, count + 1, start)
                continue
        runs.append((row, 1, own))
    return runs


def _remark(
    role: str, like: str, chosen: list[int | None], by_id: Mapping[int, str], lost: list[str], rows: int
) -> str:
    lacks = [row for row, own in enumerate(chosen) if own is None]
    added = [by_id[row] for row in lacks if row in by_id]
    moved = sum(own is not None and own != row for row, own in enumerate(chosen))
    words = [
        f"{len(added)} tokens that it lacks (such as {added[0]!r}) have the rows of {like}" if added else "",
        f"{len(lacks) - len(added)} rows of padding are those of {like}" if len(lacks) > len(added) else "",
        f"{moved} rows were moved" if moved else "",
        f"{len(lost)} tokens that only it has (such as {lost[0]!r}) are left out" if lost else "",
    ]
    return f"{role} ({rows} rows, the output has {len(chosen)}): " + (", ".join(filter(None, words)) or "rows left out")
