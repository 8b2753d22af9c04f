"""The Hub, asked for exact things: the commit behind a branch, the files of a commit with their digests.

`huggingface_hub` checks sizes only, starts files anew after a kill and does not try 5xx again; hence this. The routes
are those of its `HfApi`.
"""

import fnmatch
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

from toolkit.checkpoints.folders import CONFIG, GENERATION, TOKENIZER
from toolkit.checkpoints.tensors import INDEX, SINGLE
from toolkit.checkpoints.web import Web

Kind = Literal["model", "dataset"]
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SHARDS = {INDEX: r"model-\d+-of-\d+\.safetensors", BIN_INDEX: r"pytorch_model-\d+-of-\d+\.bin"}


@dataclass(frozen=True, kw_only=True)
class File:
    """A file that can be fetched. digest: `sha256:`, `git:` (a blob's SHA-1) or `md5:` and hex; "" if nobody tells.

    etag: of a file outside the Hub, which must stay what it was.
    """

    path: str
    size: int
    digest: str
    url: str
    etag: str = ""


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository of the Hub."""

    web: Web
    name: str
    kind: Kind = "model"

    def __post_init__(self) -> None:
        if not REPO.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a repository on the Hub: ORG/NAME")

    def refs(self) -> dict[str, str]:
        """Branches and tags -> commit.

        Raises:
            ValueError: no such repository, or no access.
        """
        said = self.web.ask("GET", f"{self._api()}/refs").json()
        return {ref["name"]: ref["targetCommit"] for ref in [*said.get("tags", ()), *said.get("branches", ())]}

    def commit(self, revision: str) -> str:
        """The commit behind a branch, a tag or the beginning of a commit.

        Raises:
            ValueError: there is none.
        """
        return str(self.web.ask("GET", f"{self._api()}/revision/{quote(revision, safe='')}").json()["sha"])

    def files(self, commit: str) -> list[File]:
        """The files of a commit.

        Raises:
            ValueError: no such commit, or a path that would leave the folder it is put in.
        """
        found = []
        for entry in self._pages(f"{self._api()}/tree/{commit}?recursive=true&expand=false"):
            if entry["type"] == "file":
                path, lfs = inside(entry["path"], self.name), entry.get("lfs")
                digest = f"sha256:{lfs['oid'].removeprefix('sha256:')}" if lfs else f"git:{entry['oid']}"
                size = int(lfs["size"] if lfs else entry["size"])
                found.append(File(path=path, size=size, digest=digest, url=self._url(commit, path)))
        return sorted(found, key=lambda file: file.path)

    def _api(self) -> str:
        return f"{self.web.hub}/api/{self.kind}s/{self.name}"

    def _url(self, commit: str, path: str) -> str:
        prefix = "datasets/" if self.kind == "dataset" else ""
        return f"{self.web.hub}/{prefix}{self.name}/resolve/{commit}/{quote(path)}"

    def _pages(self, url: str) -> Iterator[dict[str, Any]]:
        while url:
            response = self.web.ask("GET", url)
            yield from response.json()
            url = response.links.get("next", {}).get("url", "")


def inside(path: str, source: str) -> str:
    """A path of a listing, if it stays in the folder that it is put in.

    Raises:
        ValueError: it would not.
    """
    plain = "/".join(PurePosixPath(path).parts) == path and not re.search(r"[\\\0]", path)
    if not plain or path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError(
            f"{source} lists a file {path!r}, which would leave the folder it is put in; nothing is fetched"
        )
    return path


def needed(files: Sequence[File], kind: Kind, patterns: Sequence[str], source: str) -> list[File]:
    """The files to fetch: those that match a pattern; without patterns a data set whole, and of a model its config,
    tokenizer and weights, as safetensors where there are such.

    Raises:
        ValueError: a pattern that matches nothing, or a model without config or (all of its) weights.
    """
    by_path = {file.path: file for file in files}
    for pattern in patterns:
        if not fnmatch.filter(by_path, pattern):
            raise ValueError(f"no file of {source} matches {pattern!r}; it has {_some(list(by_path))}")
    if patterns:
        return [file for path, file in by_path.items() if any(fnmatch.fnmatchcase(path, p) for p in patterns)]
    if kind == "dataset":
        return [file for file in files if not file.path.startswith(".")]
    wanted = {CONFIG, GENERATION, *TOKENIZER, *_weights(by_path, source)}
    if CONFIG not in by_path or not any(is_weights(path) for path in wanted & set(by_path)):
        raise ValueError(
            f"{source} is no model in Hugging Face format: it lacks {CONFIG} or weights ({SINGLE}, {BIN}, or shards"
            f" of them); it has {_some(list(by_path))}"
        )
    return [file for path, file in by_path.items() if path in wanted]


def _weights(paths: Collection[str], source: str) -> list[str]:
    for single, index in ((SINGLE, INDEX), (BIN, BIN_INDEX)):
        if single in paths:
            return [single]
        if index in paths:
            shards = [path for path in paths if re.fullmatch(SHARDS[index], path)]
            of = {int(path.rsplit("-of-")[1].split(".")[0]) for path in shards}
            if of != {len(shards)}:
                raise ValueError(
                    f"{source} has {len(shards)} of {max(of, default=0)} shards of its weights: choose another"
                )
            return [index, *shards]
    return []


def is_weights(path: str) -> bool:
    """Whether a file holds tensors."""
    return path.endswith((".safetensors", ".bin", ".pt"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "no files"
