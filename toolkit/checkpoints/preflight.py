"""Before bytes move: is a revision there twice, can the installed transformers read each, is there room for all?"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from toolkit.checkpoints.fetch import fetch
from toolkit.checkpoints.folders import CONFIG, GENERATION, TOKENIZER
from toolkit.checkpoints.hub import File, is_weights
from toolkit.checkpoints.pin import listing
from toolkit.checkpoints.revisions import MAIN
from toolkit.checkpoints.web import Web

Listings = Mapping[str, Sequence[File]]


def examine(web: Web, found: Mapping[str, Any]) -> list[str]:
    """List the files of everything that a locked stage names, and check them; returns a sentence for the user.

    Raises:
        ValueError: two revisions with the same weights, a config or tokenizer that this transformers cannot read.
    """
    points = dict(_points(found))
    listings = list_all(web, points)
    refuse_duplicates(listings)
    models = [label for label, fields in points.items() if fields.get("kind", "model") == "model"]
    kinds = check_readable(web, {label: listings[label] for label in models if not points[label].get("files")})
    size = sum(file.size for files in listings.values() for file in files)
    read = f"; transformers reads them ({', '.join(kinds)})" if kinds else ""
    return [f"{len(listings)} to fetch, {amount(size)} in all{read}"]


def _points(found: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label -> exact fields."""
    spec = {key: tuple(v) if isinstance(v, list) else v for key, v in found["spec"].items()}
    labelled = [
        (label, fields)
        for values in found["axes"].values()
        if isinstance(values, list)
        for label, fields in (v for v in values if isinstance(v, tuple))
    ]
    yield from ((str(label), {**spec, **fields}) for label, fields in labelled) if labelled else [(_name(spec), spec)]


def _name(spec: Mapping[str, Any]) -> str:
    return str(spec.get("repo") or spec.get("original"))


def list_all(web: Web, points: Mapping[str, Mapping[str, Any]]) -> dict[str, list[File]]:
    """Label -> files; some requests for each, eight at a time."""
    with ThreadPoolExecutor(8) as threads:
        return dict(zip(points, threads.map(lambda fields: listing(web, **fields), points.values()), strict=True))


def refuse_duplicates(listings: Listings) -> None:
    """A known fault of published suites: a step that holds the weights of another. `main` may be any step's.

    Raises:
        ValueError: the weights of two labels have the same digests.
    """
    seen: dict[tuple[str, ...], list[str]] = {}
    for label, files in listings.items():
        if label == MAIN:
            continue
        weights = tuple(sorted(file.digest or file.etag for file in files if is_weights(file.path)))
        if any(weights):
            seen.setdefault(weights, []).append(label)
    twice = [", ".join(labels) for labels in seen.values() if len(labels) > 1]
    if twice:
        raise ValueError(
            f"the same weights under several names: {'; '.join(twice)}; all but one of each are not what they are"
            " called: leave them out (`without: [...]`)"
        )


def check_readable(web: Web, listings: Listings) -> list[str]:
    """Fetch every different config and tokenizer once, and let the installed transformers read them; returns the
    model types. Originals have none, and are read by their conversion.

    Raises:
        ValueError: an architecture that is unknown here, no tokenizer, or one that does not fit its model.
    """
    small = {CONFIG, GENERATION, *TOKENIZER}
    kinds, seen = [], set()
    for label, files in listings.items():
        chosen = [file for file in files if file.path in small]
        key = tuple(file.digest for file in chosen)
        if key in seen or not any(file.path == CONFIG for file in chosen):
            continue
        seen.add(key)
        with tempfile.TemporaryDirectory() as folder:
            fetched = fetch(web, chosen, Path(folder), lambda done, total: None)
            try:
                kinds.append(_read(fetched))
            except ValueError as error:
                problem = str(error).replace(str(fetched), label).splitlines()[0]  # transformers adds advice in several
                raise ValueError(f"{label} cannot be used with transformers {_version()}: {problem}") from error
    return sorted(set(kinds))


def _version() -> str:
    import transformers

    return transformers.__version__


def _read(folder: Path) -> str:
    from toolkit.checkpoints.check import check_vocabulary, expected, read_config
    from toolkit.checkpoints.folders import load_tokenizer

    config = read_config(folder)
    expected(config)  # the architecture exists as a causal language model
    load_tokenizer(folder)
    check_vocabulary(folder, int(config.get_text_config().vocab_size))
    return str(config.model_type)


def amount(size: int) -> str:
    """Bytes in words: `14.2 GB`, `3.1 MB`, `0.4 kB`."""
    unit, word = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if size >= pair[0]), (1e3, "kB"))
    return f"{size / unit:,.1f} {word}"


def check_room(folder: Path, size: int, inodes: int) -> None:
    """Whether a file system has room: what `statvfs` says, which knows a quota only where the file system tells it so
    (project quotas of Lustre and XFS are told, most users' quotas are not).

    Raises:
        ValueError: it has not.
    """
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if size > free:
        raise ValueError(
            f"{amount(size)} are to be fetched and {folder} has room for {amount(free)}: free some (`tidemark clean`"
            " shows what), or select fewer"
        )
    if room.f_files and inodes > room.f_favail:  # some file systems do not count
        raise ValueError(f"{inodes:,} files are to be made and {folder} has room for {room.f_favail:,}: free some")
