"""Answers rows with vLLM (its API of 0.33). Runs by path in vLLM's own environment, so it imports nothing of Tidemark.

It reads a line of settings, and then lines of rows, `[{"seed": 1, "tokens": [5, 6]}, ...]`. It writes `{"vllm":
VERSION}` (or `{"missing": WHY}`), and for each line of rows `{"answers": [[TOKENS, ENDED], ...]}` or `{"failed": WHY}`.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Until there are no more lines."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody would read its answers
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get among the answers

    def say(words: dict[str, Any]) -> None:
        out.write(json.dumps(words) + "\n")
        out.flush()

    words = json.loads(sys.stdin.readline())
    try:
        import vllm
    except ImportError as error:
        return say({"missing": str(error)})
    try:
        engine = vllm.LLM(
            model=words["model"],
            dtype=words["dtype"],
            max_model_len=words["max_model_len"],
            tensor_parallel_size=words["tensor_parallel_size"],
            seed=0,  # every row has its own
            generation_config="vllm",  # the model's defaults would fill in what is left open
        )
        say({"vllm": vllm.__version__})
        for line in sys.stdin:
            say({"answers": answer(vllm, engine, json.loads(line), words["sampling"])})
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {error}"})
        raise


def answer(vllm: Any, engine: Any, rows: list[dict[str, Any]], sampling: dict[str, Any]) -> list[Any]:
    """(tokens, whether it ended by itself) of each row."""
    made = engine.generate(
        [{"prompt_token_ids": row["tokens"]} for row in rows],
        [vllm.SamplingParams(**sampling, seed=row["seed"]) for row in rows],
        use_tqdm=False,
    )
    return [[list(one.outputs[0].token_ids), one.outputs[0].finish_reason == "stop"] for one in made]


if __name__ == "__main__":
    main()
