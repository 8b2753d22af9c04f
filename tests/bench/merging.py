"""Delta merge of a 1B-shaped model beside copying the same bytes, a script that loads everything, and mergekit.

    python -m tests.bench.merging [--small] [--threads 2] [--rounds 5] [--mergekit PYTHON]

Three models (bf16, 2.5 GB each, random weights, in one, one and two files) are made in a temporary folder: 13 GB of disk.
Every way is a process of its own, in turn; seconds are the median of the rounds, imports left out, from a warm page cache;
nobody waits for the disk (no fsync). The copies read all three models and write one, in one thread and in as many as the
others, in pieces of 64 KB, the size that was fastest of those from 64 KB to 4 MB. --mergekit: the python of an environment
with mergekit, whose task arithmetic has the same result.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench.convert import measure

ROLES = ("trained", "base", "instruct")
SHAPE = {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
         "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}  # fmt: skip
SMALL = SHAPE | {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
COPIED = 1 << 16
MERGEKIT = (
    "import sys, time, json, yaml\n"
    "from mergekit.config import MergeConfiguration\nfrom mergekit.merge import run_merge\n"
    "from mergekit.options import MergeOptions\n"
    "config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))\n"
    "start = time.perf_counter()\n"
    "run_merge(config, sys.argv[2], MergeOptions(copy_tokenizer=False, quiet=True))\n"
    "print(); print(json.dumps(time.perf_counter() - start))\n"
)


def make(folder: Path, shape: dict[str, Any]) -> None:
    """The three model folders; tokenizer and all."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.toolkit.training.small import tokenizer

    config = LlamaConfig(**shape, max_position_embeddings=4096, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in LlamaForCausalLM(config).named_parameters()}
    random = torch.Generator().manual_seed(0)
    for role in ROLES:
        out = folder / role
        config.save_pretrained(out)
        tokenizer(out)
        tensors = {
            n: torch.empty(s, dtype=torch.bfloat16).normal_(0, 0.02, generator=random) for n, s in shapes.items()
        }
        if role != "instruct":
            save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
            continue
        names, where = list(tensors), {}
        for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
            file = f"model-{number:05d}-of-00002.safetensors"
            save_file({n: tensors[n] for n in part}, out / file, metadata={"format": "pt"})
            where |= dict.fromkeys(part, file)
        (out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def copy(base: Path, out: Path, threads: int) -> None:
    """Read the three, write the first."""
    waiting = iter(
        (path, at, role == ROLES[0])
        for role in ROLES
        for path in sorted((base / role).glob("*.safetensors"))
        for at in range(0, path.stat().st_size, COPIED)
    )
    files = {path: os.open(path, os.O_RDONLY) for role in ROLES for path in (base / role).glob("*.safetensors")}
    target = os.open(out / "model.safetensors", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(target, 0, (base / ROLES[0] / "model.safetensors").stat().st_size)
    places = list(waiting)

    def work(number: int) -> None:
        buffer = memoryview(bytearray(COPIED))
        for path, at, kept in places[number::threads]:
            got = os.preadv(files[path], [buffer], at)
            if kept:
                os.pwrite(target, buffer[:got], at)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def merge(base: Path, out: Path, threads: int, weights: bool) -> None:
    """The method, with its checks and the files beside the weights."""
    from toolkit.merging.methods.delta import Inputs, Spec, run
    from toolkit.stage import Artifact, Context, Resources

    inputs = Inputs(**{role: Artifact(path=base / role) for role in ROLES})
    ctx = Context(state=out, resources=Resources(threads=threads))
    run(Spec(method="delta", weights=weights), inputs, out, ctx)


def naive(base: Path, out: Path, threads: int) -> None:
    """What a script does: three models in memory, a loop over their parameters in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    models = [AutoModelForCausalLM.from_pretrained(base / role, dtype=torch.bfloat16) for role in ROLES]
    with torch.no_grad():
        for (_, t), (_, b), (_, i) in zip(*(model.named_parameters() for model in models), strict=True):
            t.copy_(t.float() + (i.float() - b.float()))
    models[0].save_pretrained(out)


def child(name: str, base: Path, out: Path, threads: int) -> None:
    """Run one of the ways and print its seconds; what has to be imported for it comes before the clock.

    The copies import as much: memory that the last way left is taken from the machine for seconds, which costs whoever
    writes meanwhile.
    """
    if name in ("copy", "merge", "report"):
        from jobs.merge import WARM

        for module in WARM:
            importlib.import_module(module)
    elif name == "naive":
        from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    start = time.perf_counter()
    if name == "copy":
        copy(base, out, threads)
    elif name == "naive":
        naive(base, out, threads)
    else:
        merge(base, out, threads, name == "report")
    print(json.dumps(time.perf_counter() - start))


def recipe(base: Path, precision: str) -> Path:
    """The same merge as mergekit's task arithmetic: base + (trained - base) + (instruct - base)."""
    models = [f"  - {{model: {base / role}, parameters: {{weight: 1.0}}}}" for role in ("trained", "instruct")]
    text = f"merge_method: task_arithmetic\nbase_model: {base / 'base'}\ndtype: {precision}\nout_dtype: bfloat16\nmodels:\n"
    path = base / f"{precision}.yaml"
    path.write_text(text + "\n".join(models) + "\n")
    return path


def warm(base: Path) -> None:
    """Every byte of the models in the page cache."""
    for path in base.glob("*/*.safetensors"):
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def rows(base: Path, threads: int, rounds: int, mergekit: str) -> Iterator[tuple[str, float, float, float]]:
    """(way, median seconds, worst, peak GB), ways in turn."""
    own = [sys.executable, "-m", "tests.bench.merging"]
    out = base / "out"
    ways = {name: [*own, name, str(base), str(out), str(threads)] for name in ("copy", "merge", "report", "naive")}
    ways = {"copy, 1 thread": [*own, "copy", str(base), str(out), "1"], **ways}
    if mergekit:
        for precision in ("bfloat16", "float32"):
            ways[f"mergekit {precision}"] = [mergekit, "-c", MERGEKIT, str(recipe(base, precision)), str(out)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, words in ways.items():
            warm(base)
            seconds, _, peak = measure(words, out)
            assert seconds is not None, name
            found[name].append((seconds, peak))
            print(f"{name}: {seconds:.2f} s", file=sys.stderr)
    for name, times in found.items():
        seconds_ = [seconds for seconds, _ in times]
        yield name, statistics.median(seconds_), max(seconds_), max(peak for _, peak in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="models of 5 M parameters")
    parser.add_argument("--threads", type=int, default=2, help="of every way")
    parser.add_argument("--rounds", type=int, default=5, help="times that every way is run")
    parser.add_argument("--mergekit", default="", help="python of an environment with mergekit")
    options = parser.parse_args()
    if options.way:
        name, base, out, threads = options.way
        return child(name, Path(base), Path(out), int(threads))
    if options.mergekit and subprocess.run([options.mergekit, "-c", "import mergekit"], capture_output=True).returncode:
        parser.error(f"{options.mergekit} has no mergekit: pip install mergekit==0.1.5 there")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        # Made in a process of its own: the others would inherit its peak memory.
        shape = SMALL if options.small else SHAPE
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(base, shape))
        maker.start()
        maker.join()
        size = (base / "base" / "model.safetensors").stat().st_size
        print(f"3 x {size / 1e9:.2f} GB read, {size / 1e9:.2f} GB written, {options.threads} threads")
        if not options.mergekit:
            print("mergekit is left out: --mergekit PYTHON says where it is")
        print(
            "\n| way | seconds (worst) | of the copy in 1 | in as many | peak memory GB |\n| --- | --- | --- | --- | --- |"
        )
        found = list(rows(base, options.threads, options.rounds, options.mergekit))
        one, many = found[0][1], found[1][1]
        for name, seconds, worst, peak in found:
            ratios = f"{seconds / one:.2f} | {seconds / many:.2f}"
            print(f"| {name} | {seconds:.2f} ({worst:.2f}) | {ratios} | {peak:.2f} |", flush=True)
        shutil.rmtree(base / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
