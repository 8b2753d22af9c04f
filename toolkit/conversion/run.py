"""A folder's model, run in fp32 on a few tokens, whatever its size; and how many bits it needs for a fixed text.

The bits tell checkpoints apart: a curve over steps that jumps, or two steps that agree to five decimals, is how wrong
weights show after the fact. They are not a benchmark.
"""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from toolkit.checkpoints.check import read_config
from toolkit.checkpoints.folders import has_tokenizer, load_tokenizer
from toolkit.checkpoints.tensors import read_folder

IN_MEMORY = 1_000_000_000  # bytes in fp32 above which matrices stay on the disk until their turn
LENGTH = 512  # tokens at once, at most
TEXT = (
    "The tide rises and falls twice a day along most coasts, because the Moon pulls on the near side of the Earth a"
    " little more than on the far side. In 1687 Newton explained it; harbours had kept tables for centuries before.\n\n"
    "At spring tide, when Sun, Moon and Earth stand in a line, the range is largest: 16.3 metres in the Bay of Fundy,"
    " where a hundred cubic kilometres of water go in and out. A week later, at neap tide, it's about half of that.\n"
    "def height(hours):\n    return 3.2 + 2.7 * cos(2 * pi * hours / 12.42)\n\n"
    "Who sets out at low water walks across the sand to the island; who doesn't come back in time stays there for six"
    " hours. 'You'll hear it before you see it,' the old pilot said.\n"
)


def open_model(folder: Path, config: Any) -> Any:
    """The model of a folder in fp32, ready to run; of a large one, matrices are read from the disk when they are used.

    Raises:
        ValueError: transformers would initialise a weight at random, or leave one out.
    """
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if 4 * sum(tensor.elements for tensor in read_folder(folder).values()) > IN_MEMORY:
        options = {"device_map": _places(config)}
    with TemporaryDirectory() as unused:  # transformers asks for it, and reads safetensors where they are
        if options:
            options["offload_folder"] = unused
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), config=config, dtype=torch.float32, output_loading_info=True,
            local_files_only=True, **options,
        )  # fmt: skip
    model, found = loaded
    wrong = {kind: sorted(map(str, names))[:3] for kind, names in found.items() if names}
    if wrong:
        raise ValueError(f"{folder}: transformers does not take its weights as they are: {wrong}")
    return model.eval()


def _places(config: Any) -> dict[str, str]:
    """Module -> where it is kept: matrices on the disk, norms and buffers in memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    places = {}
    for name, module in skeleton.named_modules():
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if held:
            places[name] = "disk" if any(tensor.ndim > 1 for tensor in held) else "cpu"
    return places


def bits(folder: Path) -> dict[str, float]:
    """`bits_per_byte` of a fixed text with the folder's tokenizer, or `bits_per_token` of fixed ids where it has none.

    Rounded to 6 decimals, so that threads and machines agree.
    """
    import torch

    config = read_config(folder)
    model = open_model(folder, config)
    if has_tokenizer(folder):
        tokenizer = load_tokenizer(folder)
        ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        name, units = "bits_per_byte", len(TEXT.encode())
    else:
        size = int(config.get_text_config().vocab_size)
        ids = torch.randint(0, size, (128,), generator=torch.Generator().manual_seed(1)).tolist()
        start, name, units = None, "bits_per_token", len(ids)
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH) - 1
    total = sum(_bits(model, ids[at : at + length], start) for at in range(0, len(ids), length))
    return {name: round(total / units, 6)}


def _bits(model: Any, ids: list[int], start: int | None) -> float:
    """Bits of the ids, each given those before it; without a token to start from, the first is free."""
    import torch

    row = torch.tensor([ids if start is None else [start, *ids]])
    with torch.no_grad():
        logits = model(row, use_cache=False).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")) / math.log(2)
