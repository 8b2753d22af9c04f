"""Small real things for the tests of training, conversion and merging: a tokenizer, packed rows, pairs, one trained model."""

import atexit
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from jobs import train
from toolkit.spec import build
from toolkit.stage import Artifact, Context, Resources
from toolkit.training.methods import pretrain, sft

TEXT = ["Anna was born in Berlin. Where was Anna born? Berlin.", "Otto lives in Rome, not in Oslo."]
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
OLMO = {"model_type": "olmo2", **SIZES, "max_position_embeddings": 64}
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(folder: Path, *, chat: bool = False, pad: bool = True, extra: tuple[str, ...] = ()) -> Path:
    """A byte-level BPE with <eos> = 0 and <pad> = 1."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=280, special_tokens=["<eos>", "<pad>", *extra], initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokens = {"eos_token": "<eos>"} | ({"pad_token": "<pad>"} if pad else {})
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, **tokens)
    if chat:
        fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return folder


def dataset(folder: Path, columns: dict[str, list[Any]], split: str = "train") -> Artifact:
    """A data artifact with one split."""
    from datasets import Dataset, DatasetDict

    DatasetDict({split: Dataset.from_dict(columns)}).save_to_disk(str(folder / "data"))
    return Artifact(path=folder)


def packed(folder: Path, *, rows: int = 40, length: int = 16) -> Artifact:
    """Packed rows with structure (runs of consecutive ids), so that a loss can fall."""
    import numpy

    starts = numpy.random.default_rng(0).integers(2, 60, (rows, 1))
    return dataset(folder, {"input_ids": ((starts + numpy.arange(length)) % 250 + 2).tolist()})


def pairs(folder: Path, rows: int = 20) -> Artifact:
    """Prompt and completion, of different lengths."""
    return dataset(
        folder,
        {
            "prompt": [f"Where was Anna {number} born?" + " Tell me." * (number % 3) for number in range(rows)],
            "completion": [" Berlin" + ", in Rome" * (number % 4) for number in range(rows)],
        },
    )


class Small:
    """A folder with `tokenizer`, `packed`, `pairs` and a `model` of four steps (0, 2 and 4 are kept)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tokenizer = Artifact(path=tokenizer(root / "tokenizer", chat=True))
        self.packed = packed(root / "packed")
        self.pairs = pairs(root / "pairs")
        spec = {"steps": 4, "lr": 1e-2, "keep_steps": [0, 2]}
        self.model = Artifact(path=self.pretrain(root / "run", **spec))

    def pretrain(
        self, folder: Path, *, inputs: dict[str, Artifact] | None = None, ctx: Context | None = None, **fields: Any
    ) -> Path:
        """The finished folder of a pre-training run; OLMo-2, batches of 8, 1e-3 where `fields` says nothing else."""
        chosen = {"architecture": OLMO} if "model" not in (inputs or {}) else {}
        spec = build(pretrain.Spec, {"method": "pretrain", "steps": 4, "global_batch": 8, "lr": 1e-3} | chosen | fields)
        given = {"data": self.packed, "tokenizer": self.tokenizer} | (inputs or {})
        return run(spec, pretrain.Inputs(**given), folder, ctx)

    def tune(
        self, folder: Path, *, inputs: dict[str, Artifact] | None = None, ctx: Context | None = None, **fields: Any
    ) -> Path:
        """The finished folder of a fine-tuning run; batches of 4, 1e-3, 4 steps where `fields` says nothing else."""
        length = {} if "epochs" in fields else {"steps": 4}
        spec = build(sft.Spec, {"method": "sft", "global_batch": 4, "lr": 1e-3, "max_length": 64} | length | fields)
        given = {"model": self.model, "data": self.pairs} | (inputs or {})
        return run(spec, sft.Inputs(**given), folder, ctx)


def run(spec: Any, inputs: Any, folder: Path, ctx: Context | None) -> Path:
    """Run the train job into `folder`/out, with its state in `folder`/state."""
    out = folder / "out"
    out.mkdir(parents=True)
    train.run(spec, inputs, out, ctx or context(folder))
    return out


def context(folder: Path, **resources: Any) -> Context:
    """A context whose state is `folder`/state."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    return Context(state=folder / "state", resources=Resources(**resources))


@cache
def small() -> Small:
    """One for all tests of a process: it costs a second."""
    root = Path(mkdtemp(prefix="tidemark-small-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)  # forks of the tests leave by os._exit, past this
    return Small(root)


def losses(out: Path) -> list[float]:
    """The loss of every step."""
    import pyarrow.parquet

    return list(pyarrow.parquet.read_table(out / "loss.parquet")["loss"].to_pylist())


def weights(folder: Path) -> dict[str, Any]:
    """All tensors of a model folder."""
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))
