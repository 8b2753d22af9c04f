"""Data sets in the shape that tasks read: rows as the project prepares them, downloads as the Hub has them."""

import json
from pathlib import Path
from typing import Any

import yaml

from toolkit.stage import Artifact

LABELS = ["entailment", "neutral", "contradiction"]


def download(folder: Path, repo: str, **configs: dict[str, list[dict[str, Any]]]) -> Artifact:
    """Rows in files by configuration and split, and a README that says which are whose."""
    folder.mkdir(parents=True)
    said = []
    for name, splits in configs.items():
        files = []
        for split, rows in splits.items():
            (folder / f"{name}-{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
            files.append({"split": split, "path": f"{name}-{split}.jsonl"})
        said.append({"config_name": name, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': said})}---\n")
    return Artifact(path=folder, record={"spec": {"repo": repo}})


def nli(count: int) -> list[dict[str, Any]]:
    """Pairs of texts in two formats."""
    return [
        {
            "prompt": f"### Input_1: {i} is\n ### Input_2: {i % 3}\n ### Inference:",
            "completion": f" {LABELS[i % 3]}",
            "prompt_instruct": f"Text 1: {i} is. Text 2: {i % 3}. The relation is",
            "gold": LABELS[i % 3],
            "choices": LABELS,
            "gold_index": i % 3,
        }
        for i in range(count)
    ]


def questions(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Questions with four choices."""
    return [
        {
            "question": f"Where was number {i} born?",
            "prompt": f"Question: Where was number {i} born?\nAnswer:",
            "choices": ["Paris", "Lima", "Oslo", f"In {i}"],
            "gold_index": i % 4,
            "gold": ["Paris", "Lima", "Oslo", f"In {i}"][i % 4],
        }
        for i in range(first, first + count)
    ]
