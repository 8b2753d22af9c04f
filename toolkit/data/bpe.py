"""Train a byte-level BPE tokenizer and save it so that it loads as it was trained.

Training counts words and merges pairs in a fixed order, so equal text gives an equal tokenizer. After saving, the
folder is loaded again and probed: transformers can rebuild a tokenizer with another pre-tokenizer, which only other ids
show.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from toolkit.checkpoints.folders import PROBES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# {% generation %} marks what the assistant says, for TRL's assistant_only_loss. The text is the one that
# toolkit.data.templates.conversation writes, with EOS after each answer.
CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}"
    "{% else %}"
    "{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def train(
    batches: Iterable[list[str]],
    *,
    vocab_size: int,
    min_frequency: int,
    special: Sequence[str],
    bos: str | None,
    split_digits: bool,
) -> "Tokenizer":
    """A tokenizer with exactly `vocab_size` ids; `special` are the first of them.

    Raises:
        ValueError: the text has too few pairs to merge for that many.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(batches, trainer)
    size = tokenizer.get_vocab_size()
    if size != vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}, and the text allows at most {size} with min_frequency {min_frequency}: no "
            "other pair of tokens occurs that often; lower vocab_size or min_frequency, or give more text"
        )
    if bos is not None:
        begin = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = begin
    return tokenizer


def save(
    tokenizer: "Tokenizer",
    folder: Path,
    *,
    eos: str,
    pad: str,
    bos: str | None,
    chat_template: Literal["plain", "none"],
) -> None:
    """Write tokenizer.json and tokenizer_config.json, load them again and compare ids on probes.

    `unk_token` is set to EOS, as GPT-2 does: bytes leave nothing unknown, but some code asks for its id.
    """
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, unk_token=eos, bos_token=bos,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    if chat_template == "plain":
        fast.chat_template = CHAT
    fast.save_pretrained(str(folder))
    loaded = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    for probe in PROBES:
        ids = tokenizer.encode(probe).ids
        assert loaded(probe)["input_ids"] == ids, f"the saved tokenizer reads {probe!r} in another way"
        assert loaded.decode(ids, skip_special_tokens=True) == probe, f"{probe!r} does not survive decoding"


def bytes_per_token(tokenizer: "Tokenizer", texts: list[str]) -> float:
    """How much text a token holds, over `texts`."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return sum(len(text.encode()) for text in texts) / max(sum(len(item.ids) for item in encoded), 1)
