"""Prompt and completion into token ids and labels, with exactly the prompt's ids that generation will see.

What has a loss is the completion and its end token, and nothing else: no newline that a chat template puts after it, no
part of the prompt that merges with it. What cannot be told apart is refused: a prompt that ends in a space (tokenizers
put it into the completion's first token), a text that begins with two begin-of-text tokens.
"""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.manifest.files import seal, write_atomic

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # a label that is no target, as torch's cross_entropy has it
BATCH = 1000

Pair = tuple[list[int], list[int]]


def tokenise(
    data: "Dataset", tokenizer: "PreTrainedTokenizerBase", template: str, max_length: int, state: Path
) -> "tuple[Dataset, dict[str, int]]":
    """Rows of `input_ids` and `labels`, memory-mapped from `state`, and counts (rows, truncated, dropped, ...).

    data: rows with `prompt` and `completion`. What is beyond max_length is cut off the end; a row with no target left
    is dropped. Rows that an earlier attempt tokenised are used again.

    Raises:
        ValueError: no end-of-text token, no chat template, a column that is not text, or no target left in any row.
    """
    from datasets import Dataset

    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token): completions could not be ended; set one")
    path, counts = state / "rows.arrow", state / "rows.json"
    if not counts.is_file():
        found = _write(data, renderer(tokenizer, template), max_length, path)
        if found["rows"] == 0:
            raise ValueError(
                f"no completion token is left in any of the {len(data)} rows after cutting to max_length {max_length}:"
                " raise max_length, or look whether the completions are empty"
            )
        write_atomic(counts, json.dumps(found).encode())
    return Dataset.from_file(str(path)), json.loads(counts.read_text())


def _write(
    data: "Dataset", pairs: Callable[[dict[str, Any]], list[Pair]], max_length: int, path: Path
) -> dict[str, int]:
    import pyarrow

    counts = {"rows": 0, "truncated": 0, "dropped": 0, "longest": 0, "targets": 0}
    schema = pyarrow.schema({name: pyarrow.list_(pyarrow.int32()) for name in ("input_ids", "labels")})
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with pyarrow.OSFile(str(part), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
        for batch in data.select_columns(["prompt", "completion"]).iter(BATCH):
            ids, labels = _cut(pairs(batch), max_length, counts)
            columns = [pyarrow.array(rows, schema.field(0).type) for rows in (ids, labels)]
            writer.write_batch(pyarrow.record_batch(columns, schema=schema))
    seal(part)
    part.replace(path)
    return counts


def _cut(pairs: list[Pair], max_length: int, counts: dict[str, int]) -> tuple[list[list[int]], list[list[int]]]:
    ids, labels = [], []
    for prompt, completion in pairs:
        counts["truncated"] += len(prompt) + len(completion) > max_length
        targets = completion[: max(0, max_length - len(prompt))]
        # The first token of a row has nothing before it to be predicted from, so alone it is no target.
        if not targets or not prompt and len(targets) < 2:
            counts["dropped"] += 1
            continue
        ids.append(prompt + targets)
        labels.append([IGNORED] * len(prompt) + targets)
        counts["rows"] += 1
        counts["longest"] = max(counts["longest"], len(ids[-1]))
        counts["targets"] += len(targets)
    return ids, labels


def check_context(longest: int, model: Path) -> None:
    """The longest row against the positions that the model in a folder has.

    Raises:
        ValueError: it has more tokens.
    """
    from toolkit.checkpoints.check import read_config

    limit = getattr(read_config(model).get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ValueError(
            f"the longest row has {longest} tokens and the model {limit} positions: set max_length to at most {limit}, "
            "which cuts what is beyond and counts it"
        )


def renderer(tokenizer: "PreTrainedTokenizerBase", template: str) -> Callable[[dict[str, Any]], list[Pair]]:
    """What makes a batch of `prompt` and `completion` the ids of each (or ValueError: not text, no chat template)."""
    if template == "chat" and tokenizer.chat_template is None:
        raise ValueError("template is chat and the tokenizer has no chat template: use plain, or give it a template")
    render = _chat if template == "chat" else _plain

    def pairs(batch: dict[str, Any]) -> list[Pair]:
        for name in ("prompt", "completion"):
            wrong = [value for value in batch[name] if not isinstance(value, str)]
            if wrong:
                raise ValueError(f"column {name!r} must hold text; it holds {wrong[0]!r}")
        return [render(tokenizer, p, c) for p, c in zip(batch["prompt"], batch["completion"], strict=True)]

    return pairs


def _plain(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> Pair:
    if prompt.endswith(" "):
        raise ValueError(
            f"the prompt {prompt[-60:]!r} ends in a space, and models that are tuned on such prompts answer with "
            "nothing: let the completion begin with the space (prepare does, `dataset: instructions`)"
        )
    if not completion:
        return _ids(tokenizer, prompt, special=True), []
    return _split(tokenizer, prompt, prompt + completion, completion, special=True)


def _chat(tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str) -> Pair:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    head = str(tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
    if not completion:
        return _ids(tokenizer, head, special=False), []
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    if not whole.startswith(head):
        raise ValueError(
            "the chat template does not put the assistant's turn after the generation prompt, so the completion cannot"
            f" be told from the prompt: prompt {head[-60:]!r}, whole {whole[:200]!r}"
        )
    rest = whole[len(head) :].rstrip()  # a newline after the end of the turn is nothing that the model should say
    return _split(tokenizer, head, head + rest, rest, special=False)


def _split(tokenizer: "PreTrainedTokenizerBase", head: str, whole: str, rest: str, *, special: bool) -> Pair:
    """Ids of the prompt and of what follows. Tokenised as one where that leaves the prompt's ids alone, else in two."""
    prompt, both = _ids(tokenizer, head, special=special), _ids(tokenizer, whole, special=special)
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and both[:2] == [bos, bos]:
        raise ValueError(
            f"the text begins with two {tokenizer.bos_token}, one of the tokenizer and one of the "
            f"{'prompt' if special else 'chat template'}: take it out there; {whole[:80]!r}"
        )
    completion = both[len(prompt) :] if both[: len(prompt)] == prompt else _alone(tokenizer, rest)
    eos = tokenizer.eos_token_id
    return prompt, completion if completion and completion[-1] == eos else [*completion, eos]


def _alone(tokenizer: "PreTrainedTokenizerBase", rest: str) -> list[int]:
    """The ids of a text that goes on, where it cannot be tokenised together with what is before it.

    Hazard: tokenizers of the SentencePiece kind put a space before a text. After a newline they do not.
    """
    for before in ("\n", "."):
        start, both = _ids(tokenizer, before, special=False), _ids(tokenizer, before + rest, special=False)
        if both[: len(start)] == start and tokenizer.decode(both)[len(tokenizer.decode(start)) :] == rest:
            return both[len(start) :]
    return _ids(tokenizer, rest, special=False)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special)["input_ids"]
    # Some tokenizers close every text with the end token; after a prompt it would say that there is nothing to come.
    while special and ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids
