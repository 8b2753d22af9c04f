"""Olmo 3 (arXiv 2512.13961): stage 1, stage 2 (32B: two ingredients), stage 3 for long contexts."""

from toolkit.checkpoints.revisions import Model

MODELS = {
    "olmo3-7b": Model(repo="allenai/Olmo-3-1025-7B", tokens_per_step=512 * 8192, same_batch=False),
    "olmo3-32b": Model(repo="allenai/Olmo-3-1125-32B", tokens_per_step=1024 * 8192, same_batch=False),
}
