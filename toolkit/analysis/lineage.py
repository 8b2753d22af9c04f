"""What every cell of a study was made from, for the page: spec, inputs, files with digests, code and machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.analysis.origin import duration, machine_text
from toolkit.analysis.payload import visible
from toolkit.manifest.record import RECORD
from toolkit.plan import CellState
from toolkit.study import Cell

FILES = 12  # of one artifact


def lineage(cells: Sequence[Cell], states: Mapping[str, CellState], folders: Mapping[str, Path]) -> dict[str, Any]:
    """Plain data: cells that name their inputs by number, and the specs, codes and machines that they share.

    A cell whose record cannot be seen has what the study says of it.
    """
    number = {cell.fingerprint: i for i, cell in enumerate(cells)}
    pools: dict[str, dict[str, int]] = {"specs": {}, "codes": {}, "machines": {}}
    found = []
    for cell in cells:
        record = _record(folders.get(cell.fingerprint))
        state = states[cell.fingerprint]
        made = record.get("provenance", {})
        spec = json.dumps(record.get("spec", cell.spec), indent=1, sort_keys=True, default=str)
        one = {
            "name": visible(cell.name.encode("utf-8", "replace"), 300),
            "job": cell.job,
            "version": cell.version,
            "fingerprint": cell.fingerprint,
            "state": state.state,
            "message": visible(state.message.encode("utf-8", "replace")),
            "spec": _pooled(pools["specs"], visible(spec.encode("utf-8", "replace"), 4000)),
            "inputs": [[role, number[above.fingerprint]] for role, above in cell.inputs.items()],
            "source": record.get("source"),
            "files": _files(record),
        }
        if made:
            one["code"] = _pooled(pools["codes"], json.dumps(_code(made)))
            one["machine"] = _pooled(pools["machines"], machine_text(made.get("machine", {})))
            one["took"] = f"{duration(float(made.get('seconds', 0)))}, attempt {made.get('attempt', 1)}"
        found.append(one)
    return {
        "cells": found,
        "specs": list(pools["specs"]),
        "codes": [json.loads(text) for text in pools["codes"]],
        "machines": list(pools["machines"]),
    }


def _record(folder: Path | None) -> dict[str, Any]:
    if folder is None:
        return {}
    try:
        found: dict[str, Any] = json.loads((folder / RECORD).read_bytes())
    except FileNotFoundError:  # hazard: network file systems show a folder before its files
        return {}
    return found


def _pooled(pool: dict[str, int], text: str) -> int:
    return pool.setdefault(text, len(pool))


def _code(made: Mapping[str, Any]) -> dict[str, str]:
    identity, machine = made.get("identity", {}), made.get("machine", {})
    versions = {"python": identity.get("python"), **identity.get("packages", {})}
    return {
        "commit": str(machine.get("commit", "unknown")),
        "code": str(identity.get("code", "unknown")),
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }


def _files(record: Mapping[str, Any]) -> list[str]:
    """`model.safetensors  2,471,644,928 bytes  xxh3:...`, the first of them."""
    files = record.get("files", {})
    some = [
        f"{visible(name.encode('utf-8', 'replace'), 200)}  {said.get('size', 0):,} bytes  {said.get('digest', '')}"
        for name, said in list(files.items())[:FILES]
    ]
    return [*some, f"and {len(files) - FILES} more"] if len(files) > FILES else some
