"""Saved states of a run: `state/saves/<step>/`, whole or not there, the newest two kept, a torn one skipped.

A save is written under a name of its own attempt, digested, made durable and then renamed; so an attempt that was
believed dead and still writes cannot spoil the save of another. `save.json` inside lists files, sizes and digests.
"""

import json
import warnings
from pathlib import Path

from toolkit.checkpoints.tensors import read_header
from toolkit.manifest.files import digest_file, discard, seal, sync_folder, write_atomic
from toolkit.training.state import STATE

KEEP = 2
LIST = "save.json"


class Saves:
    """The saved states of one cell."""

    def __init__(self, state: Path) -> None:
        self.folder = state / "saves"

    def publish(self, part: Path, step: int, keys: set[str]) -> None:
        """Make the written folder `part` the save of `step`, read it back, and only then drop the oldest ones.

        keys: the tensors that its state has to have.

        Raises:
            OSError: what can be read is not what was written.
        """
        files = {str(path.relative_to(part)): seal(path) for path in sorted(part.rglob("*")) if path.is_file()}
        content = {"step": step, "files": files}
        write_atomic(part / LIST, json.dumps(content).encode())
        put_folder(part, self.folder / str(step))
        save = self.folder / str(step)
        fault = self._fault(save)
        if fault is not None or read_header(save / STATE).keys() != keys:
            raise OSError(f"the save of step {step} cannot be read back ({fault or 'tensors are missing'}): {save}")
        for old in self.steps()[:-KEEP]:
            discard(self.folder / str(old))

    def steps(self) -> list[int]:
        """Steps that have a save, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def newest(self) -> Path | None:
        """The newest save that is whole; one that is not is skipped with a warning."""
        for step in reversed(self.steps()):
            fault = self._fault(self.folder / str(step))
            if fault is None:
                return self.folder / str(step)
            warnings.warn(f"the save of step {step} is not used: {fault}", stacklevel=2)
        return None

    def _fault(self, save: Path) -> str | None:
        try:
            content = json.loads((save / LIST).read_text())
        except (OSError, ValueError) as error:
            return f"{LIST} cannot be read ({error})"
        for name, sealed in content["files"].items():
            path = save / name
            if not path.is_file() or path.stat().st_size != sealed["size"]:
                return f"{name} is torn: it should have {sealed['size']} bytes"
            if digest_file(path) != sealed["digest"]:
                return f"{name} is torn: its digest is not the one that was saved"
        if STATE not in content["files"]:
            return f"it holds no {STATE}: an older version of Tidemark wrote it"
        return None


def put_folder(part: Path, target: Path) -> None:
    """Rename a finished folder onto its name; if another attempt was first and its folder is there, it stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Either another attempt wrote the same bytes, or this step's save was torn and it was computed again.
        discard(target)
        part.rename(target)
    sync_folder(target.parent)
