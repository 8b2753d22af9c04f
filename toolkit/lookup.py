"""The module name is the registry: find a module of a package by name, or say which names there are."""

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType


@cache
def names(package: str) -> tuple[str, ...]:
    """The public modules of a package, sorted; a file that starts with an underscore is not listed."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


@cache
def find(package: str, name: str, kind: str) -> ModuleType:
    """Import module `name` of `package`.

    Raises:
        ValueError: there is no such module; the message lists the valid names and the nearest spelling.
    """
    if name not in names(package):
        raise ValueError(unknown(kind, name, names(package)))
    return importlib.import_module(f"{package}.{name}")


def unknown(kind: str, name: object, choices: Iterable[str]) -> str:
    """The message for a name that is not one of the choices: `unknown job 'trian'; did you mean 'train'? ...`."""
    valid = sorted(choices)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} valid: {', '.join(valid) or '(none)'}"
