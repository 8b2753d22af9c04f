"""The keys and values of a batch, in memory that has room for the answers from the start.

transformers' own cache is copied as a whole for every token that is added to it. On a CPU the copies take as long as
attention itself, a third of a step with long prompts.
"""

from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from toolkit.generation.models import padding_matters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RoomyLayer(DynamicLayer):
    """One layer with room for so many `positions`; `keys` and `values`, [rows, heads, positions so far, head size], are
    views of what is filled."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.memory: list[torch.Tensor] = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Add what is new; returns all keys and all values."""
        news = (key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(*news)
            self.memory = [new.new_empty((*new.shape[:2], self.positions, new.shape[3])) for new in news]
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        for memory, new in zip(self.memory, news, strict=True):
            memory[:, :, start:end] = new
        self.keys, self.values = (memory[:, :, :end] for memory in self.memory)
        return self.keys, self.values


def roomy(model: "PreTrainedModel", positions: int) -> Cache | None:
    """A cache for `generate`; None where transformers' own is as good, or where learned prefixes stand in it.

    Layers with a sliding window, or without keys and values, stay as they are: they do not grow.
    """
    if padding_matters(model):
        return None
    cache = DynamicCache(config=model.config)
    grows = [type(layer) is DynamicLayer for layer in cache.layers]
    cache.layers = [RoomyLayer(positions) if g else layer for g, layer in zip(grows, cache.layers, strict=True)]
    return cache if any(grows) else None
