"""Batches sorted by length under a token budget, against batches in the order of the file and against one row at a time.

    python -m tests.bench.generation

A 25 M OLMo-2 in fp32 on one thread; 64 prompts of 4 to 400 tokens, with lengths spread evenly in their logarithm (median 40) and
evenly (median 200); 48 new tokens each. In file order a batch has a fixed number of rows, as without a budget: as many as fit the
memory of a budget if all were as long as the longest. The same engine answers in all ways, in one run.
"""

import random
import tempfile
import time
from pathlib import Path
from typing import Any

from toolkit.generation.rows import Row

ROWS, NEW, BUDGETS = 64, 48, (4096, 16384)  # the second is what a stage has by default
LENGTHS = (4, 400)
OVER_FILE_ORDER, OVER_ONE = 1.5, 3.0
SIZES = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6, "num_attention_heads": 8}


def save_model(folder: Path) -> None:
    """25 M parameters at random, with a tokenizer."""
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    from toolkit.data import bpe

    torch.manual_seed(0)
    config = Olmo2Config(**SIZES, vocab_size=8192, max_position_embeddings=1024, eos_token_id=None, pad_token_id=1)
    Olmo2ForCausalLM(config).save_pretrained(folder)
    special = ("<|endoftext|>", "<|pad|>")
    tokenizer = bpe.train(
        [["one text"]], vocab_size=258, min_frequency=2, special=special, bos=None, split_digits=False
    )
    bpe.save(tokenizer, folder, eos=special[0], pad=special[1], bos=None, chat_template="none")


def prompts(spread: str) -> list[Row]:
    """In random order."""
    rng = random.Random(0)
    low, high = LENGTHS
    parts = [i / (ROWS - 1) for i in range(ROWS)]
    ways = {"even in the logarithm": lambda x: low * (high / low) ** x, "even": lambda x: low + (high - low) * x}
    lengths = [round(ways[spread](x)) for x in parts]
    rng.shuffle(lengths)
    return [Row(id=i, tokens=tuple(rng.choices(range(2, 258), k=n))) for i, n in enumerate(lengths)]


def ways(rows: list[Row]) -> dict[str, list[list[Row]]]:
    """What is done -> its batches; of a budget first in file order, then sorted."""
    from toolkit.generation.engine import batches

    found = {"one row at a time": [[row] for row in rows]}
    for budget in BUDGETS:
        fitting = budget // (LENGTHS[1] + NEW)
        found[f"{fitting} rows a batch, in file order"] = [rows[i : i + fitting] for i in range(0, ROWS, fitting)]
        found[f"sorted, {budget:,} tokens a batch at most"] = batches(rows, budget, NEW)
    return found


def main() -> None:
    """Print a markdown table; exit status 1 if a ratio is missed where lengths are even in their logarithm."""
    from toolkit.generation.engine import Decoding, Engine
    from toolkit.generation.models import load

    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        engine = Engine(*load(Path(folder), "fp32", 1), Decoding(max_new_tokens=NEW))
    missed = False
    for spread in ("even in the logarithm", "even"):
        rows = prompts(spread)
        engine.answer(rows[:2])
        print(f"\nLengths {spread}\n\n| batches | new tokens per CPU second | of one row at a time | of file order |")
        print("| --- | --- | --- | --- |")
        speeds: list[float] = []
        texts = set()
        for way, work in ways(rows).items():
            speed, found = measure(engine, work)
            speeds.append(speed)
            texts.add(found)
            beside = f"{speed / speeds[0]:.2f} | {speed / speeds[-2]:.2f}" if way.startswith("sorted") else " | "
            print(f"| {way} | {speed:.0f} | {beside} |", flush=True)
            low = speed < OVER_FILE_ORDER * speeds[-2] or speed < OVER_ONE * speeds[0] if "sorted" in way else False
            missed |= low and spread != "even"
        assert len(texts) == 1, "the batches changed the answers"
    if missed:
        raise SystemExit(f"not {OVER_FILE_ORDER} times file order and {OVER_ONE} times one row at a time")


def measure(engine: Any, work: list[list[Row]]) -> tuple[float, tuple[str, ...]]:
    """Tokens a second, and the answers."""
    start = time.process_time()
    answers = sorted((answer for batch in work for answer in engine.answer(batch)), key=lambda answer: answer.id)
    seconds = time.process_time() - start
    return sum(answer.tokens for answer in answers) / seconds, tuple(answer.text for answer in answers)


if __name__ == "__main__":
    main()
