"""A trained head on a frozen model: what a layer's hidden states say, pooled over a text's tokens.

The features of a text are computed once. The head is linear and its loss convex, so that it is fitted to the end
(L-BFGS in float64 on standardised features; no learning rate, no seed): what it finds is a fact of model and data.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Objective = Literal["classes", "pairs", "scores"]
Pooling = Literal["last", "mean"]
STEPS, TOLERANCE = 1000, 1e-7  # of L-BFGS: at most so many, until no part of the gradient is larger


@dataclass(frozen=True, kw_only=True)
class Head:
    """weight [outputs, width] and bias [outputs] on features from which `mean` is taken and that `scale` divides."""

    weight: "torch.Tensor"
    bias: "torch.Tensor"
    mean: "torch.Tensor"
    scale: "torch.Tensor"

    def __call__(self, features: "torch.Tensor") -> "torch.Tensor":
        """[rows, width] -> [rows, outputs]: logits of classes, a reward, or a score."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias

    def save(self, path: Path) -> None:
        """As safetensors."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in vars(self).items()}, path)


def features(
    model: "PreTrainedModel",
    texts: Sequence[Sequence[int]],
    layer: int,
    pooling: Pooling,
    budget: int,
    report: Callable[[int, int], None],
) -> "torch.Tensor":
    """[texts, width] in fp32: the hidden states after `layer` blocks at the last token, or their mean over all tokens.

    budget: tokens of a batch, padding included. Texts are sorted by length and padded on the right, where no token of a
    decoder sees them.
    """
    import torch

    from toolkit.generation.models import device_of

    device, found, done = device_of(model), torch.zeros(len(texts), model.config.get_text_config().hidden_size), 0
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    while done < len(order):
        width = len(texts[order[done]])
        rows = order[done : done + max(1, budget // width)]
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(texts[row])] = torch.tensor(texts[row])
            mask[at, : len(texts[row])] = 1
        with torch.inference_mode():
            out = model.base_model(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
            )
        states = out.hidden_states[layer].float().cpu()
        if pooling == "last":
            pooled = states[torch.arange(len(rows)), mask.sum(1) - 1]
        else:
            pooled = (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        found[rows] = pooled
        done += len(rows)
        report(done, len(order))
    return found


def fit_classes(found: "torch.Tensor", labels: "torch.Tensor", classes: int, l2: float) -> Head:
    """Multinomial logistic regression: the sum of cross-entropies plus l2 / 2 |weight|^2, the bias free: scikit-learn's
    with C = 1 / l2."""
    import torch

    mean, scale = _standard(found)
    x = (found.double() - mean) / scale

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(x @ weight.T + bias, labels, reduction="sum") + _penalty(weight, l2)

    weight, bias = _minimise(loss, (classes, x.shape[1]), classes)
    return Head(weight=weight, bias=bias, mean=mean, scale=scale)


def fit_pairs(chosen: "torch.Tensor", rejected: "torch.Tensor", l2: float) -> Head:
    """A reward r with the least sum of -log sigma(r(chosen) - r(rejected)) plus l2 / 2 |weight|^2 (Bradley, Terry)."""
    import torch

    mean, scale = _standard(torch.cat([chosen, rejected]))
    apart = (chosen.double() - rejected.double()) / scale

    def loss(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(apart @ weight.T).sum() + _penalty(weight, l2) + 0 * bias.sum()

    weight, bias = _minimise(loss, (1, apart.shape[1]), 1)  # a reward has no zero of its own: the bias stays 0
    return Head(weight=weight, bias=bias, mean=mean, scale=scale)


def fit_scores(found: "torch.Tensor", scores: "torch.Tensor", l2: float) -> Head:
    """Ridge regression: the sum of squares plus l2 |weight|^2, solved exactly; the bias is free."""
    import torch

    mean, scale = _standard(found)
    x, middle = (found.double() - mean) / scale, scores.double().mean()
    square = x.T @ x + l2 * torch.eye(x.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(square, x.T @ (scores.double() - middle))
    return Head(weight=weight[None], bias=middle[None], mean=mean, scale=scale)


def _standard(found: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    wide = found.double()
    scale = wide.std(0, correction=0)
    return wide.mean(0), scale.clamp_min(1e-12 + 1e-6 * scale.max())  # a feature that does not vary says nothing


def _penalty(weight: "torch.Tensor", l2: float) -> "torch.Tensor":
    return l2 / 2 * weight.square().sum()


def _minimise(loss: Any, shape: tuple[int, int], outputs: int) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    weight = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(weight, bias)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)
    if not math.isfinite(closure().item()):
        raise ValueError("the features are too large for a probe: its loss is not finite")
    return weight.detach(), bias.detach()
