"""A linear head on a frozen model (Alain and Bengio 2016, arXiv 1610.01644): what can be read off a layer?

`classes`: which value the column `target` has; `pairs`: a reward, from which of two answers is preferred; `scores`: a
number. The head is fitted on one split and measured on another; the artifact holds the head and the measurements, as an
evaluation does (`rows.parquet`, `items.parquet`). Everything about the fit is in `toolkit.training.probe`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.stage import Artifact, Context, Interrupted
from toolkit.training.probe import Objective, Pooling

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from toolkit.training.probe import Head


@dataclass(frozen=True, kw_only=True)
class Spec:
    """layer: hidden states after so many blocks; 0: the embeddings; -1: the last, after the final norm. pooling: at the
    last token, or their mean.

    text, target: columns of `classes` and `scores`; `pairs` has prompt, chosen and rejected. l2: weight of the penalty.
    max_length: tokens of a text; what is beyond it is cut off the beginning. split, heldout: to fit and to measure on.
    """

    method: str
    objective: Objective = "classes"
    layer: int = -1
    pooling: Pooling = "last"
    text: str = "prompt"
    target: str = "completion"
    l2: float = 1.0
    max_length: int = 1024
    split: str = "train"
    heldout: str = "heldout"

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ValueError(
                f"l2 is {self.l2!r}: it must be above 0, or classes that can be told apart have no best fit"
            )
        if self.layer < -1:
            raise ValueError(f"layer is {self.layer}: -1 is the last, 0 the embeddings, and above them the blocks")
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}: at least one token")
        if self.split == self.heldout:
            raise ValueError(f"split and heldout are both {self.split!r}: what a probe was fitted on measures nothing")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """`model`: stays as it is, with its tokenizer. `data`: rows to fit and to measure on."""

    model: Artifact
    data: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with `head.safetensors`, `probe.json`, `rows.parquet` and `items.parquet`.

    Raises:
        ValueError: no such split, column or layer, a pair of equal answers, one class only, a target that is no number.
    """
    from toolkit.data.splits import open_split
    from toolkit.evaluation.rows import write
    from toolkit.generation import models

    columns = ["prompt", "chosen", "rejected"] if spec.objective == "pairs" else [spec.text, spec.target]
    parts = [open_split(inputs.data.path, name, columns) for name in (spec.split, spec.heldout)]
    model, tokenizer = models.load(inputs.model.path, "fp32", ctx.resources.threads)
    blocks = model.config.get_text_config().num_hidden_layers
    if spec.layer > blocks:
        raise ValueError(f"layer is {spec.layer}, and the model has {blocks} blocks: -1 or 0 to {blocks}")
    fitted, measured = (_columns(spec, model, tokenizer, part, ctx) for part in parts)
    head, words = _fit(spec, fitted)
    rows, items = _measure(spec, head, words, measured, parts[1])
    write(out, rows, items)
    head.save(out / "head.safetensors")
    told = {"objective": spec.objective, "layer": spec.layer, "pooling": spec.pooling, "text": spec.text} | words
    (out / "probe.json").write_text(json.dumps(told, indent=1) + "\n")
    counts = {"trained": head.weight.numel() + head.bias.numel(), "rows": len(parts[0]), "items": len(items)}
    return counts | {row["metric"]: row["value"] for row in rows}


def _columns(spec: Spec, model: Any, tokenizer: Any, data: "Dataset", ctx: Context) -> "list[torch.Tensor | list[Any]]":
    """Features of each text of a row (two for a pair), and the targets."""
    from toolkit.training.probe import features

    if spec.objective == "pairs":
        texts = [[f"{row['prompt']}{row[name]}" for row in data] for name in ("chosen", "rejected")]
        equal = next((i for i, (one, other) in enumerate(zip(*texts)) if one == other), None)
        if equal is not None:
            raise ValueError(f"pair {equal} has equal answers, so that neither is preferred: take it out of the data")
    else:
        texts = [list(data[spec.text])]

    def report(done: int, total: int) -> None:
        ctx.progress(done, total, unit="text")
        if ctx.stop_requested:
            raise Interrupted

    found: list[Any] = []
    for column in texts:
        wrong = next((text for text in column if not isinstance(text, str) or not text), None)
        if wrong is not None:
            raise ValueError(f"column {spec.text!r} must hold text that is not empty; it holds {wrong!r}")
        ids = [tokens[-spec.max_length :] for tokens in tokenizer(column)["input_ids"]]
        found.append(features(model, ids, spec.layer, spec.pooling, ctx.resources.batch_tokens, report))
    return found if spec.objective == "pairs" else [*found, list(data[spec.target])]


def _fit(spec: Spec, fitted: list[Any]) -> "tuple[Head, dict[str, Any]]":
    import torch

    from toolkit.training.probe import fit_classes, fit_pairs, fit_scores

    if spec.objective == "pairs":
        return fit_pairs(fitted[0], fitted[1], spec.l2), {}
    found, targets = fitted
    if spec.objective == "scores":
        wrong = next((value for value in targets if not isinstance(value, (int, float))), None)
        if wrong is not None:
            raise ValueError(f"column {spec.target!r} must hold numbers for scores; it holds {wrong!r}")
        return fit_scores(found, torch.tensor(targets), spec.l2), {}
    classes = sorted({str(value) for value in targets})
    if len(classes) < 2:
        raise ValueError(f"column {spec.target!r} has one value only, {classes[0]!r}: there is nothing to tell apart")
    labels = torch.tensor([classes.index(str(value)) for value in targets])
    usual = classes[int(torch.mode(labels).values)]
    return fit_classes(found, labels, len(classes), spec.l2), {"classes": classes, "usual": usual}


def _measure(
    spec: Spec, head: "Head", words: dict[str, Any], measured: list[Any], data: "Dataset"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measurements, and an item a row. A class that training had not is got wrong."""
    import torch

    from toolkit.evaluation.rows import ITEM, mean_row, prompt_hash

    if spec.objective == "pairs":
        margins = (head(measured[0]) - head(measured[1]))[:, 0].tolist()
        judged = [{"prediction": "chosen" if m > 0 else "rejected", "gold": "chosen", "margin": m} for m in margins]
    elif spec.objective == "scores":
        guesses = head(measured[0])[:, 0].tolist()
        judged = [
            {"prediction": f"{g:.6g}", "gold": str(t), "squared_error": (g - t) ** 2}
            for g, t in zip(guesses, measured[1])
        ]
    else:
        logs = torch.log_softmax(head(measured[0]), 1)
        best = [words["classes"][i] for i in logs.argmax(1).tolist()]
        judged = [{"prediction": b, "gold": str(t)} for b, t in zip(best, measured[1])]
    items: list[dict[str, Any]] = []
    for number, (row, found) in enumerate(zip(data, judged, strict=True)):
        prompt = str(row["prompt" if spec.objective == "pairs" else spec.text])
        right = None if spec.objective == "scores" else found["prediction"] == found["gold"]
        told = {
            "task": "probe",
            "doc_id": number,
            "filter": "none",
            "prompt": prompt,
            "prompt_hash": prompt_hash(prompt),
        }
        acc = {} if right is None else {"acc": float(right)}
        items.append(dict.fromkeys(ITEM) | told | found | {"correct": right} | acc)
    names = [name for name in ("acc", "margin", "squared_error") if name in items[0]]
    rows = [mean_row("probe", name, [item[name] for item in items]) for name in names]
    if spec.objective == "classes":  # what always the most frequent class of training would have got
        rows.append(mean_row("probe", "majority", [float(item["gold"] == words["usual"]) for item in items]))
    return rows, items
