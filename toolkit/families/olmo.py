"""OLMo 1 (arXiv 2402.00838) and its releases of April and July 2024.

The repositories are those in Hugging Face's own format (`-hf`): weights of the others load as `OlmoForCausalLM` with no
error and at random. Hazard: the list OLMo-7B-0724.csv in checkpoints/official holds the run of February 2024.
"""

from toolkit.checkpoints.revisions import Model

LISTS = "https://raw.githubusercontent.com/allenai/OLMo/main"
MODELS = {
    "olmo-1b": Model(
        repo="allenai/OLMo-1B-hf",
        lists=(f"{LISTS}/checkpoints/official/OLMo-1B.csv",),
        tokens_per_step=2048 * 2048,
    ),
    "olmo-7b": Model(
        repo="allenai/OLMo-7B-hf",
        lists=(f"{LISTS}/checkpoints/official/OLMo-7B.csv",),
        tokens_per_step=2160 * 2048,
    ),
    "olmo-7b-twin": Model(
        repo="allenai/OLMo-7B-Twin-2T-hf", lists=(f"{LISTS}/checkpoints/official/OLMo-7B-Twin-2T.csv",)
    ),
    "olmo-7b-0424": Model(repo="allenai/OLMo-7B-0424-hf", lists=(f"{LISTS}/checkpoints/official/OLMo-7B-0424.csv",)),
    "olmo-1b-0724": Model(repo="allenai/OLMo-1B-0724-hf"),
    "olmo-7b-0724": Model(repo="allenai/OLMo-7B-0724-hf", lists=(f"{LISTS}/configs/official-0724/OLMo-7B-0724.csv",)),
}
