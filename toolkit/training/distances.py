"""How far a student is from its teacher, position by position: between distributions, and between hidden states.

Everything is computed in the type that comes in; give fp32. Shapes: B sequences, L positions, V tokens, D widths.
"""

from typing import Literal

import torch
import torch.nn.functional as F

Direction = Literal["forward", "reverse"]


def divergence(teacher: torch.Tensor, student: torch.Tensor, direction: Direction) -> torch.Tensor:
    """KL of log-probabilities (..., V) -> (...): forward is KL(teacher || student), reverse KL(student || teacher).

    Forward wants the student wherever the teacher is, reverse nowhere that the teacher is not (arXiv 2306.08543).
    """
    p, q = (teacher, student) if direction == "forward" else (student, teacher)
    return (p.exp() * (p - q)).sum(-1)


def bucketed(student: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Logits (..., V) and tokens (..., K) -> log-probabilities (..., K + 1); the last is of all other tokens together.

    The rest is summed up itself: as 1 less the sum of the K it would be rounded away where it is small.
    """
    every = student.log_softmax(-1)
    rest = every.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([every.gather(-1, ids), rest], -1)


def by_rank(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Probabilities (..., V_t) and (..., V_s), each sorted, the shorter filled up with zeros -> sum of |p - q| (...).

    Universal logit distillation (arXiv 2402.12030, equation 5): a Wasserstein distance that needs no tokens in common.
    """
    p, q = (x.sort(-1, descending=True).values for x in (teacher, student))
    size = max(p.shape[-1], q.shape[-1])
    p, q = (F.pad(x, (0, size - x.shape[-1])) for x in (p, q))
    return (p - q).abs().sum(-1)


def cosine(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """1 - cos of hidden states (B, L, D) -> (B, L), as DistilBERT has it (arXiv 1910.01108)."""
    return 1 - F.cosine_similarity(teacher, student, dim=-1)


def relation(teacher: torch.Tensor, student: torch.Tensor, heads: int, seen: torch.Tensor) -> torch.Tensor:
    """KL between self-attention relations of (B, L, D_t) and (B, L, D_s) -> (B, L), a mean over `heads`.

    Each side is cut into `heads` vectors x of width d, and softmax(x x^T / sqrt(d)) is what is compared, so that widths
    and numbers of heads may differ (MiniLMv2, arXiv 2012.15828, equations 3 to 5; for decoders here a position relates
    to those it sees). seen: (B, L, L), true where position i sees j.
    """
    p, q = (_relations(vectors, heads, seen) for vectors in (teacher, student))
    hidden = torch.zeros((), dtype=p.dtype, device=p.device)
    return torch.where(seen[:, None], p.exp() * (p - q), hidden).sum(-1).mean(1)


def _relations(vectors: torch.Tensor, heads: int, seen: torch.Tensor) -> torch.Tensor:
    batch, length, width = vectors.shape
    cut = vectors.view(batch, length, heads, width // heads).transpose(1, 2)
    scores = cut @ cut.transpose(-1, -2) / (width // heads) ** 0.5
    # Not -inf: the gradient of what is masked would be NaN.
    return scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min / 4).log_softmax(-1)
