"""Rotary position embeddings: what an original computes, and the words of transformers for the same numbers.

Sources: RoPE (arXiv 2104.09864); position interpolation (2306.15595); YaRN (2309.00071, sections 3.2 to 3.4); the
stepwise scaling of Llama 3.1. What transformers' own formula for a scheme does not give is written as its `longrope`,
which takes a factor for each frequency.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.conversion.settings import Settings

if TYPE_CHECKING:
    import torch

SCHEMES = {
    "ABFRoPEScalingConfig": {"attention_rescale_factor": 1.0, "new_theta": 8_000_000},
    "PIRoPEScalingConfig": {"attention_rescale_factor": 1.0, "factor": 2.0},
    "StepwiseRoPEScalingConfig": {
        "attention_rescale_factor": 1.0, "factor": 32.0, "low_freq_proportion": 0.0, "high_freq_proportion": 0.25,
        "old_context_len": 8192,
    },
    "YaRNRoPEScalingConfig": {"factor": 8.0, "beta_fast": 32, "beta_slow": 1, "old_context_len": 8192},
}  # fmt: skip


def read_scaling(rope: Settings) -> dict[str, Any] | None:
    """The scaling of a rope config: `scheme` and its numbers, defaults filled in; None without one.

    Raises:
        ValueError: a scheme or a field that is not known.
    """
    if rope.take("scaling") is None:
        return None
    scaling = rope.inner("scaling")
    kind = str(scaling.fields.get("_CLASS_", "")).rpartition(".")[2]
    if kind not in SCHEMES:
        raise ValueError(
            f"{scaling.where}: {scaling.path} is a {kind or 'nameless class'}; known: {', '.join(SCHEMES)}"
        )
    found = {"scheme": kind} | {name: scaling.take(name, default) for name, default in SCHEMES[kind].items()}
    scaling.done()
    return found


def frequencies(theta: float, dim: int, scaling: Mapping[str, Any] | None) -> "tuple[torch.Tensor, float]":
    """Inverse frequencies [dim / 2] in fp32, and the factor on sine and cosine."""
    import torch

    steps = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    if scaling is None:
        return 1.0 / theta**steps, 1.0
    plain, rescale = 1.0 / theta**steps, scaling.get("attention_rescale_factor", 1.0)
    match scaling["scheme"]:
        case "ABFRoPEScalingConfig":
            return 1.0 / scaling["new_theta"] ** steps, rescale
        case "PIRoPEScalingConfig":
            return plain / scaling["factor"], rescale
        case "StepwiseRoPEScalingConfig":
            low, high = 1 / (1 - scaling["low_freq_proportion"]), 1 / scaling["high_freq_proportion"]
            turns = scaling["old_context_len"] * plain / (2 * math.pi)  # of each frequency in the old context
            share = ((turns - low) / (high - low)).clamp(0, 1)
            return plain / scaling["factor"] * (1 - share) + plain * share, rescale
        case _:
            first, last = _ramp(theta, dim, scaling)
            last = min(last, dim // 2 - 1)  # of OLMo-core; transformers lets it reach twice as far
            ramp = ((torch.arange(dim // 2) - first) / max(last - first, 1e-3)).clamp(0, 1)
            factor = scaling["factor"]
            return plain / factor * ramp + plain * (1 - ramp), 0.1 * math.log(factor) + 1.0


def _ramp(theta: float, dim: int, scaling: Mapping[str, Any]) -> tuple[int, int]:
    """The frequencies at which YaRN's ramp begins and ends."""

    def dimension(turns: float) -> float:
        return dim * math.log(scaling["old_context_len"] / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = math.floor(dimension(scaling["beta_fast"])), math.ceil(dimension(scaling["beta_slow"]))
    return max(first, 0), last


def parameters(theta: float, dim: int, scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """`rope_parameters` of a Hugging Face config that give the same frequencies and factor."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": float(theta)}
    scheme, old = scaling["scheme"], scaling.get("old_context_len")
    if scheme == "YaRNRoPEScalingConfig":
        if _ramp(theta, dim, scaling)[1] <= dim // 2 - 1:
            numbers = {name: scaling[name] for name in ("factor", "beta_fast", "beta_slow")}
            rescale = 0.1 * math.log(scaling["factor"]) + 1.0
            return {
                "rope_type": "yarn", "rope_theta": float(theta), **numbers, "attention_factor": rescale,
                "original_max_position_embeddings": old,
            }  # fmt: skip
    elif scaling["attention_rescale_factor"] == 1:
        if scheme == "ABFRoPEScalingConfig":
            return {"rope_type": "default", "rope_theta": float(scaling["new_theta"])}
        if scheme == "PIRoPEScalingConfig":
            return {"rope_type": "linear", "rope_theta": float(theta), "factor": scaling["factor"]}
        return {
            "rope_type": "llama3", "rope_theta": float(theta), "factor": scaling["factor"],
            "low_freq_factor": 1 / (1 - scaling["low_freq_proportion"]),
            "high_freq_factor": 1 / scaling["high_freq_proportion"], "original_max_position_embeddings": old,
        }  # fmt: skip
    wanted, rescale = frequencies(theta, dim, scaling)
    factors = (frequencies(theta, dim, None)[0].double() / wanted.double()).tolist()
    return {
        "rope_type": "longrope", "rope_theta": float(theta), "short_factor": factors, "long_factor": factors,
        "factor": 1.0, "attention_factor": rescale, "original_max_position_embeddings": old or 8192,
    }  # fmt: skip
