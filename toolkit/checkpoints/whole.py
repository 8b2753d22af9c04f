"""Models that are stored as a change to another: `base.json` beside the change names that model and the form.

An adapter of a few megabytes, or the difference of a fine-tuned model to the checkpoint that it began with, is an
artifact like any other; whoever reads a model calls `whole` (a job: `whole_inputs`) and gets a plain model folder.
"""

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import TypeVar

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
    inside = out.parents[2] in base.path.parents
    path = os.path.relpath(base.path, out) if inside else str(base.path.absolute())
    words = {"form": form, "base": path, "fingerprint": base.fingerprint}
    (out / REFERENCE).write_text(json.dumps(words, indent=1) + "\n")


def base_of(folder: Path) -> tuple[str, Path] | None:
    """The form and the base of a stored change (an artifact, or one of its `steps/<N>`); None for a plain model.

    Raises:
        ValueError: `base.json` cannot be read, or the model that it names is not there or is another.
    """
    owner = folder.parents[1] if folder.parent.name == "steps" else folder
    try:
        words = bases.words(owner)
    except FileNotFoundError:
        return None
    base, fingerprint = Path(os.path.normpath(owner / words["base"])), words["fingerprint"]
    if not (base / "config.json").is_file():
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
    changed = {
        field.name: dataclasses.replace(value, path=whole(value.path, scratch))
        for field in dataclasses.fields(inputs)  # type: ignore[arg-type]
        if isinstance(value := getattr(inputs, field.name), Artifact) and value.path.is_dir()
    }
    return dataclasses.replace(inputs, **changed)  # type: ignore[type-var]
