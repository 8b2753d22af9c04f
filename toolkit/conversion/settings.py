"""The config of an original, read field by field: each is used, known to change no output, or refused by its name.

A field that is skipped because nobody thought of it is how a conversion goes wrong in silence.
"""

from collections.abc import Mapping
from typing import Any


class Settings:
    """A mapping of an original's config. `where` is its file, `path` the place in it, for messages."""

    def __init__(self, fields: Any, where: object, path: str) -> None:
        if not isinstance(fields, Mapping):
            raise ValueError(f"{where}: {path} is {fields!r}, not a mapping")
        self.fields: Mapping[str, Any] = fields
        self.where, self.path, self.seen = where, path, {"_CLASS_"}

    def take(self, name: str, default: Any = None) -> Any:
        """A field that is carried over; `default` is what the original's code takes where it is not set."""
        self.seen.add(name)
        return self.fields.get(name, default)

    def number(self, name: str, default: Any = None) -> Any:
        """A field that must be a positive number.

        Raises:
            ValueError: it is not there, or something else.
        """
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ValueError(f"{self.where}: {self.path}.{name} is {value!r}; it must be a positive number")
        return value

    def inner(self, name: str) -> "Settings":
        """A mapping inside this one.

        Raises:
            ValueError: it is not there.
        """
        return Settings(self.take(name), self.where, f"{self.path}.{name}")

    def demand(self, name: str, *valid: Any, default: Any = None, why: str = "") -> Any:
        """A field of which only some values can be converted.

        Raises:
            ValueError: it has another.
        """
        value = self.take(name, default)
        if value not in valid or isinstance(value, bool) != any(isinstance(v, bool) and v == value for v in valid):
            unset = "" if name in self.fields else " (it is not set; that is what the original's code takes)"
            raise ValueError(
                f"{self.where}: {self.path}.{name} is {value!r}{unset}, which cannot be converted"
                f"{': ' + why if why else ''}; it must be {' or '.join(map(repr, valid))}"
            )
        return value

    def ignore(self, *names: str) -> None:
        """Fields that change no output of a trained model: dropout, initialisation, kernels, checkpointing."""
        self.seen.update(names)

    def done(self) -> None:
        """Raises:
        ValueError: there is a field that nobody asked for, and it is set.
        """
        left = sorted(name for name, value in self.fields.items() if name not in self.seen and value is not None)
        if left:
            raise ValueError(
                f"{self.where}: {self.path}.{left[0]} is {self.fields[left[0]]!r}; it is not known whether it changes"
                " the model's output, so it is not converted: teach toolkit/conversion/formats what it means"
            )
