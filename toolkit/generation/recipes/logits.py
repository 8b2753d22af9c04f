"""A teacher's distributions over packed rows, for `method: distill`: its likeliest tokens, and one bucket for the rest.

With the 64 likeliest tokens and the bucket, a student's gradient has a cosine of 0.995 with that of the whole
distribution; with the 64 scaled up to 1 it has 0.83, and training ends worse than on labels alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.generation.models import Precision
from toolkit.stage import Artifact, Context, Interrupted

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset

SHARD_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Spec:
    """top: tokens that are stored for each position. temperature: of the distributions, that of the student's spec."""

    recipe: str
    top: int = 64
    temperature: float = 1.0
    split: str = "train"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top is {self.top}: at least one token must be stored (64 is usual)")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}: it must be above 0")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: the teacher. data: packed rows."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with shards of logits; those that an earlier attempt finished are used again.

    Metrics: rows, positions, and `tail`, the mean probability that is in the bucket.
    """
    from toolkit.checkpoints.folders import copy_file, copy_tokenizer, vocabulary
    from toolkit.data.splits import open_split
    from toolkit.generation.models import load
    from toolkit.generation.stored_logits import Meta, shard_path, tail_of, write_meta, write_shard
    from toolkit.training.methods.pretrain import row_length

    rows = open_split(inputs.data.path, spec.split, ["input_ids"])
    length = row_length(rows, inputs.model.path)
    model, _ = load(inputs.model.path, spec.precision, ctx.resources.threads)
    vocab = max(vocabulary(inputs.model.path).values()) + 1  # the embedding may have more rows, which are no tokens
    if spec.top >= vocab:
        raise ValueError(f"top is {spec.top} and the model has {vocab} tokens: nothing would be left for the bucket")
    a_shard = max(1, SHARD_BYTES // (length * (spec.top + 1) * 6))
    (ctx.state / "logits").mkdir(parents=True, exist_ok=True)
    (out / "logits").mkdir()
    tail = 0.0
    for number, first in enumerate(range(0, len(rows), a_shard)):
        last, path = min(first + a_shard, len(rows)), shard_path(ctx.state, number)
        found = tail_of(path, last - first)
        if found is None:
            ids, log_probs, found = _ask(spec, model, vocab, rows, range(first, last), ctx)
            write_shard(path, ids, log_probs, found)
        tail += found
        copy_file(path, shard_path(out, number), link=True)
    meta = Meta(
        rows=len(rows),
        digest=rows._fingerprint,
        row_tokens=length,
        top=spec.top,
        temperature=spec.temperature,
        a_shard=a_shard,
    )
    write_meta(out, meta)
    copy_tokenizer(inputs.model.path, out)
    positions = len(rows) * (length - 1)
    return {"rows": len(rows), "positions": positions, "tail": tail / positions}


def _ask(
    spec: Spec, model: Any, vocab: int, rows: "Dataset", which: range, ctx: Context
) -> "tuple[np.ndarray, np.ndarray, float]":
    """(rows, L - 1, K) ids, (rows, L - 1, K + 1) log-probabilities and the sum of the tail of some rows."""
    import numpy as np

    length = len(rows[0]["input_ids"])
    batch = max(1, (ctx.resources.micro_batch or ctx.resources.batch_tokens // length) >> ctx.resources.halvings)
    ids, log_probs, tail = [], [], 0.0
    for start in range(which.start, which.stop, batch):
        if ctx.stop_requested:
            raise Interrupted(f"storing logits was asked to stop at row {start} of {len(rows)}")
        stop = min(start + batch, which.stop)
        top, found = _distributions(spec, model, vocab, rows[start:stop])
        ids.append(top.cpu().numpy().astype(np.int32))
        log_probs.append(found.half().cpu().numpy())
        tail += float(found[..., -1].exp().double().sum())
        ctx.progress(stop, len(rows), unit="row")
    return np.concatenate(ids), np.concatenate(log_probs), tail


def _distributions(spec: Spec, model: Any, vocab: int, rows: dict[str, Any]) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    from toolkit.generation.models import device_of
    from toolkit.training.distances import bucketed

    device = device_of(model)
    ids = torch.tensor(rows["input_ids"], device=device)
    given = {"attention_mask": torch.ones_like(ids)}
    if "position_ids" in rows:  # documents that do not see each other: no mask, and no cache, or they would
        given = {"position_ids": torch.tensor(rows["position_ids"], device=device)}
    with torch.inference_mode():
        logits = model(input_ids=ids, **given, use_cache=False).logits[:, :-1].float() / spec.temperature
        top = logits[..., :vocab].topk(spec.top, dim=-1).indices
        return top, bucketed(logits, top)
