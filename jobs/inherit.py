"""A smaller (or deeper) model from the blocks of another: Inheritune, spaced inheritance, growing by copies.

Whole blocks are carried over, byte for byte and in the parent's type; embeddings, the final norm and the output head
are the parent's too: Inheritune (arXiv 2404.08634) takes the first k blocks with embeddings and head, and a head that
was learned behind that norm means little behind a new one. What comes out is a start for `job: train`: nothing is
trained here, and a grown model does not compute what its parent does until it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.checkpoints.whole import whole_inputs
from toolkit.stage import Artifact, Context

VERSION = 1
WARM = ("torch", "tokenizers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """layers: blocks of the child. select: which of the parent's blocks they are.

    `first`: blocks 0 to layers - 1 (Inheritune). `spaced`: the first, the last and evenly between them. Both need fewer
    blocks than the parent has. `stack`: all blocks, then all again (0 1 0 1; arXiv 2405.15319 grows so). `interleave`:
    each block and its copies (0 0 1 1). Both need a multiple of the parent's blocks.
    """

    layers: int
    select: Literal["first", "spaced", "stack", "interleave"] = "first"

    def __post_init__(self) -> None:
        least = 2 if self.select == "spaced" else 1
        if self.layers < least:
            raise ValueError(f"layers is {self.layers}: select {self.select} needs at least {least}")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: the parent, with its tokenizer."""

    model: Artifact


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the child: weights, config and tokenizer. Metrics: parameters, and their share of the parent's.

    Raises:
        ValueError: a number of layers that the parent cannot give, a model whose blocks cannot be told, bad inputs.
    """
    from toolkit.checkpoints.blocks import chosen, inherit
    from toolkit.checkpoints.check import check_model, read_config

    parent = whole_inputs(inputs, ctx.state).model.path
    whole = check_model(parent).parameters
    source = chosen(spec.select, int(read_config(parent).get_text_config().num_hidden_layers), spec.layers)
    inherit(parent, source, out)
    parameters = check_model(out).parameters
    return {"layers": spec.layers, "parameters": parameters, "share": parameters / whole}
