"""The identity of a cell: sha256 over job, VERSION, the spec's non-default fields and the inputs' fingerprints.

A value that has no canonical form raises; a field at its default is left out, so that a new field leaves old identities
alone.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from toolkit.spec import defaults

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
SHORT = 12  # hex digits of a fingerprint that name folders: 48 bits, checked against the whole at every look-up


def canonical(value: Any, where: str = "value") -> Any:
    """`value` as JSON data that two runs write alike.

    Raises:
        TypeError: a type that has no canonical form (a set, a function, a path).
        ValueError: NaN or infinity, which JSON cannot carry.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}: a fingerprint needs a finite number")
        return value
    if isinstance(value, (list, tuple)):
        return [canonical(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"{where} has keys that are not strings: {list(value)!r}")
        return {k: canonical(value[k], f"{where}.{k}") for k in sorted(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return spec_fields(value)
    raise TypeError(f"{where} is a {type(value).__name__}, which cannot be fingerprinted: {value!r}")


def spec_fields(spec: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that differ from their defaults, in canonical form, sorted by name."""
    kind: Any = type(spec)
    unset = defaults(kind)
    values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
    return {k: canonical(v, k) for k, v in sorted(values.items()) if k not in unset or unset[k] != v}


def fingerprint(job: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """64 hex digits; `spec` holds canonical non-default fields, `inputs` maps names to fingerprints."""
    identity = {"job": job, "version": version, "spec": spec, "inputs": inputs}
    return hashlib.sha256(_encode(identity).encode()).hexdigest()
