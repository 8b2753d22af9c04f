"""configs/studies/magpie-tiny.yaml and instruction-pretraining-tiny.yaml in a still smaller form: the real command, real
workers, every stage. What the models learn in so few steps is nothing; that it all fits together is what is tested.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.data.splits import open_split

ROOT = Path(__file__).parents[1]
SMALL_MODEL = (
    "{model_type: olmo2, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "max_position_embeddings: 1024}"
)
WORLD = {"people": 12, "biographies": 6}
MAGPIE = {
    **{f"people.{name}": value for name, value in WORLD.items()},
    "tokenizer.vocab_size": 400,
    "base.architecture": SMALL_MODEL,
    "base.steps": 12,
    "base.warmup": 2,
    "official.steps": 12,
    "drawn.rows": 24,
    "chosen.longest": 8,
    "tuned.epochs": 1,
    "answers.limit": 6,
}
PRETRAINING = {
    **{f"{stage}.{name}": value for stage in ("people", "domain") for name, value in WORLD.items()},
    "general.people": 60,
    "tokenizer.vocab_size": 600,
    "tokens.tokens": "4k",
    "reader.architecture": SMALL_MODEL,
    "reader.steps": 4,
    "reader.warmup": 2,
    "read.limit": 16,
    "synthesizer.epochs": 1,
    "pairs.limit": 8,
    "pairs.max_new_tokens": 24,
    "corpus.raw_skip": 8,
    "corpus_tokens.tokens": "4k",
    "scratch.architecture": SMALL_MODEL,
    "scratch.steps": 4,
    "scratch.warmup": 2,
    "domain_tokens.tokens": "2k",
    "domain_pairs.limit": 6,
    "domain_pairs.max_new_tokens": 24,
    "domain_corpus_tokens.tokens": "1k",
    "continual.steps": 3,
    "tuned.epochs": 1,
    "answers.limit": 4,
    "domain_answers.limit": 4,
}


def launch(study: str, root: Path, sets: dict[str, object]) -> dict[str, Path]:
    """The artifacts by stage; of a stage with axes, any of its cells."""
    words = [f"configs/studies/{study}.yaml", "--root", str(root)]
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    tidemark = Path(sys.executable).with_name("tidemark")
    done = subprocess.run(
        [str(tidemark), "launch", *words, "--workers", "1"],  # one: most cells are shorter than what a worker imports first
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    records = {path: json.loads(path.read_text()) for path in root.glob("artifacts/*/*/artifact.json")}
    return {record["provenance"]["stage"]: path.parent for path, record in records.items()}


def metrics(artifact: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((artifact / "artifact.json").read_text())["metrics"]
    return found


def test_magpie(tmp_path: Path) -> None:
    made = launch("magpie-tiny", tmp_path, MAGPIE)
    assert json.loads((made["drawn"] / "pre_query.json").read_text())["pre_query"] == "User:"
    drawn, chosen = open_split(made["drawn"], "train"), open_split(made["chosen"], "train")
    assert 0 < len(chosen) <= 8 and set(chosen["prompt"]) <= set(drawn["prompt"])
    assert metrics(made["drawn"])["rows"] + metrics(made["drawn"])["empty"] == 24
    conversation = open_split(made["conversations"], "train")[0]["text"]
    assert conversation.startswith("User: Question:") and "\nAssistant: " in conversation
    assert {"base", "official", "tuned", "answers", "quality"} < set(made)


def test_instruction_pretraining(tmp_path: Path) -> None:
    made = launch("instruction-pretraining-tiny", tmp_path, PRETRAINING)
    read = open_split(made["read"], "train")
    assert [prompt.count("<CON>") for prompt in read["prompt"][:4]] == [1, 2, 1, 2], "a text alone, and after another"
    assert all(completion.startswith("<QUE> ") for completion in read["completion"])
    assert metrics(made["pairs"])["texts"] == 8 and metrics(made["domain_pairs"])["texts"] == 6
    corpus = metrics(made["corpus"])
    assert corpus["documents_raw"] == 12 * 6 - 8 and corpus["documents_augmented"] == metrics(made["pairs"])["chains"]
    mixed = metrics(made["domain_corpus"])
    assert mixed["tokens_general"] == pytest.approx(mixed["tokens_rest"], rel=0.1)
    assert {"scratch", "continual", "tuned", "answers", "domain_answers", "quality"} < set(made)
