"""SmolLM 2 (arXiv 2502.02737) and SmolLM 3: repositories of intermediate checkpoints beside the models'.

Hazard: the `main` of these repositories may hold no weights. The stages of SmolLM 3 go on counting steps.
"""

from toolkit.checkpoints.revisions import Model

MODELS = {
    f"smollm2-{size.lower()}": Model(repo=f"HuggingFaceTB/SmolLM2-{size}-intermediate-checkpoints")
    for size in ("135M", "360M")
}
MODELS["smollm2-1.7b"] = Model(repo="HuggingFaceTB/SmolLM2-1.7B-intermediate-checkpoints", tokens_per_step=1024 * 2048)
MODELS["smollm3-3b"] = Model(repo="HuggingFaceTB/SmolLM3-3B-checkpoints", tokens_per_step=2_359_296)
