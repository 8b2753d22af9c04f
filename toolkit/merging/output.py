"""Weights written in any order: headers and sizes first, then pieces wherever they belong, then the names.

The space is taken before the first piece, so that a full disk is met at once; files get their names when all of them
are whole, and the index comes last. Whatever ends the writing early leaves no folder that reads as a model.
"""

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from toolkit.checkpoints.tensors import BYTES, head, write_index

Layout = Mapping[str, Mapping[str, tuple[str, tuple[int, ...]]]]  # file -> tensor -> (dtype, shape), in order
PART = ".part"


class Output:
    """The weight files of `layout` in `folder`, to be used as a context: `put` pieces inside it."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.files: dict[str, int] = {}
        self.places: dict[str, tuple[int, int, str]] = {}

    def __enter__(self) -> Self:
        try:
            for name, tensors in self.layout.items():
                self._begin(name, tensors)
        except BaseException:
            self._drop()
            raise
        return self

    def _begin(self, name: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        start = head(tensors)
        fd = self.files[name] = os.open(self.folder / (name + PART), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        at = len(start)
        for tensor, (dtype, shape) in tensors.items():
            self.places[tensor] = (fd, at, dtype)
            at += prod(shape) * BYTES[dtype]
        os.posix_fallocate(fd, 0, at)
        _write(fd, memoryview(start), 0)

    def dtype(self, tensor: str) -> str:
        """safetensors' word for the type that a tensor is written in."""
        return self.places[tensor][2]

    def put(self, tensor: str, first: int, data: memoryview) -> None:
        """Write the bytes of the elements from number `first` on; threads may do so at once."""
        fd, at, dtype = self.places[tensor]
        _write(fd, data, at + first * BYTES[dtype])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            return self._drop()
        self._close()
        for name in self.layout:
            (self.folder / (name + PART)).rename(self.folder / name)
        write_index(self.folder, self.layout)

    def _drop(self) -> None:
        self._close()
        for name in self.layout:
            (self.folder / (name + PART)).unlink(missing_ok=True)

    def _close(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])


def _write(fd: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], at + done)
