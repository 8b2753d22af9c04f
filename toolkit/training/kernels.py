"""Which kernels there are on this machine; `training.json` records what a run used. None changes a result by more than
rounding."""

from importlib.util import find_spec


def attention(precision: str) -> dict[str, str]:
    """FlashAttention 2 where its package and a GPU are there, for bf16; else what transformers chooses, mostly SDPA."""
    from transformers.utils import is_flash_attn_2_available

    usable = precision == "bf16" and is_flash_attn_2_available()
    return {"attn_implementation": "flash_attention_2"} if usable else {}


def has_liger() -> bool:
    """Whether Liger's fused kernels can be used: they are written in Triton, for GPUs."""
    import torch

    return find_spec("liger_kernel") is not None and torch.cuda.is_available()
