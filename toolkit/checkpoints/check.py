"""Is this folder the model that it says it is? Asked before weights are used, and after they are written.

transformers loads a folder with missing keys, initialises those at random and only warns; here that is an error.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.folders import CONFIG, vocabulary
from toolkit.checkpoints.tensors import BYTES, FLOATS, Tensor, chunks, read_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CAUSAL = "AutoModelForCausalLM"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `check_model` found: `parameters` counts elements (tied ones once), `dtypes` are safetensors' words."""

    architecture: str
    parameters: int
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]
    vocab_size: int


def check_model(
    folder: Path, *, tokenizer: Path | None = None, bare: bool = False, auto: str = CAUSAL, values: bool = True
) -> Summary:
    """Check that a Hugging Face folder holds a whole causal language model; every weight is read once, in chunks.

    tokenizer: where the tokenizer's files are, if not in `folder`. bare: there is none, and none is asked for. auto:
    the class of transformers that reads the model, where that is no causal language model. values: look at every
    weight; who wrote them may have done so.

    Raises:
        ValueError: no or unknown config, a missing, truncated or contradictory weight file, a key that the architecture
            does not have or lacks, another shape, a value that is not finite, a vocabulary larger than the embedding.
    """
    config = read_config(folder)
    found = read_folder(folder)
    _check_keys(folder, found, config, auto)
    vocab_size = int(config.get_text_config().vocab_size)
    if not bare:
        check_vocabulary(tokenizer or folder, vocab_size)
    for tensor in found.values() if values else ():
        _check_finite(tensor)
    return Summary(
        architecture=str(config.model_type),
        parameters=sum(t.elements for t in found.values()),
        tensors=len(found),
        bytes=sum(t.elements * BYTES[t.dtype] for t in found.values()),
        dtypes=tuple(sorted({t.dtype for t in found.values()})),
        vocab_size=vocab_size,
    )


def read_config(folder: Path) -> "PreTrainedConfig":
    """The config of a model folder.

    Raises:
        ValueError: there is none, or this transformers does not know its model_type.
    """
    from transformers import AutoConfig

    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no model: there is no {CONFIG}; give a folder in Hugging Face format")
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{folder / CONFIG} cannot be read: {error}") from error


def check_vocabulary(tokenizer: Path, rows: int) -> None:
    """Every id of the tokenizer must have a row in the embedding (more rows than tokens is common padding).

    Raises:
        ValueError: it has not.
    """
    highest = max(vocabulary(tokenizer).values(), default=-1)
    if highest >= rows:
        raise ValueError(
            f"the tokenizer in {tokenizer} has {highest + 1} tokens and the embedding only {rows} rows: set vocab_size"
            f" to at least {highest + 1}, or give the tokenizer that the model was made with"
        )


def expected(
    config: "PreTrainedConfig", auto: str = CAUSAL
) -> tuple[dict[str, tuple[int, ...]], list[set[str]], list[str], Callable[[str], str]]:
    """Keys -> shapes of the architecture, groups of keys that share one tensor, patterns of keys that may be ignored.

    Last, what transformers calls a key that it saves under an older name (Pythia's embed_out is an lm_head). The model
    is built on the meta device: no memory, no initialisation.
    """
    import torch
    import transformers
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(config)
    state = model.state_dict(keep_vars=True)
    groups: dict[int, set[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), set()).add(name)
    ignored = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    renamings = [change for change in get_model_conversion_mapping(model) if isinstance(change, WeightRenaming)]
    tied = [group for group in groups.values() if len(group) > 1]
    return shapes, tied, ignored, lambda name: apply_renamings(name, renamings)


def _check_keys(folder: Path, found: Mapping[str, Tensor], config: Any, auto: str) -> None:
    shapes, tied, ignored, renamed = expected(config, auto)
    found = {name if name in shapes else renamed(name): tensor for name, tensor in found.items()}
    optional = {name for group in tied if group & set(found) for name in group}
    missing = sorted(set(shapes) - set(found) - optional)
    unexpected = sorted(n for n in set(found) - set(shapes) if not any(re.search(p, n) for p in ignored))
    if missing or unexpected:
        raise ValueError(
            f"the weights in {folder} are not those of a {config.model_type} as its {CONFIG} describes it:"
            f" missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    for name, tensor in found.items():
        if name in shapes and tensor.shape != shapes[name]:
            raise ValueError(
                f"tensor {name!r} in {tensor.file} has shape {tensor.shape}; a {config.model_type} as {CONFIG}"
                f" describes it has {shapes[name]}"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} ({shown})" if names else "0"


def _check_finite(tensor: Tensor) -> None:
    import torch

    if tensor.dtype not in FLOATS:
        return
    for number, part in enumerate(chunks(tensor)):
        if not bool(torch.isfinite(part).all()):
            raise ValueError(
                f"tensor {tensor.name!r} in {tensor.file} has values that are not finite (first in chunk {number})"
            )
