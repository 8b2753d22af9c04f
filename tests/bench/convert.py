"""Converting a 1B-shaped OLMo original, against copying its bytes; cold and warm cache, with the peak memory of each.

    python -m tests.bench.convert [--small] [--reference "COMMAND with {source} and {out}"]

The original (fp32, 4.7 GB, random) is made here; 15 GB of disk are needed. `stream` writes the folder, `job` checks,
proves and measures it as well. Each is a process of its own; seconds are the median of five (`job`: one), imports left out.
--reference times another converter in the same run, its imports included.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROUNDS = 5
SHAPE = {"d_model": 2048, "n_heads": 16, "n_layers": 16, "mlp_hidden_size": 16384, "embedding_size": 50304}
SMALL = {"d_model": 256, "n_heads": 4, "n_layers": 4, "mlp_hidden_size": 2048, "embedding_size": 5120}
REST = {
    "vocab_size": 5000, "rope": True, "include_bias": False, "layer_norm_with_affine": False, "weight_tying": True,
    "max_sequence_length": 2048, "eos_token_id": 0, "pad_token_id": 1, "multi_query_attention": False,
}  # fmt: skip
RATIO, SHARDS = 1.5, 1.5  # what is promised: of a copy's seconds, of a shard's bytes


def make(folder: Path, shape: dict[str, int]) -> None:
    """config.yaml and model.pt."""
    import torch
    import yaml

    width, hidden, rows = shape["d_model"], shape["mlp_hidden_size"], shape["embedding_size"]
    state = {"transformer.wte.weight": torch.randn(rows, width) * 0.02}
    for n in range(shape["n_layers"]):
        sizes = {"att_proj": (3 * width, width), "attn_out": (width, width), "ff_proj": (hidden, width)}
        for name, size in (sizes | {"ff_out": (width, hidden // 2)}).items():
            state[f"transformer.blocks.{n}.{name}.weight"] = torch.randn(size) * 0.02
    folder.mkdir()
    torch.save(state, folder / "model.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {**shape, **REST}}))


def copy(source: Path, out: Path) -> None:
    """The same bytes, as the standard library copies them."""
    shutil.copyfile(source / "model.pt", out / "model.pt")


def stream(source: Path, out: Path) -> None:
    """The conversion alone."""
    from toolkit.conversion import original
    from toolkit.conversion.convert import write

    kind = original.find(source)
    assert kind is not None
    write(kind.read(source), out, None, report=lambda done, total: None)


def job(source: Path, out: Path) -> None:
    """The job: conversion, checks, proof, bits."""
    from jobs import convert
    from toolkit.stage import Artifact, Context

    inputs = convert.Inputs(source=Artifact(path=source))
    convert.run(convert.Spec(), inputs, out, Context(state=out))


def warm(source: Path) -> None:
    """Every byte of the original in the page cache."""
    with open(source / "model.pt", "rb") as file:
        while file.read(1 << 24):
            pass


def cold(source: Path) -> None:
    """None of them."""
    with open(source / "model.pt", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(name: str, source: Path, out: Path) -> None:
    """Run one of the ways and print its seconds; heavy imports come before the clock."""
    import torch
    from transformers import OlmoForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    start = time.perf_counter()
    {"copy": copy, "stream": stream, "job": job}[name](source, out)
    print(json.dumps(time.perf_counter() - start))


def measure(words: list[str], out: Path) -> tuple[float | None, float, float]:
    """(what the process printed last, its wall seconds, its peak memory in GB)."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()  # what others wrote is not paid for here
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(words, stdout=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        said.seek(0)
        lines = said.read().splitlines()
    assert status == 0, words
    own = float(lines[-1]) if lines and lines[-1].replace(".", "").isdigit() else None
    return own, wall, usage.ru_maxrss * 1024 / 1e9


def rows(source: Path, base: Path, reference: str | None) -> Iterator[tuple[str, str, float, float, float]]:
    """(way, cache, median seconds, worst, peak GB)."""
    ways = {name: [sys.executable, "-m", "tests.bench.convert", name] for name in ("copy", "stream", "job")}
    for cache, prepare in (("warm", warm), ("cold", cold)):
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(ROUNDS):
            for name, words in ways.items():
                if name == "job" and turn:
                    continue
                prepare(source)
                seconds, _, peak = measure([*words, str(source), str(base / "out")], base / "out")
                assert seconds is not None
                found[name].append((seconds, peak))
        for name, times in found.items():
            seconds_ = [seconds for seconds, _ in times]
            yield name, cache, statistics.median(seconds_), max(seconds_), max(peak for _, peak in times)
    if reference:
        warm(source)
        words = shlex.split(reference.format(source=source, out=base / "out"))
        _, wall, peak = measure(words, base / "out")
        yield "reference", "warm", wall, wall, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="a model of 13 M parameters")
    parser.add_argument("--reference", help="command of another converter")
    options = parser.parse_args()
    if options.way:
        name, source, out = options.way
        return child(name, Path(source), Path(out))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        # Made in a process of its own: the others would inherit its peak memory.
        maker = multiprocessing.get_context("spawn").Process(
            target=make, args=(base / "original", SMALL if options.small else SHAPE)
        )
        maker.start()
        maker.join()
        size = (base / "original" / "model.pt").stat().st_size
        print(f"{size / 1e9:.2f} GB, one shard; promised: {RATIO} x the copy, {SHARDS * size / 1e9:.2f} GB\n")
        print(
            "| way | cache | seconds (worst) | of the copy | GB/s | peak memory GB |\n| --- | --- | --- | --- | --- | --- |"
        )
        copies: dict[str, float] = {}
        for name, cache, seconds, worst, peak in rows(base / "original", base, options.reference):
            copies.setdefault(cache, seconds)
            ratio, rate = seconds / copies[cache], size / seconds / 1e9
            print(
                f"| {name} | {cache} | {seconds:.2f} ({worst:.2f}) | {ratio:.2f} | {rate:.2f} | {peak:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
