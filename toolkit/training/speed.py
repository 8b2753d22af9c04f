"""How fast training is beside what the device can do: MFU is the model's FLOPs a second over a measured peak."""

import resource
import time
from math import prod
from typing import TYPE_CHECKING, Any

from toolkit.training.state import shape_of

if TYPE_CHECKING:
    import torch


class Gauge:
    """Measures the peak once, in some milliseconds, and then turns tokens a second (of all ranks) into MFU."""

    def __init__(self, model: Any, tokens_a_row: int, precision: str, ranks: int) -> None:
        self.flops = flops_a_token(model, tokens_a_row)
        self.peak = peak(next(model.parameters()).device, precision) * ranks

    def mfu(self, tokens_a_second: float) -> float:
        """From 0 to 1."""
        return tokens_a_second * self.flops / self.peak


def flops_a_token(model: Any, tokens_a_row: int) -> float:
    """FLOPs of a token's way forward and back: 2 for each weight of a matrix forward, 2 more for the gradient of what
    goes into it, 2 more for its own if it is trained; 12 x layers x width x length for attention.

    Source: PaLM (arXiv 2204.02311, appendix B), where all weights are trained. The embedding is a look-up, and its
    matrix counts where it is the output head too.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    looked_up = head is None or head.weight is not embedding
    total = 0.0
    for parameter in model.parameters():
        if not (looked_up and parameter is embedding):
            total += (6 if parameter.requires_grad else 4) * prod(shape_of(parameter))
    return total + 12 * config.num_hidden_layers * config.hidden_size * tokens_a_row


def peak(device: "torch.device", precision: str, repeats: int = 3) -> float:
    """FLOPs a second of a product of large square matrices, the best of some, as fast as torch can make it here."""
    import torch

    size = 8192 if device.type == "cuda" else 512
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.ones(size, size, dtype=kind, device=device)
    best = float("inf")
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def memory_gb() -> float:
    """The most that this process has held: of the GPU's memory where it uses one, or of the machine's."""
    import torch

    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
