"""vLLM in a process and an environment of its own: rows and answers go through its standard input and output, a line of
JSON for each batch. `vllm_driver.py` is what runs there.

A node's GPUs are shared out among the ranks; vLLM spreads a model over those of one (`processes: 1` for a large one).
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from toolkit.generation.engine import Answer, Decoding, read
from toolkit.generation.models import DTYPES, Precision
from toolkit.generation.rows import Row
from toolkit.manifest.files import write_atomic
from toolkit.stage import Resources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DRIVER = Path(__file__).with_name("vllm_driver.py")
BATCH_TOKENS = 1 << 20  # of one call: vLLM forms its own batches, and wants many rows to choose from
VERSION = "engine.json"  # in the state folder: which vLLM made the answers


def check_python(python: str | None) -> str:
    """The interpreter of vLLM's environment.

    Raises:
        ValueError: none is named, or it is no program.
    """
    if python is None:
        raise ValueError(
            "engine is vllm, and nothing says where vLLM is installed: give the python of its environment as `vllm:` in"
            " the profile's jobs (generate: {shape: one, vllm: /envs/vllm/bin/python}) or in the stage's resources"
        )
    if shutil.which(python) is None:
        raise ValueError(f"resources.vllm is {python}, which is no program on this node; name the python of vLLM's env")
    return python


def settings(model: Path, precision: Precision, context: int | None, how: Decoding) -> dict[str, Any]:
    """What the driver is told first."""
    return {
        "model": str(model.resolve()),
        "dtype": DTYPES[precision],
        "max_model_len": context,
        "sampling": {
            "max_tokens": how.max_new_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "stop": list(how.stop),
            "stop_token_ids": list(how.ends),
        },
    }


def seed_of(seed: int, row: int) -> int:
    """A row's own seed, whatever rows are beside it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{row}".encode(), digest_size=7).digest())


class Driver:
    """One vLLM process, for one rank; it ends when this process does."""

    def __init__(
        self, resources: Resources, rank: int, words: dict[str, Any], tokenizer: "PreTrainedTokenizerBase",
        how: Decoding, state: Path,
    ) -> None:  # fmt: skip
        python = check_python(resources.vllm)
        self.tokenizer, self.how = tokenizer, how
        gpus = _share(rank, resources.processes)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        self._process = subprocess.Popen(
            [python, "-I", str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._say({**words, "tensor_parallel_size": max(1, len(gpus))})
        told = self._hear()
        if "missing" in told:
            raise ValueError(f"resources.vllm is {python}, and there is no vLLM in its environment: {told['missing']}")
        write_atomic(state / VERSION, json.dumps({"engine": "vllm", **told}).encode())

    def answer(self, batch: list[Row]) -> list[Answer]:
        """One answer a row, in the order of the rows."""
        self._say([{"seed": seed_of(self.how.seed, row.id), "tokens": row.tokens} for row in batch])
        answers = []
        for row, (tokens, stopped) in zip(batch, self._hear()["answers"], strict=True):
            ended = stopped and not set(tokens) & set(self.how.ends)  # by a string
            answers.append(read(row, tokens, len(tokens) if ended else None, self.tokenizer, self.how))
        return answers

    def _say(self, words: Any) -> None:
        stream: IO[str] | None = self._process.stdin
        assert stream is not None
        try:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
        except BrokenPipeError:
            pass  # it is dead; what it said last is heard next

    def _hear(self) -> Any:
        """A line of the driver.

        Raises:
            RuntimeError: it failed, or is gone; its last words stand in the log.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        told = json.loads(line) if line.endswith("\n") else {"failed": f"it ended with code {self._process.wait()}"}
        if "failed" in told:
            raise RuntimeError(f"vLLM failed: {told['failed']}; what it printed stands in the log of this attempt")
        return told


def _share(rank: int, processes: int) -> list[str]:
    """The GPUs of this rank, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    if not visible or not torch.cuda.device_count():
        return []
    each = max(1, len(visible) // processes)
    start = rank * each % len(visible)
    return visible[start : start + each]
