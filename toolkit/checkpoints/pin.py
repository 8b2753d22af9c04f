"""From names to exact things: the words of a `download` stage as they stand in a study, and as they stand in its lock.

A repository with a branch becomes one with a commit; a selection becomes its revisions, each with its commit, or with
the URL and ETag of an original. Fields are those of the spec of `jobs/download.py`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit import families
from toolkit.checkpoints import originals, selection
from toolkit.checkpoints.hub import COMMIT, File, Repo, needed
from toolkit.checkpoints.revisions import MAIN, Model, Revision, from_branches, from_list, join
from toolkit.checkpoints.web import Web, shown
from toolkit.lock import SELECT

Fields = dict[str, Any]


def listing(
    web: Web,
    *,
    repo: str | None = None,
    revision: str | None = None,
    kind: Any = "model",
    files: tuple[str, ...] = (),
    original: str | None = None,
    etag: str | None = None,
) -> list[File]:
    """The files behind exact fields.

    Raises:
        ValueError: what is not there, is not a model, or is not what was pinned.
    """
    if original is not None:
        found = originals.files(web, original)
        if etag is not None and found[-1].etag != etag:
            raise ValueError(
                f"{shown(found[-1].url)} is not what was locked: its ETag is {found[-1].etag}, not {etag}; if the new"
                " file is right, run `tidemark lock STUDY --update`"
            )
        return found
    assert repo is not None and revision is not None
    return needed(Repo(web=web, name=repo, kind=kind).files(revision), kind, files, f"{repo}@{revision[:8]}")


def revisions(
    web: Web, model: Model, lists: bool | str, folder: Path = Path()
) -> tuple[list[Revision], list[str], dict[str, str]]:
    """The revisions of a model, the branches that are none, and branch -> commit.

    lists: True takes the published lists of originals, text one of one's own (a URL, or a file relative to `folder`).
    """
    refs = Repo(web=web, name=model.repo).refs()
    found, others = from_branches(model, refs)
    sources = model.lists if lists is True else [lists] if lists else []
    if lists is True and not sources:
        raise ValueError(f"no list of originals of {model.repo} is known: name one")
    rows = [r for source in sources for r in from_list(model, _read(web, str(source), folder), str(source))]
    return join(found, rows), others, refs


def _read(web: Web, source: str, folder: Path) -> str:
    if source.startswith(("http://", "https://")):
        return web.ask("GET", source).text
    path = folder / Path(source).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no list of originals {str(path)!r}")
    return path.read_text(encoding="utf-8")


def select(web: Web, name: str, words: Any, folder: Path) -> list[tuple[int | str, Fields]]:
    """Label and exact fields of every revision that a selection has.

    Raises:
        ValueError: an unknown model, an unknown word, a step that is not there.
    """
    wanted, model = selection.read(words), families.find(name)
    model = model if wanted.pattern is None else replace(model, pattern=wanted.pattern)
    found, _, refs = revisions(web, model, wanted.originals, folder)
    chosen = selection.choose(wanted, found)

    def fields(revision: Revision) -> Fields:
        if revision.branch:
            return {"repo": model.repo, "revision": refs[revision.branch]}
        etag = originals.files(web, revision.url)[-1].etag
        return {"original": revision.url} | ({"etag": etag} if etag else {})

    with ThreadPoolExecutor(8) as threads:
        return list(zip(selection.labels(chosen), threads.map(fields, chosen), strict=True))


def exact(web: Web, fields: Mapping[str, Any]) -> Fields:
    """The same fields with a commit instead of a branch; originals with their ETag.

    Raises:
        ValueError: no such repository or branch.
    """
    if fields.get("original"):
        etag = originals.files(web, fields["original"])[-1].etag
        return {**fields, **({"etag": etag} if etag else {})}
    name, revision = fields.get("repo"), str(fields.get("revision") or MAIN)
    if not isinstance(name, str):
        raise ValueError("a download needs a repo (ORG/NAME, or a model's short name) or an original (a URL)")
    kind = fields.get("kind", "model")
    repo = Repo(web=web, name=families.find(name).repo if kind == "model" and "/" not in name else name, kind=kind)
    if not COMMIT.fullmatch(revision):
        refs = repo.refs()
        revision = refs[revision] if revision in refs else repo.commit(revision)
    return {**fields, "repo": repo.name, "revision": revision}


def stage(web: Web, words: Mapping[str, Any], folder: Path) -> Fields:
    """The spec and axes of a stage with everything looked up; an axis of labels is a list of (label, fields).

    Raises:
        ValueError: what cannot be looked up.
    """
    spec, axes = dict(words["spec"]), dict(words["axes"])
    named = [axis for axis, values in axes.items() if _names(axis, values)]
    if len(named) > 1:
        raise ValueError(f"the axes {' and '.join(named)} both say what to fetch; put it into one mapping")
    if not named:
        return {"spec": exact(web, spec), "axes": axes}
    axis, values = named[0], axes[named[0]]
    if isinstance(values, dict) and set(values) == {SELECT}:
        if spec.get("kind", "model") != "model" or not isinstance(spec.get("repo"), str):
            raise ValueError(f"axis {axis}: a selection is of a model's revisions: name its repo in spec")
        axes[axis] = select(web, spec["repo"], values[SELECT], folder)
    else:
        offered = _labelled(axis, values)
        axes[axis] = [(label, {**v, **exact(web, {**_place(spec), **v})}) for label, v in offered]
    return {"spec": {key: value for key, value in spec.items() if key not in _place(spec)}, "axes": axes}


def _names(axis: str, values: Any) -> bool:
    """Whether an axis says what to fetch."""
    selects = isinstance(values, dict) and set(values) == {SELECT}
    return selects or any(isinstance(fields, dict) and bool(_place(fields)) for _, fields in _labelled(axis, values))


def _labelled(axis: str, values: Any) -> list[tuple[Any, Any]]:
    """(label, fields) of an axis in any of the ways that it can be written."""
    if isinstance(values, dict):
        return list(values.items())
    return [(v[0], v[1]) if isinstance(v, list) and len(v) == 2 else (v, {axis: v}) for v in values]


def _place(fields: Mapping[str, Any]) -> Fields:
    return {key: fields[key] for key in ("repo", "revision", "original", "etag", "kind") if key in fields}
