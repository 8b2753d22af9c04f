"""Files of a Hugging Face model folder beside its weights: which they are, and how they are copied bit for bit."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

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

# Texts on which tokenizers that only look alike differ: digits, contractions, newlines, spaces, other scripts.
PROBES = (
    "In 1987, 12345678 people didn't know that she'd they're WE'LL.",
    "One line\nanother\n\n\n  indented by two\ttab  two spaces ",
    "naïve café, 東京, Ελλάδα, 🙂 <unk> = x**2 + y_1;",
    " Question: Who?\nAnswer:",
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


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return (folder / "tokenizer_config.json").is_file()


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
    """The tokenizer of a tokenizer or model folder, exactly as its tokenizer.json says.

    Hazard: beside some config.json (Qwen2's, say) or beside none, AutoTokenizer rebuilds a tokenizer with another
    pre-tokenizer: as many tokens, other ids. A model would then be trained on other ids than it is asked with, and no
    loss shows that.

    Raises:
        ValueError: there is no tokenizer in the folder, or AutoTokenizer gives other ids than its tokenizer.json.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if not has_tokenizer(folder):
        raise ValueError(f"{folder} holds no tokenizer: there is no tokenizer_config.json")
    if not (folder / CONFIG).is_file():
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    auto: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if (folder / "tokenizer.json").is_file():
        exact = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        wrong = [text for text in PROBES if auto(text)["input_ids"] != exact(text)["input_ids"]]
        if wrong:
            raise ValueError(
                f"transformers reads {folder} as {type(auto).__name__}, which gives other ids than the tokenizer.json "
                f"in it for {wrong[0]!r}; save one over the other, so that training and use agree: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) keeps what transformers reads"
            )
    return auto


def check_tokenizer(given: Path, folder: Path) -> None:
    """What is read from a model folder must be the tokenizer that was given for it.

    Raises:
        ValueError: it gives other ids for some text; a rebuilt one has as many tokens and shows in no other way.
    """
    from transformers import PreTrainedTokenizerFast

    found = load_tokenizer(folder)
    if (given / "tokenizer.json").is_file():
        exact = PreTrainedTokenizerFast.from_pretrained(str(given), local_files_only=True)
        wrong = [text for text in PROBES if found(text)["input_ids"] != exact(text)["input_ids"]]
        if wrong:
            raise ValueError(
                f"the tokenizer in {folder} gives other ids than the one in {given} for {wrong[0]!r}: it was rebuilt,"
                " probably with another pre-tokenizer; copy the files byte for byte"
            )


def vocabulary(folder: Path) -> dict[str, int]:
    """Token -> id of the tokenizer of a folder, added tokens included."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        vocab: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
        return vocab
    return dict(load_tokenizer(folder).get_vocab())
