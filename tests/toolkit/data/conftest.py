import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import prepare
from jobs import tokenizer as tokenizer_job
from toolkit.lookup import find
from toolkit.spec import build
from toolkit.stage import Artifact, Context

SHARED = Path(__file__).parents[4] / "shared/data"
ARTICLES = 12


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """`make("text", {"files": path}, documents="line")`: the artifact of the prepare job, metrics in its record."""

    def run(dataset: str, inputs: dict[str, Path], **values: Any) -> Artifact:
        module = find("toolkit.data.datasets", dataset, "dataset")
        spec = build(module.Spec, {"dataset": dataset, **values})
        return run_job(prepare, spec, module.Inputs, inputs, tmp_path_factory.mktemp("job"))

    return run


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """`make_tokenizer(data, split=..., vocab_size=...)`: the artifact of the tokenizer job."""

    def run(data: Path, **values: Any) -> Artifact:
        spec = build(tokenizer_job.Spec, values)
        return run_job(tokenizer_job, spec, tokenizer_job.Inputs, {"data": data}, tmp_path_factory.mktemp("job"))

    return run


def run_job(job: Any, spec: Any, kind: type, inputs: dict[str, Path], folder: Path) -> Artifact:
    out, state = folder / "out", folder / "state"
    out.mkdir()
    state.mkdir()
    given = {name: Artifact(path=path) for name, path in inputs.items()}
    assert {f.name for f in dataclasses.fields(kind)} >= set(given)
    metrics = job.run(spec, kind(**given), out, Context(state=state))
    return Artifact(path=out, record={"metrics": metrics})


@pytest.fixture(scope="session")
def wikitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of WikiText-2 where it is at hand, else generated text in its layout."""
    path = tmp_path_factory.mktemp("wikitext") / "wiki.txt"
    real = SHARED / "wikitext2_valid.txt"
    if real.is_file():
        path.write_text("".join(real.read_text().splitlines(keepends=True)[:400]))
        return path
    lines = []
    for article in range(ARTICLES):
        lines += [" \n", f" = Subject {article} = \n", " \n", " = = Details = = \n", " \n"]
        lines += [f" Line {i} tells what subject {article} has to do with {i * article} . \n" for i in range(60)]
    path.write_text("".join(lines))
    return path


def content(artifact: Artifact) -> dict[str, bytes]:
    """Every file of an artifact with its bytes."""
    return {str(p.relative_to(artifact.path)): p.read_bytes() for p in artifact.path.rglob("*") if p.is_file()}
