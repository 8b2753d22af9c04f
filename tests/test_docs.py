"""README, CONTRIBUTING and docs say what is true: commands exist, the tree is the tree, links lead somewhere, studies plan."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from slurm.cli import app
from slurm.submissions import cells_of
from tests.test_house import tracked
from toolkit import study_file

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted((ROOT / "configs/studies").glob("*.yaml"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMANDS = typer.main.get_command(app).commands


def commands(text: str) -> Iterator[str]:
    """`make X` and `tidemark X`, from fenced blocks (with or without a prompt) and from inline code."""
    lines = [
        line for kind, block in FENCE.findall(text) if not kind for line in block.replace("\\\n", " ").splitlines()
    ]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in [*lines, *inline]:
        line = re.sub(r"^\$ ", "", line.strip()).removeprefix(".venv/bin/")
        if re.match(r"(make|tidemark) [\w<-]", line):
            yield line.split("  #")[0].strip()


def faults(command: str) -> list[str]:
    """What is wrong with a command line: the target, command or option that does not exist."""
    program, *words = shlex.split(command)
    if program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        return [word for word in words if "=" not in word and word not in targets]
    known = ["--install-completion", "--show-completion", "--help"]
    if not words[0].startswith("-"):
        if words[0] not in COMMANDS:
            return [words[0]]
        command = COMMANDS[words[0]]
        if hasattr(command, "commands"):  # `tidemark data show`
            if words[1] not in command.commands:
                return [words[1]]
            command = command.commands[words[1]]
        known = ["--help", *(name for p in command.params for name in (*p.opts, *p.secondary_opts))]
    return [word for word in words if re.match(r"--?[a-z]", word) and word.split("=")[0] not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    assert [f"{c}: {fault}" for c in commands(page.read_text()) for fault in faults(c)] == []


def test_the_checker_finds_commands_and_their_faults() -> None:
    found = list(
        commands("```\n$ tidemark plan s.yaml --grpah x\nmake tests   # all\n```\nand `tidemark lunch STUDY`.\n")
    )
    assert found == ["tidemark plan s.yaml --grpah x", "make tests", "tidemark lunch STUDY"]
    assert [faults(command) for command in found] == [["--grpah"], ["tests"], ["lunch"]]


def test_readme_lists_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    assert {line.split()[1] for line in commands(readme) if line.startswith("tidemark ")} >= set(COMMANDS)


def tree() -> list[str]:
    """The paths of the README's tree: the first word of each line, under the folder that it is indented in."""
    block = next(text for _, text in FENCE.findall((ROOT / "README.md").read_text()) if "\ntoolkit/ " in text)
    found, parents = [], [""]
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        path = parents[depth] + line.split()[0]
        parents[depth + 1 :] = [path]
        found.append(path)
    return found


def test_the_tree_is_the_tree() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []
    names = [path.relative_to(ROOT).parts for path in tracked()]
    top = {parts[0] + ("/" if len(parts) > 1 else "") for parts in names}
    rooms = {f"toolkit/{parts[1]}/" for parts in names if parts[0] == "toolkit" and len(parts) > 2}
    assert (top | rooms) - {"README.md"} == set(tree())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())) if "://" not in link]
    dead = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert dead == []


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_plans(path: Path, tmp_path: Path) -> None:
    """What a study asks its user to point to is stood in for by a file: planning looks at its content only.

    A study that takes things from the Hub has to be locked first; tests/hub does that with a stand-in.
    """
    if "job: download" in path.read_text():
        with pytest.raises(ValueError, match="`tidemark lock STUDY`"):
            cells_of(tmp_path, study_file.load(path, locked=False))
        return
    stand_in = tmp_path / "stand-in.txt"
    stand_in.write_text("anything")
    asked = re.findall(r"^  (\w+): \{path: null\}", path.read_text(), re.M)
    cells = cells_of(tmp_path, study_file.load(path, [f"{stage}.path={stand_in}" for stage in asked]))
    assert len(cells) > 10 and len({cell.stage for cell in cells}) > 5


def test_the_readmes_study_plans(tmp_path: Path) -> None:
    study = next(text for kind, text in FENCE.findall((ROOT / "README.md").read_text()) if kind == "yaml")
    (tmp_path / "study.yaml").write_text(study)
    scores = [c for c in cells_of(tmp_path, study_file.load(tmp_path / "study.yaml")) if c.stage == "scores"]
    assert len(scores) == 6


def test_makefile_wants_a_python_that_is_new_enough(tmp_path: Path) -> None:
    """In a folder with a space in its name, with an interpreter that says that it is old, and with none."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        (folder / name).write_text((ROOT / name).read_text())
    old = folder / "old python"
    old.write_text('#!/bin/sh\nexec python3 -c "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])" "$2"\n')
    old.chmod(0o755)
    for python, message in (
        (old, "needs Python 3.11 or newer"),
        ("no-such-python", "there is no 'no-such-python' here"),
    ):
        done = subprocess.run(["make", "install", f"PYTHON={python}"], cwd=folder, capture_output=True, text=True)
        assert done.returncode != 0 and message in done.stderr
        assert not (folder / ".venv").exists()


def example_studies() -> dict[str, str]:
    """File name -> text of the whole studies in docs/study-language.md."""
    text = (ROOT / "docs/study-language.md").read_text()
    return dict(re.findall(r"^```(?:yaml|python)\n# (\S+)\n(.*?)^```$", text, re.M | re.S))


def test_the_example_studies_are_as_large_as_the_page_says(tmp_path: Path) -> None:
    """Stage by stage, against the `plan` that is pasted below each."""
    page = (ROOT / "docs/study-language.md").read_text()
    examples = example_studies()
    assert set(examples) == {"sweep.yaml", "lengths.py"}
    for name, text in examples.items():
        (tmp_path / name).write_text(text)
        cells = cells_of(tmp_path, study_file.load(tmp_path / name))
        pasted = page.split(f"$ tidemark plan {name}\n")[1].split("```")[0]
        told = {line.split()[0]: int(line.split()[2]) for line in pasted.splitlines()[1:] if line and line[0] != " "}
        assert told == {stage: sum(c.stage == stage for c in cells) for stage in {c.stage for c in cells}}
