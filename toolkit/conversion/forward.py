"""The arithmetic that originals are made of, in fp32 and written out: what a converted model is held against.

Nothing here is shared with transformers or with the key maps, so that a mistake in those cannot be made here as well.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rms_norm(x: "torch.Tensor", gain: "torch.Tensor", eps: float) -> "torch.Tensor":
    """x over its root mean square, times the gain."""
    import torch

    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def layer_norm(
    x: "torch.Tensor", gain: "torch.Tensor | None", bias: "torch.Tensor | None", eps: float
) -> "torch.Tensor":
    """x less its mean, over its standard deviation; gain and bias where there are some."""
    import torch

    x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    x = x if gain is None else x * gain
    return x if bias is None else x + bias


def rotate(x: "torch.Tensor", frequencies: "torch.Tensor", factor: float) -> "torch.Tensor":
    """Turn the pairs (n, n + half) of x [..., T, dim] by their positions times the frequencies [dim / 2]."""
    import torch

    angles = torch.arange(x.shape[-2], dtype=torch.float32)[:, None] * frequencies
    sine, cosine = angles.sin() * factor, angles.cos() * factor
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def attend(
    q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor", *, rotary: "tuple[torch.Tensor, float]", window: int | None
) -> "torch.Tensor":
    """Causal attention of q [B, T, heads * dim] on k and v [B, T, fewer heads * dim]; heads share keys in order.

    rotary: frequencies [dim / 2], and a factor. window: how many tokens a token sees, itself among them; None for all.
    """
    import torch

    dim = 2 * len(rotary[0])
    q, k, v = (x.unflatten(-1, (-1, dim)).transpose(1, 2) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) for x in (rotate(k, *rotary), v))
    scores = rotate(q, *rotary) @ k.transpose(-1, -2) / dim**0.5
    at = torch.arange(q.shape[-2])
    apart = at[:, None] - at
    seen = (apart >= 0) & (apart < (window or len(at) + 1))
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2)
