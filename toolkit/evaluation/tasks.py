"""Load lm-eval tasks and groups, without an index of all that it ships, and refuse those whose scores say nothing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.evaluation.join import Join, Source, input_name

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Tasks and groups by name; those of a group stand among the tasks too."""

    tasks: "Mapping[str, Task]"
    groups: "Mapping[str, Group]"


def load(names: Sequence[str], source: Source, shots: int, seed: int, folder: Path) -> Loaded:
    """Tasks ready for `lm_eval.evaluator.evaluate`, with `shots` demonstrations each drawn by `seed`.

    folder: where the files that join a task and its data are written.

    Raises:
        ValueError: an unknown task, a data set, split or column that is not there, data that no task reads,
            demonstrations that would be rows which are scored, or gold answers that are all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    join = Join(source, shots, folder)
    files = {name: join(name) for name in names}
    idle = sorted(set(source.data) - join.read)
    if idle:
        raise ValueError(f"no task reads the input {input_name(idle[0])!r}; leave it out, or name its task in 'tasks'")
    tasks: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    for name, (path, index) in files.items():
        found = _build(name, path, index)
        twice = sorted(found["tasks"].keys() & tasks.keys())
        if twice:
            raise ValueError(f"task {twice[0]!r} is named twice in 'tasks', once as part of a group: keep one")
        tasks |= found["tasks"]
        groups |= found["groups"]
    for name, task in tasks.items():
        _set_shots(task, name, shots, seed)
        if task.config.process_results is None:  # a task with its own scoring may leave the gold answer empty
            refuse_single_class(name, _golds(task))
    return Loaded(tasks=tasks, groups=groups)


def _build(name: str, path: Path, index: Path | None) -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager

    # A group is found by its name, among the tasks that it names; a single task needs no index.
    folders: list[str | Path] = [str(index), str(path.parent)] if index else []
    manager = TaskManager(include_path=folders or None, include_defaults=False)
    try:
        return manager.load([name if index else str(path)])
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and "Couldn't find cache" not in str(error):
            raise
        # One data set that is not cached would end the run of all tasks with an error that does not name the task.
        raise ValueError(
            f"the data of task {name!r} cannot be read ({type(error).__name__}: {error}); where it is not on this "
            "machine, download it with network first, or leave the task out"
        ) from error


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
        if getattr(task, "multiple_input", 0):  # Winogrande: choices stand in the prompts, and the text is a number
            yield str(task.doc_to_text(doc))
            continue
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
