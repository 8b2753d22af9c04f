"""Fetch a model, a data set or an unsharded original, exactly as pinned: the one stage that needs a network.

`tidemark lock` turns branches and selections into commits (`pin`), `tidemark prefetch` runs these stages alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Context, Interrupted

VERSION = 1
TRANSIENT = True
INTERNET = True


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What to fetch, and the commit. It is in a folder in Hugging Face format; of an original, in OLMo's own.

    repo, revision: a repository of the Hub and a commit of it. kind: of the repository. files: patterns of paths; none
    takes what a model needs (config, tokenizer, weights), and a data set whole. original: the URL of the folder of an
    unsharded original instead. etag: what its weights must have.
    """

    repo: str | None = None
    revision: str | None = None
    kind: Literal["model", "dataset"] = "model"
    files: tuple[str, ...] = ()
    original: str | None = None
    etag: str | None = None

    def __post_init__(self) -> None:
        if (self.repo is None) == (self.original is None):
            raise ValueError("a download needs either a repo of the Hub or the URL of an original")
        if self.original is not None and (self.revision or self.files or self.kind != "model"):
            raise ValueError("revision, files and kind are of a repo, not of an original")
        if self.repo is not None and self.etag is not None:
            raise ValueError("etag is of an original; a repo has a revision")
        if self.repo is not None and not _is_commit(self.revision):
            raise ValueError(
                f"revision {self.revision or 'main'!r} of {self.repo} is no commit, and the study's lock does not have"
                " it (or it was changed since): `tidemark lock STUDY` looks it up, with a network, and pins it"
            )


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """None: it comes from the network."""


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and not set(revision) - set("0123456789abcdef")


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out`. Metrics: files and bytes.

    Raises:
        ValueError: what is pinned is not there, or not ours to read.
        HubUnavailable: the server fails for too long.
    """
    from toolkit.checkpoints.fetch import fetch
    from toolkit.checkpoints.folders import copy_file
    from toolkit.checkpoints.pin import listing
    from toolkit.checkpoints.web import of_root
    from toolkit.manifest.record import DROPPED, LOG, RECORD

    def report(done: int, total: int) -> None:
        ctx.progress(done, total, unit="byte")
        if ctx.stop_requested:
            raise Interrupted

    web = of_root(ctx.state.parents[2])
    files = listing(web, **vars(spec))
    taken = [file.path for file in files if file.path in (RECORD, LOG, DROPPED)]
    if taken:
        raise ValueError(f"{spec.repo} has a file {taken[0]}, a name that artifacts need: choose others with `files`")
    fetched = fetch(web, files, ctx.state, report)
    for file in files:
        (out / file.path).parent.mkdir(parents=True, exist_ok=True)
        copy_file(fetched / file.path, out / file.path, link=True)
    return {"files": len(files), "bytes": sum(file.size for file in files)}


def pin(root: Path, words: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The spec and axes of a stage with every name looked up, and what was found out about them.

    folder: of the study, which paths are relative to.

    Raises:
        ValueError: what is not there, would not work, or is there twice.
    """
    from toolkit.checkpoints.pin import stage
    from toolkit.checkpoints.preflight import examine
    from toolkit.checkpoints.web import of_root

    web = of_root(root)
    found = stage(web, words, folder)
    return found, examine(web, found)
