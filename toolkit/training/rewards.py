"""Reward models: transformers' sequence classification with one output, made of a language model, loaded, asked.

The output head becomes a `score` of one number, read at the last token that is no padding. Where the tokenizer has no
padding token the end-of-text token pads, in training and in use alike; then it is read at the token before the end.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.check import check_model, expected, read_config
from toolkit.checkpoints.folders import CONFIG, copy_tokenizer, load_tokenizer
from toolkit.checkpoints.tensors import Tensor, read_folder, write_folder
from toolkit.manifest.files import discard

if TYPE_CHECKING:
    from torch import Tensor as Values
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REWARD = "AutoModelForSequenceClassification"


def initial(source: Path, seed: int, state: Path) -> Path:
    """The reward model that training starts from, in `state/initial`: the weights of `source` and a new head.

    The head's weights are from N(0, 1 / (width + 1)) (arXiv 2009.01325), drawn by `seed`; the backbone's stay as they
    are, byte for byte.

    Raises:
        ValueError: transformers has no such model for the architecture.
    """
    from toolkit.training.exact import attempt_folder

    folder = state / "initial"
    if not folder.is_dir():
        part = attempt_folder(state)
        _write(source, seed, part)
        copy_tokenizer(source, part)
        try:
            part.rename(folder)
        except OSError:  # another node of this attempt, or a lost attempt that still runs, has made the same one
            if not folder.is_dir():
                raise
            discard(part)
    return folder


def _write(source: Path, seed: int, out: Path) -> None:
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    config: Any = read_config(source)
    if config.model_type not in KNOWN:
        raise ValueError(f"a {config.model_type} cannot become a reward model: transformers has no head for it")
    words = json.loads((source / CONFIG).read_text())
    tokenizer = load_tokenizer(source)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    words |= {"architectures": [KNOWN[config.model_type]], "id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    words |= {"pad_token_id": pad, "dtype": "float32"}
    words.pop("torch_dtype", None)
    (out / CONFIG).write_text(json.dumps(words, indent=2, sort_keys=True) + "\n")
    shapes, _, _, renamed = expected(read_config(out), REWARD)
    kept = {name: t for name, t in read_folder(source).items() if name in shapes or renamed(name) in shapes}
    missing = sorted(set(shapes) - {name if name in shapes else renamed(name) for name in kept})
    if len(missing) != 1:
        raise ValueError(f"{source} does not give the backbone of a reward model: {', '.join(missing[:3])} are missing")
    head = Tensor(name=missing[0], file=next(iter(kept.values())).file, dtype="F32", shape=shapes[missing[0]], start=0)
    width = head.shape[-1]
    drawn = torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)) / (width + 1) ** 0.5

    def parts(name: str) -> "Iterator[Values | Tensor]":
        yield drawn if name == head.name else kept[name]

    write_folder(out, {**kept, head.name: head}, None, parts)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A reward model and its tokenizer, ready to be asked."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    def scores(self, rows: Sequence[Sequence[int]], budget: int) -> list[float]:
        """The reward of each row of token ids (prompt and answer), in their order; `budget` tokens at a time."""
        import torch

        device = next(self.model.parameters()).device
        pad = int(self.model.config.get_text_config().pad_token_id)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        found = [0.0] * len(rows)
        while order:
            width = len(rows[order[0]])
            batch, order = order[: max(1, budget // width)], order[max(1, budget // width) :]
            ids = torch.full((len(batch), width), pad)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(batch):
                ids[place, : len(rows[i])] = torch.tensor(rows[i])
                mask[place, : len(rows[i])] = 1
            with torch.inference_mode():
                given = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
                scores = self.model(**given, use_cache=False).logits[:, 0].float().tolist()
            for i, score in zip(batch, scores, strict=True):
                found[i] = score
        return found


def judge(folder: Path, device: str | None = None) -> Judge:
    """The reward model in `folder`, in fp32, on the first GPU if there is one (or on `device`).

    Raises:
        ValueError: it is a language model, or no whole model.
    """
    import torch

    from toolkit.training.engine import load

    architectures = json.loads((folder / CONFIG).read_text())["architectures"] if (folder / CONFIG).is_file() else []
    if architectures and not architectures[0].endswith("ForSequenceClassification"):
        raise ValueError(
            f"{folder} holds a {architectures[0]} and no reward model: train one with `method: reward`, or give its"
            " artifact"
        )
    check_model(folder, auto=REWARD)
    model = load(folder, REWARD).eval().requires_grad_(False)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    return Judge(model=model, tokenizer=load_tokenizer(folder))
