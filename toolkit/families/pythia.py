"""Pythia (arXiv 2304.01373): 154 steps each, of batches of 1024 x 2048 tokens; `main` is step 143000."""

from toolkit.checkpoints.revisions import Model

STEPS = (0, *(2**n for n in range(10)), *range(1000, 143001, 1000))
SIZES = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
MODELS = {
    f"pythia-{size}{kind}": Model(repo=f"EleutherAI/pythia-{size}{kind}", tokens_per_step=1024 * 2048, expected=STEPS)
    for size in SIZES
    for kind in ("", "-deduped")
    if not (kind and size in ("14m", "31m"))
}
