"""The command line as a user of the stand-in meets it, and tiny real models to put there."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.hub.standin import Standin
from tests.toolkit.training.small import OLMO, tokenizer

ROOT = Path(__file__).parents[2]
UNSHARE = ("unshare", "-n")  # a network namespace of its own, in which not even loopback is up; for root alone
CUT_OFF = UNSHARE if subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0 else ()


class Desk:
    """A folder with a study and a root, and the commands run there."""

    def __init__(self, folder: Path, hub: Standin) -> None:
        self.folder, self.hub = folder, hub
        self.study = folder / "study.yaml"
        self.root = folder / "root"
        self.env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_OFFLINE": "1",  # for what fetches behind one's back; these commands are asked to
            "NO_COLOR": "1",
            "TIDEMARK_ROOT": str(self.root),
        }

    def write(self, stages: Mapping[str, Any]) -> None:
        self.study.write_text(json.dumps({"name": "study", "stages": stages}, indent=1))  # JSON is YAML

    def words(self, *words: object, before: Sequence[str] = ()) -> list[str]:
        return [*before, sys.executable, "-m", "slurm.cli", *map(str, words)]

    def said(self, *words: object, code: int = 0, before: Sequence[str] = (), **env: str) -> str:
        """What a command prints to both streams, in one line; it must exit with `code`."""
        done = subprocess.run(
            self.words(*words, before=before), env={**self.env, **env}, cwd=self.folder, capture_output=True, text=True, timeout=300
        )  # fmt: skip
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return " ".join((done.stdout + done.stderr).split())

    def json(self, *words: object) -> Any:
        done = subprocess.run(
            self.words(*words, "--json"), env=self.env, cwd=self.folder, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    def records(self, job: str = "download") -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.root.glob(f"artifacts/{job}/*/artifact.json"))]


def tiny_model(folder: Path, seed: int) -> dict[str, bytes]:
    """The files of an OLMo-2 of 60,000 parameters with its tokenizer; another seed has other weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    words = {key: value for key, value in OLMO.items() if key != "model_type"}
    config = AutoConfig.for_model(OLMO["model_type"], **words, vocab_size=280, eos_token_id=0, pad_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}
