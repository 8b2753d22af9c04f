"""Answers from a Hugging Face model: rows sorted by length into batches under a token budget, padded on the left.

A batch takes as long as its tokens do, padding included, and as its steps do however few rows it has: rows are cut
where both together are least. In fp32 a row's answer does not depend on the batch it is in, so the budget is a
resource, not part of an experiment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from toolkit.generation.cache import roomy
from toolkit.generation.models import device_of, padding_matters
from toolkit.generation.rows import Row
from toolkit.generation.sampling import RowSampler, StopText, uniforms

# Tokens of prompts that a CPU gets through in the time that a step takes to read the weights, however few rows it has:
# arithmetic against memory, and so a measure of machines (measured: 23) and hardly of models.
STEP = 24


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen: temperature 0 is greedy. `stop` are strings that end an answer and are not part of it,
    unless `keep_stop`; `ends` are ids that end it."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`tokens`: how many were generated, the one that ended the answer included; `ended`: it ended by itself."""

    id: int
    text: str
    tokens: int
    ended: bool


def batches(rows: Sequence[Row], budget: int, new_tokens: int, step: int = STEP) -> list[list[Row]]:
    """Rows from the longest to the shortest in batches of at most `budget` tokens, prompt padding and answer included:
    of all that can be cut, those that cost least, where each of `new_tokens` steps of a batch costs `step` tokens.

    A row that exceeds the budget goes alone. A large `step` makes the fewest batches.
    """
    ordered = sorted(rows, key=lambda row: (-len(row.tokens), row.id))
    widths = np.array([len(row.tokens) + new_tokens for row in ordered], np.int64)
    costs = np.zeros(len(ordered) + 1, np.int64)  # of the first n rows
    begins = [0] * (len(ordered) + 1)  # of the batch that ends there
    first = 0
    for end in range(1, len(ordered) + 1):
        while first < end - 1 and (end - first) * widths[first] > budget:
            first += 1
        totals = costs[first:end] + np.arange(end - first, 0, -1) * widths[first:end]
        begins[end] = first + int(totals.argmin())
        costs[end] = totals.min() + new_tokens * step
    found: list[list[Row]] = []
    end = len(ordered)
    while end:
        found.insert(0, ordered[begins[end] : end])
        end = begins[end]
    return found


def pad(batch: Sequence[Row], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, filled up on the left, and the mask of those that are a row's own; both [rows, longest row]."""
    width = max(len(row.tokens) for row in batch)
    ids = torch.full((len(batch), width), filler, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(batch):
        ids[i, width - len(row.tokens) :] = torch.tensor(row.tokens)
        mask[i, width - len(row.tokens) :] = 1
    return ids, mask


class Engine:
    """A model and its tokenizer, ready to answer batches with one way of decoding."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        ends = sorted(decoding.ends)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else next(iter(ends), 0)
        # generate() would fill what is left open from the model's own defaults (sampling, penalties).
        model.generation_config = GenerationConfig()
        self.settings = GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=self.pad,
        )

    @torch.inference_mode()
    def answer(self, batch: Sequence[Row]) -> list[Answer]:
        """One answer a row, in the order of the rows."""
        lengths = {len(row.tokens) for row in batch}
        if len(lengths) > 1 and padding_matters(self.model):
            alike = [self.answer([row for row in batch if len(row.tokens) == length]) for length in sorted(lengths)]
            found = {answer.id: answer for answers in alike for answer in answers}
            return [found[row.id] for row in batch]
        how = self.decoding
        ids, mask = pad(batch, self.pad)
        width = ids.shape[1]
        choose = LogitsProcessorList()
        if how.temperature > 0:
            numbers = uniforms(how.seed, [row.id for row in batch], how.max_new_tokens)
            choose.append(RowSampler(numbers, width, how.temperature, how.top_p))
        stopper = StopText(self.tokenizer, how.stop, width) if how.stop else None
        generate: Any = self.model.generate
        out = generate(
            ids.to(device_of(self.model)),
            attention_mask=mask.to(device_of(self.model)),
            past_key_values=roomy(self.model, width + how.max_new_tokens),
            generation_config=self.settings,
            logits_processor=choose,
            stopping_criteria=StoppingCriteriaList([stopper] if stopper else []),
        )
        ended = stopper.ended if stopper else {}
        tokens = out[:, width:].tolist()
        return [read(row, tokens[i], ended.get(i), self.tokenizer, how) for i, row in enumerate(batch)]


def read(row: Row, tokens: list[int], stopped: int | None, tokenizer: PreTrainedTokenizerBase, how: Decoding) -> Answer:
    """The answer in what a model generated. stopped: how many tokens there were when a stop string was complete."""
    tokens = tokens[:stopped]
    end = next((i for i, token in enumerate(tokens) if token in how.ends), None)
    count = len(tokens) if end is None else end + 1
    text = str(tokenizer.decode(tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False))
    cuts = [(text.find(string), len(string)) for string in how.stop if string in text]
    if cuts:
        at, size = min(cuts)
        text = text[: at + (size if how.keep_stop else 0)]
    return Answer(id=row.id, text=text, tokens=count, ended=end is not None or stopped is not None)
