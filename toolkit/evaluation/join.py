"""Join a task's file and its data: a small YAML that includes the file (see `names`) and adds what is known only now:
the rows, the splits, the format. Rows and downloads come from the stage's inputs `data` and `data.NAME`.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from toolkit.data.splits import open_data
from toolkit.evaluation.names import Own, all_shipped, near, own, root, shipped
from toolkit.lookup import unknown

DEFAULT = "default"  # the format that `prompt` is in
HELD_OUT, TRAINED_ON = "heldout", "train"  # the splits of a data set that does not have those its task file names


@dataclass(frozen=True, kw_only=True)
class Given:
    """A data artifact: rows, or where `repo` is set the download of that data set of the Hub."""

    path: Path
    repo: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What tasks may read, by the NAME of `data.NAME` ("" for `data`), and what to take of it.

    split, shots_split: instead of those the task file names. format: of the prompts.
    """

    data: Mapping[str, Given] = field(default_factory=dict)
    split: str | None = None
    shots_split: str | None = None
    format: str = DEFAULT


def input_name(label: str) -> str:
    return f"data.{label}" if label else "data"


class Join:
    """Writes the YAML that includes the file of a task and fills in its data; returns it, and the folder whose tasks it
    may name. `read`: the labels of data that were used."""

    def __init__(self, source: Source, shots: int, folder: Path) -> None:
        self.source, self.shots, self.folder = source, shots, folder
        self.read: set[str] = set()

    def __call__(self, name: str) -> tuple[Path, Path | None]:
        mine = self._own(name)
        label = self._rows(name, mine) if mine is not None else None
        if mine is not None and "group" in mine.config:
            for child in mine.config["task"]:
                self(child)
            return self._write(name, {"include": str(mine.file), "group": name}), self.folder
        if mine is not None and label is not None:
            self.read.add(label)
            includes = [str(path) for path in (mine.file, mine.form) if path is not None]
            return self._write(name, {"include": includes, "task": name, **self._local(name, mine, label)}), None
        path = shipped(name)
        if path is None and mine is not None:
            asked = input_name(mine.config["metadata"].get("data", ""))
            raise ValueError(
                f"task {name!r} scores the rows of the input {asked!r}, and this stage has no such input"
                + (f" (it has {self._have()})" if self.source.data else "")
            )
        if path is None:
            valid = {task.file.stem for task in own().values()}
            message = unknown("task", name, {*valid, *near(name)})
            raise ValueError(f"{message} (those of configs/tasks, and the nearest of lm-eval's {len(all_shipped())})")
        return self._shipped(name, path)

    def _own(self, name: str) -> Own | None:
        """The task of configs/tasks, in the format that the stage asks for."""
        mine, wanted = own().get(name), self.source.format
        if mine is None or wanted == DEFAULT or "group" in mine.config:
            return mine
        known = [DEFAULT, *mine.config["metadata"].get("formats", [])]
        if mine.format or wanted not in known:
            taken = f"its name says {mine.format!r} already" if mine.format else unknown("format", wanted, known)
            raise ValueError(f"the format of task {name!r}: {taken}")
        return Own(file=mine.file, config=mine.config, format=wanted, form=mine.form)

    def _rows(self, name: str, mine: Own) -> str | None:
        """The label of the rows that are this task's: its own name, its file's, its data set's, or none."""
        labels = (name, mine.file.stem, mine.config["metadata"].get("data", ""), "")
        data = self.source.data
        return next((label for label in labels if label in data and data[label].repo is None), None)

    def _local(self, name: str, mine: Own, label: str) -> dict[str, Any]:
        """The folder and the splits, checked against the rows that there are."""
        from lm_eval.tasks._yaml_loader import load_yaml

        path, config = self.source.data[label].path, dict(mine.config)
        if mine.form is not None:
            config |= load_yaml(mine.form, resolve_func=False)
        data = open_data(path)
        scored = _split(self.source.split, mine.config["test_split"], HELD_OUT, data)
        # lm-eval reads the demonstrations' split even when it takes none from it: leave it out where none is needed.
        shown = _split(self.source.shots_split, mine.config["fewshot_split"], TRAINED_ON, data)
        splits = {"test_split": scored, "fewshot_split": shown if self.shots else None}
        columns = [
            f"prompt_{mine.format}" if mine.format and c == "prompt" else c for c in config["metadata"]["columns"]
        ]
        for split in filter(None, splits.values()):
            if split not in data:
                raise ValueError(f"task {name!r}, data {path}: {unknown('split', split, data)}")
            missing = [column for column in columns if column not in data[split].column_names]
            if missing:
                raise ValueError(
                    f"task {name!r} needs a column {missing[0]!r}, and split {split!r} of {path} has "
                    f"{sorted(data[split].column_names)}"
                )
        return {"dataset_kwargs": {"folder": str(path), "format": mine.format}, **splits}

    def _shipped(self, name: str, path: Path) -> tuple[Path, Path | None]:
        """lm-eval's own task or group, on the download of its data set where there is one: at the study's commit."""
        from lm_eval.tasks._yaml_loader import load_yaml

        if self.source.format != DEFAULT:
            raise ValueError(f"task {name!r} is lm-eval's own and has one format: {self.source.format!r} is not for it")
        config = load_yaml(path, resolve_func=False)
        kind, index = ("group", _index_of(config, path)) if "group" in config else ("task", None)
        joined: dict[str, Any] = {"include": str(path), kind: name}
        downloads = {label: given for label, given in self.source.data.items() if given.repo is not None}
        if downloads:
            repos = _repos(config, index)
            fits = [label for label, given in downloads.items() if {given.repo} == repos]
            label = name if name in fits else fits[0] if len(fits) == 1 else None
            if label is None:
                raise ValueError(
                    f"task {name!r} reads {' and '.join(sorted(repos))}, and this stage has {self._have()}: give the "
                    f"task its own download as {input_name(name)!r}"
                    + (", or name the tasks of the group" if len(repos) > 1 else "")
                )
            self.read.add(label)
            joined["dataset_path"] = str(downloads[label].path)
            splits = {"test_split": self.source.split, "fewshot_split": self.source.shots_split}
            joined |= {key: split for key, split in splits.items() if split is not None}
        return self._write(name, joined), index

    def _have(self) -> str:
        return ", ".join(
            f"{input_name(label)} ({f'a download of {given.repo}' if given.repo else 'rows'})"
            for label, given in self.source.data.items()
        )

    def _write(self, name: str, joined: Mapping[str, Any]) -> Path:
        target = self.folder / f"{name}.yaml"
        part = self.folder / f".{name}.{uuid.uuid4().hex}.part"
        part.write_text(yaml.safe_dump(dict(joined)))
        os.replace(part, target)
        return target


def _split(chosen: str | None, named: str, common: str, data: Mapping[str, Any]) -> str:
    """The split that was chosen, else the one the task file names, else the common one if the rows have only that."""
    return chosen or (common if named not in data and common in data else named)


def _index_of(config: Mapping[str, Any], path: Path) -> Path:
    """The smallest folder around a group's file whose tasks include all that the group names."""
    from lm_eval.tasks._index import TaskIndex

    for folder in path.parents:
        if folder == root() or all(entry for _, entry in _entries(config, TaskIndex.build([folder]))):
            break
    return folder


def _entries(config: Mapping[str, Any], index: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, entry of lm-eval's index or None) of the tasks of a group, those of its groups and tags included."""
    for member in config["task"]:
        name = member if isinstance(member, str) else member.get("task", member.get("group"))
        entry = index.get(name)
        if entry is not None and entry.tags and not entry.cfg:
            yield from ((tagged, index[tagged]) for tagged in sorted(entry.tags))
        elif entry is not None and "group" in (entry.cfg or {}):
            yield from _entries(entry.cfg, index)
        elif entry is not None or isinstance(member, str):
            yield name, entry


def _repos(config: Mapping[str, Any], index: Path | None) -> set[str]:
    """The data sets of the Hub that lm-eval's task or group reads."""
    from lm_eval.tasks._index import TaskIndex

    if index is None:
        return {str(config.get("dataset_path"))}
    return {str(entry.cfg.get("dataset_path")) for _, entry in _entries(config, TaskIndex.build([index]))}
