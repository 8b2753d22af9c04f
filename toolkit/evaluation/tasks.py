"""Find lm-eval tasks by name without indexing the 14,000 that it ships, and give the local ones their data.

A task of configs/tasks reads the stage's data artifact. Every other name is looked up among lm-eval's own files. For
each task a small YAML is written that includes the file found and adds what is known only now: the rows, the splits.
"""

import os
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toolkit.data.splits import open_data
from toolkit.lookup import unknown

if TYPE_CHECKING:
    from lm_eval.api.task import Task

OWN = Path(__file__).parents[2] / "configs" / "tasks"
NAMED = re.compile(rb"""^["']?task["']?:[ \t]*["']?([^\s"'#\[\]]+)""", re.M)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the rows of local tasks are: a data artifact, and splits to take instead of those the task file names.

    repo: the repository of the Hub that `data` is a download of; lm-eval's own tasks read it then in the Hub's place.
    """

    data: Path | None = None
    repo: str | None = None
    split: str | None = None
    shots_split: str | None = None


def own() -> dict[str, Path]:
    """Name -> file of the tasks in configs/tasks; the file has the task's name."""
    return {path.stem: path for path in sorted(OWN.glob("*.yaml"))}


def shipped(name: str) -> Path | None:
    """The file in lm-eval that defines task `name`, None if there is none.

    Folders that carry the start of the name come first: the whole tree is 14,000 files, slow on a shared file system.
    """
    root = _root()
    words = name.split("_")
    for end in range(len(words), 0, -1):
        folder = root / "_".join(words[:end])
        if folder.is_dir():
            for path in _files(folder):
                if _task_of(path) == name:
                    return path
    return _shipped().get(name)


@cache
def _shipped() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files(_root()):
        name = _task_of(path)
        if name is not None:
            found.setdefault(name, path)
    return found


def _root() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _files(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.rglob("*.yaml")))


def _task_of(path: Path) -> str | None:
    match = NAMED.search(path.read_bytes())
    return match[1].decode() if match else None


def load(names: Sequence[str], source: Source, shots: int, seed: int, folder: Path) -> dict[str, "Task"]:
    """Tasks ready for `lm_eval.evaluator.evaluate`, by name, with `shots` demonstrations each drawn by `seed`.

    folder: where the files that join a task and its data are written.

    Raises:
        ValueError: an unknown task, a data set, split or column that is not there, demonstrations that would be
            rows which are scored, or gold answers that are all the same.
    """
    from lm_eval.tasks import TaskManager

    folder.mkdir(parents=True, exist_ok=True)
    files = {name: _join(name, source, shots, folder) for name in names}
    manager = TaskManager(include_defaults=False)
    tasks: dict[str, Task] = {}
    for name, path in files.items():
        task = _build(manager, name, path)
        _set_shots(task, name, shots, seed)
        if task.config.process_results is None:  # a task with its own scoring may leave the gold answer empty
            refuse_single_class(name, _golds(task))
        tasks[name] = task
    return tasks


def _join(name: str, source: Source, shots: int, folder: Path) -> Path:
    """Write the YAML that includes the file of task `name` and fills in its data; returns its path."""
    mine = own().get(name)
    if source.repo is not None:
        joined = _downloaded(name, source)
    elif mine is not None and source.data is not None:
        joined = {"include": str(mine), "task": name, **_local(name, mine, source, shots)}
    else:
        path = shipped(name)
        if path is None and mine is not None:
            raise ValueError(f"task {name!r} scores the rows of the input 'data', and this stage has no such input")
        if path is None:
            message = unknown("task", name, {*own(), *_near(name)})
            raise ValueError(f"{message} (those of configs/tasks, and the nearest of lm-eval's {len(_shipped())})")
        joined = {"include": str(path), "task": name}
    target = folder / f"{name}.yaml"
    part = folder / f".{name}.{uuid.uuid4().hex}.part"
    part.write_text(yaml.safe_dump(joined))
    os.replace(part, target)
    return target


def _downloaded(name: str, source: Source) -> dict[str, Any]:
    """What lm-eval's own task gets where its data set was downloaded: the folder, at the commit of the study."""
    from lm_eval.tasks._yaml_loader import load_yaml

    path = shipped(name)
    wanted = load_yaml(path, resolve_func=False).get("dataset_path") if path is not None else None
    if wanted != source.repo:
        reads = f"reads {wanted}" if wanted else "is none of lm-eval's own"
        raise ValueError(
            f"task {name!r} {reads}, and the input 'data' is a download of {source.repo}: give the task its own data"
        )
    splits = {"test_split": source.split, "fewshot_split": source.shots_split}
    chosen = {key: split for key, split in splits.items() if split is not None}
    return {"include": str(path), "task": name, "dataset_path": str(source.data), **chosen}


def _near(name: str) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, _shipped(), n=3, cutoff=0.8)


def _local(name: str, path: Path, source: Source, shots: int) -> dict[str, Any]:
    """What a task of configs/tasks gets from the stage: the folder, the splits; checked against the rows there are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    assert source.data is not None
    config, data = load_yaml(path, resolve_func=False), open_data(source.data)
    splits = {"test_split": source.split or config["test_split"]}
    # lm-eval reads the demonstrations' split even when it takes none from it: leave it out where there need not be one.
    splits["fewshot_split"] = (source.shots_split or config["fewshot_split"]) if shots else None
    for split in filter(None, splits.values()):
        if split not in data:
            raise ValueError(f"task {name!r}, data {source.data}: {unknown('split', split, data)}")
        missing = [c for c in config["metadata"]["columns"] if c not in data[split].column_names]
        if missing:
            raise ValueError(
                f"task {name!r} needs a column {missing[0]!r}, and split {split!r} of {source.data} has "
                f"{sorted(data[split].column_names)}"
            )
    return {"dataset_kwargs": {"folder": str(source.data)}, **splits}


def _build(manager: Any, name: str, path: Path) -> "Task":
    try:
        loaded = manager.load([str(path)])["tasks"]
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and "Couldn't find cache" not in str(error):
            raise
        # One data set that is not cached would end the run of all tasks with an error that does not name the task.
        raise ValueError(
            f"the data of task {name!r} cannot be read ({type(error).__name__}: {error}); where it is not on this "
            "machine, download it with network first, or leave the task out"
        ) from error
    task: Task = loaded[name]
    return task


def _set_shots(task: "Task", name: str, shots: int, seed: int) -> None:
    scored, demonstrated = _splits(task)
    if shots and scored == demonstrated:
        raise ValueError(
            f"task {name!r} would take its demonstrations from {scored!r}, the split that is scored; set shots: 0, or "
            "name another split (shots_split)"
        )
    if shots and task.get_config("num_fewshot") == 0:
        raise ValueError(f"task {name!r} is defined for 0 shots only, not {shots}")
    sampler = getattr(task, "sampler", None)
    have = len(sampler.df) if sampler is not None else shots
    if have < shots:
        raise ValueError(f"task {name!r}: {shots} shots, and {demonstrated!r} has only {have} rows")
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=seed)


def _splits(task: "Task") -> tuple[str, str]:
    """The split that is scored and where demonstrations come from, by lm-eval's rules."""
    config = task.config
    scored = config.test_split or config.validation_split
    few = config.fewshot_config
    if few is not None and few.split is not None:
        return scored, few.split
    if few is not None and few.samples is not None:
        return scored, "samples of the task file"
    return scored, config.training_split or config.validation_split or config.test_split


def _golds(task: "Task") -> Iterator[str]:
    """The right answers of the scored rows as text, one by one."""
    for doc in task.eval_docs:
        gold = task.doc_to_target(doc)
        if task.OUTPUT_TYPE == "multiple_choice" and isinstance(gold, int) and task.config.doc_to_choice is not None:
            choices = task.doc_to_choice(doc)
            gold = choices[gold] if gold < len(choices) else gold
        yield str(gold)


def refuse_single_class(name: str, golds: Iterator[str]) -> None:
    """Stop where all gold answers are one and the same: a model that always says it would score 1.

    Raises:
        ValueError: there are two rows or more and a single answer.
    """
    first = next(golds, None)
    count = 1
    for gold in golds:
        if gold != first:
            return
        count += 1
    if first is not None and count > 1:
        raise ValueError(
            f"all {count} rows of {name!r} have the same gold answer {first!r}: a score on them says nothing; check "
            "how the data was filtered"
        )
