"""Build the frozen dataclass of a stage from the plain values of a study file, field by field.

`coerce(int | None, "50M", "tokens")` is 50000000; a value that does not fit raises a `FieldError` that names field,
value and type.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

from toolkit.lookup import unknown

T = TypeVar("T")


class FieldError(ValueError):
    """A field of a spec that is unknown, missing or of the wrong type; `field` is its name (`tasks[1]`, `sizes.a`)."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


SUFFIXES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@cache
def field_types(spec: type) -> dict[str, Any]:
    """Field name -> annotation of a dataclass, in the order of its fields."""
    hints = typing.get_type_hints(spec)
    return {f.name: hints[f.name] for f in dataclasses.fields(spec)}


@cache
def defaults(spec: type) -> dict[str, Any]:
    """Field name -> default value, for the fields that have one."""
    found = {}
    for f in dataclasses.fields(spec):
        if f.default is not dataclasses.MISSING:
            found[f.name] = f.default
        elif f.default_factory is not dataclasses.MISSING:
            found[f.name] = f.default_factory()
    return found


def build(spec: type[T], values: Mapping[str, Any], what: str = "field") -> T:
    """An instance of dataclass `spec` from plain values.

    Raises:
        FieldError: an unknown or missing field, or a value of the wrong type.
        ValueError: what the dataclass itself refuses (`__post_init__`).
    """
    kind: Any = spec
    hints = field_types(kind)
    for name in values:
        if name not in hints:
            raise FieldError(name, unknown(what, name, hints))
    missing = [name for name in hints if name not in values and name not in defaults(kind)]
    if missing:
        raise FieldError(missing[0], f"missing {what} {missing[0]!r} (of type {type_name(hints[missing[0]])})")
    return spec(**{name: coerce(hints[name], value, name) for name, value in values.items()})


def coerce(hint: Any, value: Any, name: str) -> Any:
    """`value` as the annotation `hint` says: numbers may be strings such as "1e-5" or "50M", lists become tuples.

    Raises:
        FieldError: the value does not fit.
    """
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(hint, value, name)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices or type(value) not in {type(c) for c in choices}:
            raise FieldError(name, unknown(f"value of {name!r}", value, [str(c) for c in choices]))
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        item = typing.get_args(hint)[0]
        return tuple(coerce(item, v, f"{name}[{i}]") for i, v in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        item = typing.get_args(hint)[1]
        return {str(k): coerce(item, v, f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else _coerce_nested(hint, value, name)
    return _coerce_scalar(hint, value, name)


def _coerce_nested(hint: type, value: Any, name: str) -> Any:
    try:
        return build(hint, _mapping(value, name), f"field of {name}")
    except FieldError as error:
        raise FieldError(name if error.field == name else f"{name}.{error.field}", str(error)) from None


def _coerce_union(hint: Any, value: Any, name: str) -> Any:
    choices = typing.get_args(hint)
    if value is None and type(None) in choices:
        return None
    nested = [c for c in choices if dataclasses.is_dataclass(c)]
    if len(nested) == 1 and isinstance(value, Mapping):
        return coerce(nested[0], value, name)  # what is wrong inside it is worth more than that it does not fit
    exact = [c for c in choices if c is type(value)]
    for choice in exact or [c for c in choices if c is not type(None)]:
        try:
            return coerce(choice, value, name)
        except ValueError:
            continue
    raise FieldError(name, _wrong(hint, value, name))


def _coerce_scalar(hint: Any, value: Any, name: str) -> Any:
    if hint is Any or (hint in (str, bool, int, float) and type(value) is hint):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint is int and type(value) is float and value.is_integer():
        return int(value)
    if hint in (int, float) and isinstance(value, str):
        match = re.fullmatch(r"([+-]?[\d._]+(?:[eE][+-]?\d+)?)([kKMBT]?)", value.strip())
        try:
            number = float(match[1]) * SUFFIXES[match[2]] if match else None
        except ValueError:
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    raise FieldError(name, _wrong(hint, value, name))


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(name, f"{name!r} must be a mapping, not {value!r}")
    return value


def _wrong(hint: Any, value: Any, name: str) -> str:
    return f"{name!r} must be {type_name(hint)}, not {value!r}"


def type_name(hint: Any) -> str:
    """An annotation as a person would write it: `int | None`, `tuple[str, ...]`."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
