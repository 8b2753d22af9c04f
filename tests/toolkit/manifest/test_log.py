"""Segments: whatever a crash or a full disk leaves of a line costs that line and no other."""

import json
import os
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.manifest.log import Reader, Writer, encode

from .conftest import forked, wait

texts = st.text(max_size=30)
events = st.dictionaries(st.sampled_from(["event", "fingerprint", "message", "n"]), texts | st.integers() | st.none())


def said(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k not in ("time", "writer", "offset")} for event in found]


def test_the_line_format(root: Path) -> None:
    writer = Writer(root, "study", "host-1-abc")
    writer.append({"event": "started", "message": "line\nbreak", "time": 5.5})
    line = (root / "log" / "study" / "host-1-abc.jsonl").read_bytes()
    length, crc, text = line.rstrip(b"\n").split(b" ", 2)
    assert (int(length), int(crc, 16)) == (len(text), zlib.crc32(text)) and line.count(b"\n") == 1
    event = {"event": "started", "message": "line\nbreak", "time": 5.5}
    assert json.loads(text) == event
    assert Reader(root, "study").new_events() == [{**event, "writer": "host-1-abc", "offset": 0}]


def test_a_segment_has_one_writer(root: Path) -> None:
    writer = Writer(root, "study", "w")
    with pytest.raises(FileExistsError):
        Writer(root, "study", "w")
    assert Writer(root, "study").name != Writer(root, "study").name
    assert wait(forked(lambda: writer.append({"event": "from a child"}))) == 1
    assert Reader(root, "study").new_events() == []


@settings(max_examples=25, deadline=None)
@given(before=st.lists(events, max_size=3), last=events, after=st.lists(events, min_size=1, max_size=2))
def test_a_line_torn_at_any_byte(
    before: list[dict[str, Any]], last: dict[str, Any], after: list[dict[str, Any]]
) -> None:
    start, line, tail = b"".join(map(encode, before)), encode(last), b"".join(map(encode, after))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "log" / "grows").mkdir(parents=True)
        with open(root / "log" / "grows" / "w.jsonl", "wb", buffering=0) as segment:
            segment.write(start)
            reader = Reader(root, "grows")
            assert said(reader.new_events()) == before
            for cut in range(len(line)):  # the line arrives byte by byte
                assert reader.new_events() == [] and reader.dropped == 0
                reader = Reader(root, "grows", json.loads(json.dumps(reader.state())))
                segment.write(line[cut : cut + 1])
            assert said(reader.new_events()) == [last] and reader.new_events() == []
        for cut in range(len(line)):  # or its rest never does, and the writer goes on
            (root / "log" / f"torn-{cut}").mkdir()
            (root / "log" / f"torn-{cut}" / "w.jsonl").write_bytes(start + line[:cut] + b"\n" + tail)
            reader = Reader(root, f"torn-{cut}")
            only_newline_lost = cut == len(line) - 1
            assert said(reader.new_events()) == before + [last] * only_newline_lost + after
            assert reader.dropped == (cut > 0 and not only_newline_lost)


@settings(max_examples=30, deadline=None)
@given(
    data=st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"12 ", b"2 00000000 {}\n", b"\0" * 20]), max_size=8)
)
def test_garbage_never_fails_a_reader(data: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "log" / "s").mkdir(parents=True)
        (root / "log" / "s" / "bad.jsonl").write_bytes(b"".join(data) + b"\n")
        (root / "log" / "s" / "good.jsonl").write_bytes(encode({"n": 1}))
        reader = Reader(root, "s")
        assert said(reader.new_events()) == [{"n": 1}]
        damaged = [line for line in b"".join(data).split(b"\n") if line]
        holes = [n for n, line in enumerate(damaged) if b"\0" in line]
        assert reader.dropped == (holes[0] if holes else len(damaged))


def test_a_hole_that_is_filled_later_is_waited_for(root: Path) -> None:
    writer = Writer(root, "s")
    for n in range(3):
        writer.append({"n": n}, sync=False)
    whole = writer.path.read_bytes()
    size = len(whole) // 3
    writer.path.write_bytes(whole[: size + 5] + b"\0" * (size - 10) + whole[2 * size - 5 :])
    reader = Reader(root, "s")
    assert said(reader.new_events()) == [{"n": 0}] and reader.new_events() == []
    writer.path.write_bytes(whole)
    assert said(reader.new_events()) == [{"n": 1}, {"n": 2}] and reader.dropped == 0


def test_a_block_may_end_anywhere_in_a_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.manifest.log.BLOCK", 7)
    writer = Writer(root, "s")
    for n in range(20):
        writer.append({"n": n}, sync=False)
    assert said(Reader(root, "s").new_events()) == [{"n": n} for n in range(20)]


def test_two_writers_and_two_readers_at_once(root: Path) -> None:
    def write(name: str) -> None:
        writer = Writer(root, "s", name)
        for n in range(400):
            writer.append({"n": n, "pad": "x" * (n % 97)}, sync=n % 50 == 0)

    def read() -> None:
        reader, seen, deadline = Reader(root, "s"), {"a": [], "b": []}, time.monotonic() + 20
        while sum(map(len, seen.values())) < 800:
            assert time.monotonic() < deadline
            for event in reader.new_events():
                seen[event["writer"]].append(event["n"])
            reader = Reader(root, "s", json.loads(json.dumps(reader.state())))
        assert seen == {"a": list(range(400)), "b": list(range(400))} and reader.dropped == 0

    pids = [forked(read), forked(read), forked(lambda: write("a")), forked(lambda: write("b"))]
    assert [wait(pid) for pid in pids] == [0, 0, 0, 0]


def test_a_full_disk_costs_the_events_that_did_not_fit(tiny_disk: Path) -> None:
    writer = Writer(tiny_disk, "s")
    written = []
    with pytest.raises(OSError, match="No space left"):
        for n in range(100_000):
            writer.append({"n": n, "pad": "x" * 3001}, sync=False)
            written.append(n)
    os.truncate(writer.path, writer.path.stat().st_size - 5000)  # makes room, and tears a line besides
    writer2 = Writer(tiny_disk, "s")
    writer2.append({"n": -1})
    reader = Reader(tiny_disk, "s")
    found = [event["n"] for event in reader.new_events() if event["writer"] == writer.name]
    writer.close()
    writer2.close()
    assert found == written[: len(found)] and len(written) - len(found) <= 2


def test_a_writer_goes_on_after_a_full_disk(tiny_disk: Path) -> None:
    with open(tiny_disk / "ballast", "wb") as ballast:
        ballast.write(bytes(1 << 18))
    writer = Writer(tiny_disk, "s")
    count = 0
    with pytest.raises(OSError, match="No space left"):
        while True:
            writer.append({"n": count, "pad": "x" * 3001}, sync=False)
            count += 1
    (tiny_disk / "ballast").unlink()
    writer.append({"n": "after"})
    writer.close()
    reader = Reader(tiny_disk, "s")
    assert [event["n"] for event in reader.new_events()] == [*range(count), "after"]
    assert reader.dropped <= 1
