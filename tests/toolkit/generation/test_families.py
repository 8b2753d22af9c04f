"""Greedy answers in left-padded batches are those of each row alone (fp32), whatever the architecture.

A small random model of every architecture that the published families have, and of others in wide use. Weights are
large, so that logits are far apart; sliding windows are shorter than the prompts, so that padding could shift them.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.toolkit.generation.tiny import Tiny
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.generation.engine import Answer, Decoding, Engine, batches
from toolkit.generation.rows import Row
from toolkit.training.architecture import make_config

FAMILIES = ("olmo", "olmo2", "olmo3", "gpt_neox", "llama", "smollm3", "qwen2", "qwen3", "gemma2", "mistral", "phi3")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WINDOWED = {"olmo3", "gemma2", "mistral"}
NEW = 12


def random_model(family: str, tokenizer: Path) -> PreTrainedModel:
    window = {"sliding_window": 8} if family in WINDOWED else {}
    words = {"model_type": family, **SIZES, "max_position_embeddings": 128, **window}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(words, tokenizer), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches_equal_one_row_at_a_time(tiny: Tiny, family: str) -> None:
    tokenizer = load_tokenizer(tiny.model.path)
    engine = Engine(random_model(family, tiny.model.path), tokenizer, Decoding(max_new_tokens=NEW, ends=(0,)))
    draw = torch.Generator().manual_seed(1)
    lengths = (1, 2, 5, 9, 14, 23, 37, 60)
    ids = [tuple(torch.randint(4, len(tokenizer), (n,), generator=draw).tolist()) for n in lengths]
    rows = [Row(id=i, tokens=tokens) for i, tokens in enumerate(ids)]

    def answers(budget: int) -> list[Answer]:
        found = [answer for batch in batches(rows, budget, NEW, step=10**6) for answer in engine.answer(batch)]
        return sorted(found, key=lambda answer: answer.id)

    alone = answers(1)
    assert len(batches(rows, 10**6, NEW, step=10**6)) == 1 and answers(10**6) == alone and answers(150) == alone
    assert len({answer.text for answer in alone}) > len(rows) // 2, "one answer to everything could hide a fault"
    for row, answer in zip(rows, alone, strict=True):  # with transformers' own cache
        plain = torch.tensor([row.tokens])
        words = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 0, "pad_token_id": 1}
        out = engine.model.generate(plain, attention_mask=torch.ones_like(plain), **words)
        assert answer.text == tokenizer.decode(out[0, len(row.tokens) :], skip_special_tokens=True)
