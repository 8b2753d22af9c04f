"""Storing a fine-tuned model as its difference to its base: what was tried, and what the form that is used does.

    python -m tests.bench.storage [--small]

A byte-level model (3.4 M parameters) is pre-trained here on text that is made up, then fine-tuned on other text for 60
steps of AdamW at three learning rates, from bf16 weights into bf16 and from fp32 into fp32. Each way is measured on one
thread, chunk by chunk; for reading, the tensors are repeated to 200 MB and restored on all cores, median of five.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from toolkit.checkpoints.forms.difference import CHUNK, decode, encode
from toolkit.checkpoints.tensors import read_header

RATES = (2e-7, 2e-6, 2e-5)
LEAST = 500  # MB/s that reading must reach on two cores
Bits = np.ndarray[Any, np.dtype[Any]]


def text(seed: int, words: int) -> torch.Tensor:
    """Bytes of sentences over 500 made-up words with Zipf's frequencies."""
    rng = random.Random(seed)
    known = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(500)]
    drawn = rng.choices(known, [1 / (n + 1) for n in range(500)], k=words)
    return torch.frombuffer(bytearray(" ".join(drawn).encode()), dtype=torch.uint8).long()


def train(model: Any, data: torch.Tensor, steps: int, lr: float) -> None:
    """AdamW with linear decay, 4 sequences of 64 bytes a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        rows = torch.stack([data[i : i + 64] for i in torch.randint(0, len(data) - 64, (4,), generator=generator)])
        model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def make(folder: Path, steps: int, width: int) -> Iterator[tuple[str, float, Path, Path]]:
    """(type, learning rate, base, tuned) of every pair."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {"vocab_size": 256, "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64, "eos_token_id": 0, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("olmo2", **shape, **heads), dtype=torch.float32)
    train(model, text(0, 40_000), 3 * steps, 1e-3)
    first = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for word, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        base = folder / f"base-{word}"
        save_file({name: tensor.to(dtype) for name, tensor in first.items()}, base)
        for lr in RATES:
            model.load_state_dict({name: tensor.to(dtype).float() for name, tensor in first.items()})
            train(model, text(1, 40_000), steps, lr)
            tuned = folder / f"tuned-{word}-{lr:g}"
            save_file({name: tensor.detach().to(dtype).clone() for name, tensor in model.state_dict().items()}, tuned)
            yield word, lr, base, tuned


def bits_of(path: Path) -> dict[str, Bits]:
    """Name -> the tensor's bits."""
    data = path.read_bytes()
    tensors = read_header(path).values()
    return {t.name: np.frombuffer(data, f"u{2 if t.dtype == 'BF16' else 4}", t.elements, t.start) for t in tensors}


def order(bits: Bits) -> Bits:
    """Sign and magnitude as two's complement."""
    signed = bits.view(f"i{bits.itemsize}")
    return signed ^ ((signed >> (8 * bits.itemsize - 1)) & ((1 << (8 * bits.itemsize - 1)) - 1))


def fold(tuned: Bits, base: Bits) -> Bits:
    """The difference of two bit patterns in the order of the numbers, folded to unsigned."""
    moved = order(tuned) - order(base)
    return ((moved << 1) ^ (moved >> (8 * moved.itemsize - 1))).view(tuned.dtype)


def byte_planes(bits: Bits) -> list[Bits]:
    return [np.ascontiguousarray(bits.view(np.uint8)[n :: bits.itemsize]) for n in range(bits.itemsize)]


def bit_planes(bits: Bits) -> list[Bits]:
    return [np.packbits((plane >> n) & 1) for plane in byte_planes(bits) for n in range(8)]


WAYS: dict[str, Callable[[Bits, Bits], list[Bits]]] = {
    "as it is": lambda tuned, base: [tuned],
    "byte planes, no base": lambda tuned, base: byte_planes(tuned),
    "XOR": lambda tuned, base: [tuned ^ base],
    "XOR, byte planes": lambda tuned, base: byte_planes(tuned ^ base),
    "XOR, bit planes": lambda tuned, base: bit_planes(tuned ^ base),
    "difference": lambda tuned, base: [fold(tuned, base)],
    "difference, bit planes": lambda tuned, base: bit_planes(fold(tuned, base)),
    "difference, byte planes": lambda tuned, base: byte_planes(fold(tuned, base)),
}


def tried(base: Path, tuned: Path, way: str, level: int) -> tuple[float, float]:
    """Share of the bytes that are left, and MB/s of making it."""
    first, last = bits_of(base), bits_of(tuned)
    codec, packed, began = pa.Codec("zstd", compression_level=level), 0, time.perf_counter()
    for name, bits in last.items():
        for start in range(0, len(bits), CHUNK):
            for part in WAYS[way](bits[start : start + CHUNK], first[name][start : start + CHUNK]):
                packed += min(part.nbytes, len(codec.compress(part, asbytes=True)))
    size = sum(bits.nbytes for bits in last.values())
    return packed / size, size / 1e6 / (time.perf_counter() - began)


def repeated(path: Path, times: int) -> Path:
    """The same tensors several times over: what reading costs at the size of a real model."""
    from safetensors.torch import load_file

    weights = {f"{name}.{n}": tensor.clone() for name, tensor in load_file(path).items() for n in range(times)}
    big = path.with_name(f"{path.name}-big")
    save_file(weights, big)
    return big


def speed(base: Path, tuned: Path, folder: Path, rounds: int, size: int) -> tuple[float, float, float, float]:
    """Share left, MB/s of writing (the read-back included) and of reading to a file, MB for each CPU second of reading:
    medians, with both files large."""
    times = max(1, size // tuned.stat().st_size)
    base, tuned = repeated(base, times), repeated(tuned, times)
    tensors, whole = read_header(base), tuned.stat().st_size
    seconds: dict[str, list[float]] = {"write": [], "read": [], "cpu": []}
    for _ in range(rounds):
        began = time.perf_counter()
        encode(tuned, tensors, folder / "change")
        decode(folder / "change", tensors, None)
        seconds["write"].append(time.perf_counter() - began)
        began, used = time.perf_counter(), time.process_time()
        decode(folder / "change", tensors, folder / "back")
        seconds["cpu"].append(time.process_time() - used)
        seconds["read"].append(time.perf_counter() - began)
    assert (folder / "back").read_bytes() == tuned.read_bytes()
    share = (folder / "change").stat().st_size / whole
    for path in (base, tuned, folder / "change", folder / "back"):
        path.unlink()
    write, read, cpu = (whole / 1e6 / statistics.median(seconds[name]) for name in ("write", "read", "cpu"))
    return share, write, read, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="in seconds, for a look; proves nothing about speed")
    small = parser.parse_args().small
    with tempfile.TemporaryDirectory() as name:
        pairs = list(make(Path(name), *((4, 64) if small else (60, 256))))
        print("| way, zstd level | " + " | ".join(f"{word} {lr:g}" for word, lr, _, _ in pairs) + " |")
        print("| --- |" + " --- |" * len(pairs))
        for way in WAYS:
            for level in (1, 3, 9) if way.startswith("difference, byte") else (1,):
                cells = [tried(base, tuned, way, level) for _, _, base, tuned in pairs]
                row = " | ".join(f"{share:.3f} ({rate:.0f})" for share, rate in cells)
                print(f"| {way}, {level} | {row} |", flush=True)
        cores = len(os.sched_getaffinity(0))
        reading = f"reading MB/s, {cores} cores | reading MB a CPU second"
        print(f"\n| weights | learning rate | left | writing MB/s | {reading} |")
        print("| --- | --- | --- | --- | --- | --- |")
        slowest = float("inf")
        for word, lr, base, tuned in pairs:
            share, write, read, cpu = speed(base, tuned, Path(name), *((1, 1 << 20) if small else (5, 200 << 20)))
            slowest = min(slowest, max(read, cores * cpu))  # what its cores give where neighbours take their share
            print(f"| {word} | {lr:g} | {share:.3f} | {write:.0f} | {read:.0f} | {cpu:.0f} |", flush=True)
    if not small and slowest < LEAST:
        raise SystemExit(f"reading gave {slowest:.0f} MB/s; {LEAST} are promised")


if __name__ == "__main__":
    main()
