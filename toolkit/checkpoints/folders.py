"""Files of a Hugging Face model folder beside its weights: which they are, and how they are copied bit for bit."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
GENERATION = "generation_config.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


def copy_file(source: Path, target: Path, *, link: bool) -> None:
    """Copy bytes and nothing else; `link` shares the inode where the file system allows it.

    Hazard: only a file that nobody will ever write to may be linked, so never one in a folder of the user's own.
    """
    if link:
        try:
            return os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
    shutil.copyfile(source, target)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files byte for byte: a tokenizer that is saved anew may come out as another one.

    Raises:
        ValueError: there is no tokenizer in `source`.
    """
    found = [name for name in TOKENIZER if (source / name).is_file()]
    if "tokenizer_config.json" not in found:
        raise ValueError(f"{source} holds no tokenizer: there is no tokenizer_config.json")
    for name in found:
        copy_file(source / name, target / name, link=False)


def copy_config(source: Path, target: Path, dtype: str) -> None:
    """config.json with `dtype` ("float32", "bfloat16", ...) as the weights' type; generation_config.json as it is."""
    config = json.loads((source / CONFIG).read_text())
    config.pop("torch_dtype", None)  # the older spelling would contradict the newer one
    config["dtype"] = dtype
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if (source / GENERATION).is_file():
        copy_file(source / GENERATION, target / GENERATION, link=False)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder, exactly as its tokenizer.json says.

    Hazard: without a config.json beside it, AutoTokenizer may rebuild the tokenizer with another pre-tokenizer (as many
    tokens, other ids), so such a folder is read as the generic fast tokenizer.

    Raises:
        ValueError: there is no tokenizer in the folder.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer: there is no tokenizer_config.json")
    kind: Any = AutoTokenizer if (folder / CONFIG).is_file() else PreTrainedTokenizerFast
    return kind.from_pretrained(str(folder), local_files_only=True)


def vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id of the tokenizer of a folder, added tokens included."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        vocab: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
        return vocab
    return dict(load_tokenizer(folder).get_vocab())
