"""Diagonal Fisher information of a language model on rows of a data set: how much each weight matters there.

F = mean over rows of E[(d log p(labels | row) / d theta)^2], the labels drawn by the model itself at every target (the
row gives what precedes it): gradients of different targets of a row are then uncorrelated, so that one gradient a row,
squared, has the right mean. Labels of the data instead give the empirical Fisher, which is another quantity: it
vanishes where the model fits its data (F. Kunstner et al., arXiv 1905.12558).

Memory: the model in fp32, its gradients and the sums, three times 4 bytes a parameter.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.stage import Context, Interrupted

if TYPE_CHECKING:
    import torch

Labels = Literal["sampled", "data"]


def write_fisher(
    source: Path, rows: "Iterator[tuple[list[int], list[int]]]", total: int, labels: Labels, seed: int, out: Path,
    ctx: Context,
) -> dict[str, Any]:  # fmt: skip
    """Fill `out` with a tensor of F for each of the model's, in fp32, beside its config and tokenizer.

    rows: token ids and labels (`turns.IGNORED`: no target). total: how many rows there are.

    Raises:
        ValueError: no target in any row, no plain model, a gradient that is not finite.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import copy_config, copy_tokenizer
    from toolkit.checkpoints.tensors import SINGLE, write_file
    from toolkit.generation.models import load
    from toolkit.merging.rounding import random_words

    check_model(source, values=False)  # what is quantized, or stands beside a model, has not the tensors of a merge
    model, _ = load(source, "fp32", ctx.resources.threads)
    sums = {name: x.new_zeros(x.shape) for name, x in model.named_parameters() if x.is_floating_point()}
    seen = targets = 0
    for number, (ids, wanted) in enumerate(rows):
        if ctx.stop_requested:
            raise Interrupted(f"the Fisher information was asked to stop at row {number}; it begins again")
        # Hazard: torch's generator takes the lower 32 bits of a seed alone, so a row's number may not stand above them.
        drawn = int(random_words(seed, f"labels of row {number}", 0, 1, "uint32")[0])
        targets += _add(model, ids, wanted, labels, drawn, sums)
        seen += 1
        ctx.progress(seen, total, unit="row")
    if not targets:
        raise ValueError(f"none of the {seen} rows has a target: give rows with completions, or with input_ids")
    for name, x in sums.items():
        if not math.isfinite(float(x.sum())):
            raise ValueError(f"the gradient of {name!r} is not finite: a weight is not, or the loss of a row overflows")
    shapes = {name: ("F32", tuple(x.shape)) for name, x in sums.items()}
    write_file(out / SINGLE, shapes, lambda name: iter([(sums[name] / seen).cpu().flatten()]))
    copy_config(source, out, "float32")
    copy_tokenizer(source, out)
    trace = math.fsum(float(x.double().sum()) for x in sums.values()) / seen
    return {"rows": seen, "targets": targets, "trace": trace}


def _add(
    model: Any, ids: list[int], wanted: list[int], labels: Labels, seed: int, sums: "dict[str, torch.Tensor]"
) -> int:
    """Add the squares of one row's gradient; returns how many targets it has."""
    import torch

    from toolkit.training.turns import IGNORED

    chosen = torch.tensor(wanted[1:]) != IGNORED
    if not bool(chosen.any()):
        return 0
    logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, :-1].float()
    logp = logits[chosen.to(logits.device)].log_softmax(-1)
    if labels == "sampled":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.multinomial(logp.detach().exp().cpu(), 1, generator=generator)
    else:
        drawn = torch.tensor(wanted[1:])[chosen].unsqueeze(1)
    model.zero_grad(set_to_none=True)
    logp.gather(1, drawn.to(logp.device)).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            sums[name].addcmul_(parameter.grad, parameter.grad)
    return int(chosen.sum())
