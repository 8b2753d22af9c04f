"""How many sequences go through a model at once: a number that was chosen, or as many tokens as were allowed and as the
memory that is free can hold. A guess that was too high is halved when memory runs out (see `harness`).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.stage import Resources

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE = 0.7  # of the free memory: the rest is for what the guess leaves out
CGROUPS = (  # (limit, use) of the memory of a container or a Slurm job
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True, kw_only=True)
class Room:
    """Sequences of a batch, by the tokens of its longest: `sequences` where chosen, else what `tokens` allow."""

    sequences: int | None
    tokens: int
    halvings: int = 0

    def __call__(self, longest: int) -> int:
        return max(1, (self.sequences or self.tokens // max(1, longest)) >> self.halvings)


def room(resources: Resources) -> Room:
    """What the resources of an attempt allow."""
    return Room(
        sequences=resources.micro_batch, tokens=resources.batch_tokens, halvings=resources.halvings
    )  # fmt: skip


def fitting(model: "PreTrainedModel", processes: int) -> int:
    """Tokens of a batch for which memory is free where the model is; `processes` share a CPU's memory."""
    import torch

    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = _free_memory() // processes
    return max(1, int(SHARE * free) // _bytes_a_token(model))


def _bytes_a_token(model: "PreTrainedModel") -> int:
    """Logits, their logarithms in twice the width, keys and values of every layer, and a layer's own activations."""
    config, width = model.config.get_text_config(), model.dtype.itemsize
    logits = config.vocab_size * 3 * max(width, 4)
    return int(logits + 2 * config.num_hidden_layers * config.hidden_size * width + 32 * config.hidden_size * width)


def _free_memory() -> int:
    """Bytes that this process may still use: of the machine, and of the group of processes that it is in."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    assert found is not None
    free = [int(found[1]) * 1024]
    for limit, use in CGROUPS:
        try:
            free.append(int(Path(limit).read_text()) - int(Path(use).read_text()))
        except (OSError, ValueError):  # there is no such group, or it has no limit ("max")
            continue
    return max(0, min(free))
