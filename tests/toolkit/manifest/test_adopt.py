"""Adoption: the content is the identity, nothing is copied, and what was hashed once is not read again."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from toolkit.fingerprint import fingerprint
from toolkit.manifest.adopt import adopt, content_fingerprint
from toolkit.manifest.files import digest_file
from toolkit.manifest.record import files_root, payload, read, verify, wait_visible


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "model.bin").write_bytes(b"abc" * 1000)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").touch()
    return folder


def test_a_folder_becomes_an_artifact_without_a_copy(root: Path, weights: Path) -> None:
    artifact = adopt(root, path=weights, label="weights")
    record = read(artifact)
    assert os.listdir(artifact) == ["artifact.json"]
    assert (record["job"], record["source"]) == ("folder", str(weights))
    assert payload(artifact, record) == weights == files_root(artifact, record)
    assert list(record["files"]) == ["config.json", "sub/model.bin"]
    assert record["fingerprint"] == fingerprint("folder", 1, {"files": record["files"]}, {})
    assert record["files"]["sub/model.bin"] == {"size": 3000, "digest": digest_file(weights / "sub" / "model.bin")}
    assert verify(artifact) == []
    wait_visible(artifact, record, 0)
    assert adopt(root, path=weights, label="weights") == artifact
    assert os.listdir(root / "work") == []


def test_a_single_file(root: Path, weights: Path) -> None:
    artifact = adopt(root, path=weights / "config.json", label="config")
    record = read(artifact)
    assert payload(artifact, record) == weights / "config.json" and list(record["files"]) == ["config.json"]
    assert verify(artifact) == []
    (weights / "config.json").write_text("[]")
    assert [problem.split(":")[0] for problem in verify(artifact)] == ["config.json"]


def test_the_identity_is_the_content(root: Path, weights: Path, tmp_path: Path) -> None:
    first = adopt(root, path=weights, label="weights")
    copy = tmp_path / "elsewhere"
    shutil.copytree(weights, copy)
    assert content_fingerprint(copy) == content_fingerprint(weights)
    (weights / "config.json").write_text("[]")
    assert verify(first) != []
    assert adopt(root, path=weights, label="weights") != first
    assert adopt(root, path=copy, label="weights") == first  # the same files, found again where they are now
    assert read(first)["source"] == str(copy) and verify(first) == []
    (copy / "added").touch()
    assert verify(first) == ["added: not in the record"]


def test_links_are_followed_also_in_a_circle(tmp_path: Path, weights: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (weights / "sub" / "model.bin").rename(blobs / "xyz")
    (weights / "sub" / "model.bin").symlink_to("../../blobs/xyz")
    (weights / "sub" / "up").symlink_to("..")
    assert list(content_fingerprint(weights)[1]) == ["config.json", "sub/model.bin"]
    (blobs / "xyz").unlink()
    with pytest.raises(ValueError, match="model.bin cannot be read: No such file"):
        content_fingerprint(weights)


def poison(cache: Path) -> dict[str, list[Any]]:
    """Give every cached digest another value, so that an answer shows where it came from."""
    content = json.loads(cache.read_text())
    cache.write_text(json.dumps({key: [*entry[:-1], "xxh3:cached"] for key, entry in content.items()}))
    return dict(content)


def test_the_cache_is_used_while_the_files_stay(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "index" / "content.json"
    plain = content_fingerprint(weights)
    assert content_fingerprint(weights, cache) == plain
    assert not cache.exists()  # the files are seconds old: another change might leave their times as they are
    monkeypatch.setattr("toolkit.manifest.adopt.SETTLED_SECONDS", -1.0)
    assert content_fingerprint(weights, cache) == plain
    assert len(poison(cache)) == 2
    assert {entry["digest"] for entry in content_fingerprint(weights, cache)[1].values()} == {"xxh3:cached"}
    stamp = (weights / "config.json").stat()
    (weights / "config.json").write_text("[]")  # as long as before
    os.utime(weights / "config.json", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    found = content_fingerprint(weights, cache)[1]
    assert found["config.json"]["digest"] == digest_file(weights / "config.json")
    assert found["sub/model.bin"]["digest"] == "xxh3:cached"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"a": 1}', b"\xff\xfe"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, weights: Path, damage: bytes) -> None:
    (tmp_path / "content.json").write_bytes(damage)
    assert content_fingerprint(weights, tmp_path / "content.json") == content_fingerprint(weights)


def test_messages_for_what_cannot_be_adopted(root: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no '.*wieghts'.* has 'weights'"):
        adopt(root, path=tmp_path / "wieghts", label="w")
    with pytest.raises(ValueError, match=r"there is no '.*'; '.*weights' has .*'sub'"):
        adopt(root, path=weights / "sab" / "deeper", label="w")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file"):
        adopt(root, path=tmp_path / "empty", label="w")
