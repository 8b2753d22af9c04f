"""One line of what `tidemark doctor` finds."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One check: of what, what was found, what is needed, and how to mend it if that is not the same."""

    level: Level = "ok"
    where: str
    what: str
    found: str
    needed: str = ""
    mend: str = ""


def ok(where: str, what: str, found: str, needed: str = "") -> Line:
    """Nothing to mend."""
    return Line(where=where, what=what, found=found, needed=needed)
