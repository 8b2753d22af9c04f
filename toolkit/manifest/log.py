"""What happened in a study: append-only segments `ROOT/log/<study>/<writer>.jsonl`, each with exactly one writer.

A line is `<bytes of the JSON> <CRC-32, 8 hex digits> <JSON>` and a newline, given to the kernel in one write. JSON
holds no raw newline, so a reader finds the next line after any damage. It remembers how far it got in each segment.
The log tells a story; what exists is said by records alone.
"""

import json
import os
import socket
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.manifest.files import sync_folder

BLOCK = 8 << 20


def writer_name() -> str:
    """A name that no other process has or will have: host, process id and a random part."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Writer:
    """The one process that appends to a segment. A forked child makes its own."""

    def __init__(self, root: Path, study: str, name: str | None = None) -> None:
        """
        Raises:
            FileExistsError: the segment exists, so its name was not unique.
        """
        self.name = name or writer_name()
        self.path = root / "log" / study / f"{self.name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._pid = os.getpid()
        self._torn = False
        sync_folder(self.path.parent)

    def append(self, event: Mapping[str, Any], *, sync: bool = True) -> None:
        """Write one event; `time` (seconds since the epoch, of this host) is added where it is missing.

        With `sync` the line is on the disk when this returns, and other hosts see it whole or not at all.

        Raises:
            OSError: the disk is full; the event is not logged, later ones may be.
        """
        assert os.getpid() == self._pid, "a segment has one writer: a forked child must make its own"
        line = encode({"time": time.time(), **event})
        # What an earlier full disk left of a line is closed by a newline first, so that it costs no other line.
        data = b"\n" + line if self._torn else line
        self._torn = True
        while data:  # once, unless the disk is full: a second write then says so
            data = data[os.write(self._fd, data) :]
        self._torn = False
        if sync:
            os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def encode(event: Mapping[str, Any]) -> bytes:
    """One line of a segment."""
    text = json.dumps(event, separators=(",", ":")).encode()
    return b"%d %08x %s\n" % (len(text), zlib.crc32(text), text)


def decode(line: bytes) -> dict[str, Any] | None:
    """The event of a line without its newline; None if the line is damaged."""
    parts = line.split(b" ", 2)
    if len(parts) != 3 or parts[0] != b"%d" % len(parts[2]) or parts[1] != b"%08x" % zlib.crc32(parts[2]):
        return None
    try:
        event = json.loads(parts[2])
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


class Reader:
    """Reads the segments of a study from where it last stopped; `dropped` counts damaged lines that it passed."""

    def __init__(self, root: Path, study: str, state: Mapping[str, Any] | None = None) -> None:
        """`state` is what another reader's `state()` gave."""
        self.folder = root / "log" / study
        self._offsets: dict[str, int] = dict(state["offsets"]) if state else {}
        self.dropped: int = state["dropped"] if state else 0

    def state(self) -> dict[str, Any]:
        """JSON data from which another reader goes on."""
        return {"offsets": dict(self._offsets), "dropped": self.dropped}

    def new_events(self) -> list[dict[str, Any]]:
        """Events that were completed since the last call; `writer` and `offset` (of the line) are added to each.

        Events of one writer come in its order; nothing is said about the order of two writers.
        """
        return list(self.iterate())

    def iterate(self) -> Iterator[dict[str, Any]]:
        """`new_events` one by one; the state counts those that were taken."""
        for name, size in self._segments():
            if size < self._offsets.get(name, 0):
                self._offsets[name] = 0  # somebody cut or replaced it: read it again
            if size > self._offsets.get(name, 0):
                yield from self._read(name)

    def outdated(self) -> bool:
        """Whether a segment that was read is gone or shorter: what was made of the log no longer follows from it."""
        sizes = dict(self._segments())
        return any(sizes.get(name, -1) < offset for name, offset in self._offsets.items())

    def _segments(self) -> list[tuple[str, int]]:
        try:
            with os.scandir(self.folder) as entries:
                return sorted((e.name, e.stat().st_size) for e in entries if e.name.endswith(".jsonl"))
        except FileNotFoundError:
            return []  # a study without events has no folder yet

    def _read(self, name: str) -> Iterator[dict[str, Any]]:
        writer = name.removesuffix(".jsonl")
        with open(self.folder / name, "rb") as file:
            file.seek(self._offsets.get(name, 0))
            rest = b""
            while block := file.read(BLOCK):
                *lines, rest = (rest + block).split(b"\n")  # `rest` has no newline yet: it is read again later
                for line in lines:
                    offset, event = self._offsets.get(name, 0), decode(line)
                    if event is None and b"\0" in line:
                        return  # JSON has no such byte: an NFS client has not sent this part yet, though a later one
                    self._offsets[name] = offset + len(line) + 1
                    if event is not None:
                        yield {**event, "writer": writer, "offset": offset}
                    elif line:  # a writer closes a torn line with an empty one
                        self.dropped += 1
