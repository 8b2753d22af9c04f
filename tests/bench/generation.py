"""Batches sorted by length under a token budget, against batches in the order of the file and against one row at a time.

    python -m tests.bench.generation

A 25 M OLMo-2 in fp32 on one thread; 64 prompts of 4 to 400 tokens (median 40); 48 new tokens each. In file order a batch has a fixed
number of rows, as without a budget: as many as fit the same memory if all were as long as the longest, and twice that.
"""

import random
import tempfile
import time
from pathlib import Path

from toolkit.generation.rows import Row

ROWS, NEW, BUDGET = 64, 48, 4096
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


def prompts() -> list[Row]:
    """Lengths spread evenly in their logarithm, as those of instructions roughly are, in random order."""
    rng = random.Random(0)
    lengths = [round(LENGTHS[0] * (LENGTHS[1] / LENGTHS[0]) ** (i / (ROWS - 1))) for i in range(ROWS)]
    rng.shuffle(lengths)
    return [Row(id=i, tokens=tuple(rng.choices(range(2, 258), k=n))) for i, n in enumerate(lengths)]


def main() -> None:
    """Print a markdown table; exit status 1 if a ratio is missed."""
    from toolkit.generation.engine import Decoding, Engine, batches
    from toolkit.generation.models import load

    rows = prompts()
    fitting = BUDGET // (LENGTHS[1] + NEW)
    ways = {
        "one row at a time": [[row] for row in rows],
        f"{fitting} rows a batch, in file order": [rows[i : i + fitting] for i in range(0, ROWS, fitting)],
        f"{2 * fitting} rows a batch, in file order": [rows[i : i + 2 * fitting] for i in range(0, ROWS, 2 * fitting)],
        f"sorted, {BUDGET:,} tokens a batch": batches(rows, BUDGET, NEW),
    }
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        engine = Engine(*load(Path(folder), "fp32", 1), Decoding(max_new_tokens=NEW))
    engine.answer(rows[:2])
    speeds, texts = {}, {}
    for way, work in ways.items():
        start = time.process_time()
        answers = sorted((answer for batch in work for answer in engine.answer(batch)), key=lambda answer: answer.id)
        speeds[way] = sum(answer.tokens for answer in answers) / (time.process_time() - start)
        texts[way] = [answer.text for answer in answers]
    best = list(speeds.values())[-1]
    print("| batches | new tokens per CPU second | the sorted ones are so much faster |\n| --- | --- | --- |")
    for way, speed in speeds.items():
        print(f"| {way} | {speed:.0f} | {'' if speed == best else f'{best / speed:.2f}'} |")
    assert len({tuple(found) for found in texts.values()}) == 1, "the batches changed the answers"
    one, order = list(speeds.values())[:2]
    if best < OVER_FILE_ORDER * order or best < OVER_ONE * one:
        raise SystemExit(f"not {OVER_FILE_ORDER} times file order and {OVER_ONE} times one row at a time")


if __name__ == "__main__":
    main()
