"""What a trivial stage costs in a warm worker beyond its own work, against a fresh interpreter with the same imports.

    python -m tests.bench.overhead

The overhead of a cell is the time from the end of the one before it (in the worker's log) to its own end, less the
seconds that `run` took: claim, fork, digests and fsync of what was made, record, rename, log. Medians.
"""

import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.planning import TIDEMARK, TINY, seconds, write
from toolkit.manifest.log import Reader
from toolkit.study import Stage, Study

CELLS = 20
MOST = 0.3  # seconds


def save_model(folder: Path) -> None:
    """A tiny OLMo-2 with a tokenizer, in Hugging Face format."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    from toolkit.data import bpe

    words = {key: value for key, value in TINY.items() if key != "model_type"}
    config = Olmo2Config(**words, vocab_size=258, eos_token_id=0, pad_token_id=1, bos_token_id=None)
    Olmo2ForCausalLM(config).save_pretrained(folder)
    special = ("<|endoftext|>", "<|pad|>")
    tokenizer = bpe.train(
        [["one text"]], vocab_size=258, min_frequency=2, special=special, bos=None, split_digits=False
    )
    bpe.save(tokenizer, folder, eos=special[0], pad=special[1], bos=None, chat_template="none")


def studies(base: Path) -> list[Study]:
    """Twenty cells each of two trivial stages: one whose job needs datasets and transformers, one that needs torch."""
    save_model(base / "model0")
    for i in range(1, CELLS):
        shutil.copytree(base / "model0", base / f"model{i}")
        (base / f"model{i}" / "README.md").write_text(str(i))  # other content is another artifact
    seeds = {"seed": list(range(CELLS))}
    people = Stage(job="prepare", spec={"dataset": "bios", "people": 4}, axes=seeds)
    sources = {f"model{i}": Stage(path=str(base / f"model{i}")) for i in range(CELLS)}
    models = {f"cell{i}": Stage(job="convert", inputs={"source": f"model{i}"}) for i in range(CELLS)}
    return [Study(name="prepare", stages={"cell": people}), Study(name="convert", stages={**sources, **models})]


def spent(root: Path, study: str) -> list[tuple[float, float]]:
    """(seconds of `run`, seconds beyond) of each cell but the first, which pays for the imports."""
    events = [e for e in Reader(root, study).new_events() if e["event"] in ("committed", "worker-started")]
    events.sort(key=lambda event: event["time"])
    records = [json.loads(path.read_text()) for path in root.glob("artifacts/*/*/artifact.json")]
    own = {record["fingerprint"]: record["provenance"]["seconds"] for record in records if "source" not in record}
    pairs = list(zip(events, events[1:]))[1:]
    return [(own[b["fingerprint"]], b["time"] - a["time"] - own[b["fingerprint"]]) for a, b in pairs]


def main() -> None:
    """Print two rows a job."""
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        for study in studies(base):
            root, file = base / study.name, write(study, base / f"{study.name}.yaml")
            subprocess.run([TIDEMARK, "launch", file, "--root", str(root)], check=True, capture_output=True)
            own, beyond = zip(*spent(root, study.name))
            warm = importlib.import_module(f"jobs.{study.name}").WARM
            fresh = [sys.executable, "-c", f"import {', '.join(warm)}"]
            cold, cost = seconds(lambda: subprocess.run(fresh, check=True), 5), statistics.median(beyond)
            print(
                f"| a trivial {study.name} in a warm worker ({len(own)} cells, {statistics.median(own):.3f} s each), over"
                f" its own work | {cost:.3f} s, at most {max(beyond):.3f} | {MOST} s |"
            )
            print(
                f"| a fresh interpreter that imports {', '.join(warm)} | {cold:.2f} s, {cold / cost:.0f} times that | |"
            )


if __name__ == "__main__":
    main()
