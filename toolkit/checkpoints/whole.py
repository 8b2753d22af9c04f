"""Models that are stored as a change to another: `base.json` beside the change names that model and the form.

An adapter of a few megabytes, or the difference of a fine-tuned model to the checkpoint that it began with, is an
artifact like any other; whoever reads a model calls `whole` (a job: `whole_inputs`) and gets a plain model folder.
"""

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import Any, TypeVar

from toolkit.lookup import find
from toolkit.manifest import bases, record
from toolkit.manifest.files import discard
from toolkit.manifest.record import REFERENCE
from toolkit.stage import Artifact

FORMS = "toolkit.checkpoints.forms"
T = TypeVar("T")


def refer(out: Path, base: Artifact, form: str) -> None:
    """Say that the artifact written to `out`, kept steps too, holds changes of `form` to the model of `base`.

    Attempts and artifacts lie equally deep below the root, so a relative path holds for both; a base that is not below
    the root is named by its absolute path.
    """
    find(FORMS, form, "form")
    stored = base.stored or base.path
    inside = out.parents[2] in stored.parents
    path = os.path.relpath(stored, out) if inside else str(stored.absolute())
    words = {"form": form, "base": path, "fingerprint": base.fingerprint}
    (out / REFERENCE).write_text(json.dumps(words, indent=1) + "\n")


def base_of(folder: Path) -> tuple[str, Path] | None:
    """The form and the base of a stored change (an artifact, or one of its `steps/<N>`); None for a plain model.

    Raises:
        ValueError: `base.json` cannot be read, or the model that it names is not there or is another.
    """
    owner = folder.parents[1] if folder.parent.name == "steps" else folder
    if not owner.is_dir():  # an adopted file
        return None
    try:
        words = bases.words(owner)
    except FileNotFoundError:
        return None
    base, fingerprint = Path(os.path.normpath(owner / words["base"])), words["fingerprint"]
    if not (base / "config.json").is_file() and not (base / REFERENCE).is_file():
        raise ValueError(
            f"{owner} is stored as a change to the model in {base}, and no model is there: bring it back, or launch the"
            " study that made it again"
        )
    if fingerprint and (base / record.RECORD).is_file():
        record.check_identity(record.read(base), fingerprint, base)
    return words["form"], base


def whole(folder: Path, scratch: Path) -> Path:
    """The plain model of `folder`: itself, or restored into a folder in `scratch`, where a second call finds it.

    Raises:
        ValueError: the base is not there or is another, or the form cannot restore it.
    """
    found = base_of(folder)
    if found is None:
        return folder
    form, base = found
    target = scratch / "-".join([*folder.parts[-3:], "whole"])
    if not target.is_dir():
        part = scratch / f"part-{uuid.uuid4().hex}"
        part.mkdir(parents=True)
        find(FORMS, form, "form").restore(folder, whole(base, scratch), part)
        try:
            part.rename(target)
        except OSError:  # another node of this attempt was first; what it wrote is the same
            if not target.is_dir():
                raise
            discard(part)
    return target


def whole_inputs(inputs: T, scratch: Path) -> T:
    """A job's `Inputs` with every artifact that is stored as a change restored."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(inputs):  # type: ignore[arg-type]
        value = getattr(inputs, field.name)
        if isinstance(value, Artifact):
            changed[field.name] = _restored(value, scratch)
        elif isinstance(value, dict):
            changed[field.name] = {label: _restored(one, scratch) for label, one in value.items()}
    return dataclasses.replace(inputs, **changed)  # type: ignore[type-var]


def _restored(artifact: Artifact, scratch: Path) -> Artifact:
    path = whole(artifact.path, scratch)
    return artifact if path == artifact.path else dataclasses.replace(artifact, path=path, stored=artifact.path)
