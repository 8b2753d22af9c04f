"""Which artifacts others are stored as a change to: without them those cannot be read, so they are not dropped.

`base.json` in an artifact says so (`toolkit/checkpoints/whole.py`). What is there is asked each time, and not stored.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from toolkit.fingerprint import SHORT
from toolkit.manifest import index
from toolkit.manifest.record import REFERENCE


def needed(root: Path) -> set[str]:
    """First 12 digits of the fingerprints of all artifacts that a committed one is stored as a change to."""
    found = set()
    for job, names in index.committed(root).items():
        for name in names.values():
            with suppress(FileNotFoundError, ValueError):  # one that cannot be read is no use to anybody: see `verify`
                found.add(words(root / "artifacts" / job / name)["fingerprint"][:SHORT])
    return found


def words(folder: Path) -> dict[str, str]:
    """What an artifact says of its base: `form`, `base` (a path) and `fingerprint`.

    Raises:
        FileNotFoundError: it is stored as it is.
        ValueError: it cannot be read.
    """
    place = folder / REFERENCE
    try:
        found = json.loads(place.read_bytes())
        return {key: str(found[key]) for key in ("form", "base", "fingerprint")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place} cannot be read ({error!r}): the artifact is damaged, see `tidemark verify`"
        ) from error


def is_change(folder: Path) -> bool:
    """Whether an artifact is stored as a change to another."""
    return os.path.exists(folder / REFERENCE)
