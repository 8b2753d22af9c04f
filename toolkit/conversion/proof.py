"""Does the converted folder compute what the original computes? Asked of the written files, before they are recorded.

Loss does not tell: with queries and keys swapped, or norms, it moves in the third digit. So logits are compared, of
transformers' model and of the original's layout written out in torch, both in fp32 on the same tokens:

- norm gains are multiplied by a random pattern that follows the original's names: those of an early checkpoint are
  nearly equal, and norms that were swapped would hide;
- windows are shortened by the same number of tokens on both sides, so that few tokens are more than a window, and a
  window that is off by one stays off by one;
- one of the two sequences has tiny embeddings: there an epsilon is as large as what it is added to;
- where something is clipped, once more with the clip so low, in the same ratio on both sides, that it is reached.

All layers run, with one matrix in memory at a time where the model is large.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.check import read_config
from toolkit.checkpoints.tensors import TORCH
from toolkit.conversion.original import Original, Stress
from toolkit.conversion.run import open_model
from toolkit.conversion.weights import load

if TYPE_CHECKING:
    import torch

TOKENS, WINDOW, TINY, CLIP = 40, 16, 0.01, 0.2
# Shares of the largest logit. fp32 alone makes 2e-7 to 4e-6 in a few layers, the mistakes of the tests 3e-2 and more.
TOLERANCE = 1e-3
SAME = 1e-4  # against the reference implementation
REFERENCE = "reference_logits.safetensors"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Largest differences of logits; `reference` is against the reference implementation's, where it left some."""

    tokens: int
    layers: int
    difference: float
    reference: float | None


def prove(original: Original, folder: Path, dtype: str | None = None) -> Proof:
    """Hold the converted `folder` against its original. dtype: safetensors' word that the weights were cast to.

    Raises:
        ValueError: they do not compute the same.
    """
    import torch

    config = read_config(folder)
    ids = torch.randint(0, original.config["vocab_size"], (2, TOKENS), generator=torch.Generator().manual_seed(0))
    shorter = max(0, min((w for w in original.windows if w is not None), default=0) - WINDOW)
    clips = [1.0]
    if original.clip is not None or getattr(config, "clip_qkv", None) is not None:
        clips.append(CLIP / (original.clip or config.clip_qkv))
    exact = dtype is None or all(weight.dtype == dtype for weight in original.sources.values())
    difference = 0.0
    for clip in clips:
        stress = Stress(shorter=shorter, clip=clip)
        difference = max(difference, _compare(original, folder, dtype, ids, stress))
    return Proof(
        tokens=ids.numel() * len(clips),
        layers=original.config["num_hidden_layers"],
        difference=difference,
        reference=_against_reference(original, folder) if exact else None,
    )


def _compare(original: Original, folder: Path, dtype: str | None, ids: "torch.Tensor", stress: Stress) -> float:
    import torch

    def ours(name: str) -> torch.Tensor:
        tensor = load(original.sources[name])
        tensor = (tensor.to(getattr(torch, TORCH[dtype])) if dtype else tensor).float()
        return tensor * _pattern(name, tensor) if tensor.ndim == 1 else tensor

    config = read_config(folder)
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window -= stress.shorter
    if getattr(config, "clip_qkv", None) is not None:
        config.clip_qkv *= stress.clip
    model = open_model(folder, config)
    _check_rotary(original, model, folder)
    scale = torch.tensor([1.0, TINY])[:, None, None]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = original.targets[name]
            if parameter.ndim == 1 and weight.pieces:
                parameter.mul_(_pattern(weight.name, parameter))
        theirs = model(inputs_embeds=model.get_input_embeddings()(ids) * scale, use_cache=False).logits
        wanted = original.logits(ids, ours, stress, scale)
    return check_same(theirs, wanted, TOLERANCE, f"{folder}: the converted model and its original {original.folder}")


def _pattern(name: str, like: "torch.Tensor") -> "torch.Tensor":
    """Factors of 0.5 to 1.5 that depend on the original's name of a weight."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.rand(like.shape, generator=generator) + 0.5


def check_same(got: "torch.Tensor", wanted: "torch.Tensor", tolerance: float, what: str) -> float:
    """The largest difference. tolerance: as a share of the largest wanted value.

    Raises:
        ValueError: it is above the tolerance, or the shapes differ.
    """
    if got.shape != wanted.shape:
        raise ValueError(f"{what} give logits of shapes {tuple(got.shape)} and {tuple(wanted.shape)}")
    found, largest = float((got - wanted).abs().max()), float(wanted.abs().max())
    if not found <= tolerance * largest:  # also where it is not a number
        raise ValueError(
            f"{what} do not compute the same: logits up to {largest:.3g} differ by up to {found:.2g}, and"
            f" {tolerance * largest:.1g} is allowed; nothing is recorded. Report the original's config: a part of it is"
            " converted wrongly"
        )
    return found


def _check_rotary(original: Original, model: Any, folder: Path) -> None:
    """The frequencies that transformers made of the written config; few tokens do not show those of long contexts.

    Raises:
        ValueError: a layer has others than the original's.
    """
    import torch

    rotary = model.get_decoder().rotary_emb
    kinds = getattr(model.config, "layer_types", None) or [None] * original.config["num_hidden_layers"]
    for layer, kind in enumerate(kinds):
        frequencies, factor = original.rotary(layer)
        prefix = "" if kind is None else f"{kind}_"
        theirs = getattr(rotary, f"{prefix}inv_freq")
        close = theirs.shape == frequencies.shape and torch.allclose(theirs, frequencies, rtol=1e-5, atol=0.0)
        if not close or abs(getattr(rotary, f"{prefix}attention_scaling") - factor) > 1e-6 * factor:
            raise ValueError(
                f"{folder}: layer {layer} has other rotary frequencies (or another factor) than the original; look at"
                " rope_parameters"
            )


def _against_reference(original: Original, folder: Path) -> float | None:
    """Against the logits that the reference implementation left beside the original, as it is and in full."""
    import torch
    from safetensors.torch import load_file

    if not (original.folder / REFERENCE).is_file():
        return None
    saved = load_file(original.folder / REFERENCE)
    with torch.no_grad():
        found = open_model(folder, read_config(folder))(saved["input_ids"], use_cache=False).logits
    what = f"{folder}: the converted model and {original.folder / REFERENCE}"
    return check_same(found, saved["logits"].float(), SAME, what)
