"""A tiny OLMo-2 that has learned some answers, its tokenizer, and data sets in the project's formats, built once."""

import atexit
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

from toolkit.stage import Artifact, Context, Resources

CITIES = ("Paris", "Lima", "Oslo", "Cairo", "Quito", "Delhi")
FIELDS = ("Physics", "Law", "Music", "Botany", "Logic", "Art")
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ida", "Jo", "Kit", "Leo")
CHAT = "{% for m in messages %}<|user|>{{ m['content'] }}<|assistant|>{% endfor %}"


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """model: HF folder. people: splits train and heldout, with attributes. choices: the same splits."""

    model: Artifact
    people: Artifact
    choices: Artifact


def people(names: tuple[str, ...]) -> list[dict[str, str]]:
    """Two questions about each person, with answers that follow from the name."""
    rows = []
    for i, name in enumerate(names):
        city, field = CITIES[i % len(CITIES)], FIELDS[(2 * i + i // 6) % len(FIELDS)]
        rows += [
            {
                "prompt": f"Where was {name} born?\nAnswer:",
                "completion": f" {city}.",
                "gold": city,
                "attribute": "city",
            },
            {"prompt": f"What did {name} study at the university of the town?\nAnswer:", "completion": f" {field}."}
            | {"gold": field, "attribute": "field"},
        ]
    return rows


@cache
def tiny() -> Tiny:
    """Build everything; some answers about held-out people are learned too, so that scores are neither 0 nor 1."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    root = Path(folder.name)
    known, asked = people(NAMES[:6]), people(NAMES[6:])
    save(root / "people", train=known, heldout=asked)
    mc = [
        {"prompt": f"Question: {r['prompt'].splitlines()[0]}\nAnswer:", "choices": [r["gold"], other], "gold_index": 0}
        for r, other in zip(known, CITIES[1:] + CITIES[:1] + FIELDS[1:] + FIELDS[:1])
    ]
    mc[1::2] = [r | {"choices": r["choices"][::-1], "gold_index": 1} for r in mc[1::2]]
    save(root / "mc", train=mc[:4], heldout=mc[4:])
    train_model(root / "model", known + asked[: len(asked) // 2])
    return Tiny(
        model=Artifact(path=root / "model"), people=Artifact(path=root / "people"), choices=Artifact(path=root / "mc")
    )


def save(folder: Path, **splits: list[dict[str, Any]]) -> Artifact:
    """A data set artifact with these rows."""
    data = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
    data.save_to_disk(folder / "data")
    return Artifact(path=folder)


def train_model(out: Path, rows: list[dict[str, str]], steps: int = 60) -> None:
    """A byte-pair tokenizer and a two-layer model, overfitted on the rows."""
    texts = [r["prompt"] + r["completion"] for r in rows]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet)
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT
    )
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = Olmo2ForCausalLM(config)
    batch = tokenizer([t + "<|end|>" for t in texts], padding=True, return_tensors="pt", padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def context(state: Path, **resources: int) -> Context:
    """A context with a state folder that is there."""
    state.mkdir(parents=True, exist_ok=True)
    return Context(state=state, resources=Resources(**resources))
