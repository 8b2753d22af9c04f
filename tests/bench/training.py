"""Fine-tuning beside a minimal loop in torch and TRL's SFTTrainer used plainly: tokens a second, and the first step.

    python -m tests.bench.training

One model (25 M parameters, OLMo-2), the same rows, batch and precision (fp32) for all three, which take turns; medians of
the steps of all rounds but each round's first two. TRL's own default recomputes activations: that is a row of its own.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTH, BATCH, STEPS, ROUNDS, THREADS = 512, 4, 7, 3, 2
SIZES = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6}
LEAST = {"trl": 1.05, "loop": 0.9}


def prepare(base: Path) -> None:
    """`base`/model, at random, and `base`/rows, as long as they may be: no padding, so that all count the same tokens."""
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    from tests.toolkit.training.small import dataset, tokenizer

    tokenizer(base / "model")
    torch.manual_seed(0)
    config = Olmo2Config(**SIZES, vocab_size=8192, max_position_embeddings=LENGTH, eos_token_id=0, pad_token_id=1)
    Olmo2ForCausalLM(config).save_pretrained(base / "model")
    rows = BATCH * STEPS
    words = ["".join(chr(97 + (7 * row + i * i) % 26) for i in range(2 * LENGTH)) for row in range(rows)]
    dataset(base / "rows", {"prompt": [word[:8] for word in words], "completion": [word[8:] for word in words]})


def loop(base: Path) -> list[float]:
    """Seconds of each step of a loop that does what it must and no more."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base / "model", dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(2, 8192, (STEPS, BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    took = []
    for batch in ids:
        begun = time.perf_counter()
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        took.append(time.perf_counter() - begun)
    return took


def trl(base: Path, checkpointing: bool) -> list[float]:
    """The same of TRL's SFTTrainer with its defaults, on the same text."""
    from datasets import load_from_disk
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    args = SFTConfig(
        output_dir=str(base / "trl"), max_steps=STEPS, per_device_train_batch_size=BATCH, max_length=LENGTH, bf16=False,
        use_cpu=True, gradient_checkpointing=checkpointing, save_strategy="no", report_to="none", disable_tqdm=True,
        learning_rate=1e-4, logging_steps=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base / "model")
    rows = load_from_disk(str(base / "rows" / "data"))["train"]
    tokenizer = AutoTokenizer.from_pretrained(base / "model")
    SFTTrainer(model, args=args, train_dataset=rows, processing_class=tokenizer, callbacks=[Clock()]).train()
    return [end - begin for begin, end in zip(ends, ends[1:])]


def tidemark(base: Path, state: Path) -> list[float]:
    """The same of the job `train` with `method: sft`, as it tells `tidemark status`."""
    from jobs import train
    from toolkit.spec import build
    from toolkit.stage import Artifact, Context, Resources
    from toolkit.training.methods import sft

    words = {"method": "sft", "steps": STEPS, "global_batch": BATCH, "lr": 1e-4, "max_length": LENGTH}
    inputs = sft.Inputs(model=Artifact(path=base / "model"), data=Artifact(path=base / "rows"))
    (state / "out").mkdir(parents=True)
    ctx = Context(state=state, resources=Resources(threads=THREADS))
    train.run(build(sft.Spec, words), inputs, state / "out", ctx)
    told = [json.loads(line) for line in (state / "steps.jsonl").read_text().splitlines()]
    return [BATCH * LENGTH / line["tokens_per_second"] for line in told]


PLAIN = """
import sys, time, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
torch.set_num_threads(2)
from tests.bench import training
training.STEPS = 1
print(training.loop(Path(sys.argv[1])))
"""
JOB = """
import sys, torch
from pathlib import Path
from tests.bench import training
training.STEPS = 1
print(training.tidemark(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def start_up(base: Path) -> dict[str, float]:
    """Seconds from the start to the end of the first step: a plain script, the job in a fresh process and in a warm one."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", PLAIN, str(base)], check=True, capture_output=True)
    plain = time.perf_counter() - begun
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", JOB, str(base), str(base / "fresh")], check=True, capture_output=True)
    fresh = time.perf_counter() - begun
    global STEPS
    steps, STEPS = STEPS, 1
    begun = time.perf_counter()
    tidemark(base, base / "warm")
    warm = time.perf_counter() - begun
    STEPS = steps
    return {"plain": plain, "fresh": fresh, "warm": warm}


def main() -> None:
    """Print the tables."""
    import torch

    from toolkit.training.engine import settle

    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        settle()
        prepare(base)
        ways = {
            "loop": lambda n: loop(base),
            "trl": lambda n: trl(base, False),
            "trl, its default": lambda n: trl(base, True),
            "tidemark": lambda n: tidemark(base, base / f"run{n}"),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            for name, way in ways.items():
                torch.set_num_threads(THREADS)
                took[name] += way(number)[2:]
        rates = {name: BATCH * LENGTH / statistics.median(values) for name, values in took.items()}
        for name, rate in rates.items():
            ratio = rates["tidemark"] / rate
            least = f"at least {LEAST[name]}" if name in LEAST else ""
            print(f"| {name} | {rate:,.0f} tokens/s | Tidemark is {ratio:.2f} times as fast | {least} |")
        for name, seconds in start_up(base).items():
            print(f"| from the start to the end of the first step, {name} | {seconds:.1f} s | | |")


if __name__ == "__main__":
    main()
