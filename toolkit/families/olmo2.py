"""OLMo 2 (arXiv 2501.00656): stage 1, and the ingredients of stage 2, whose average is `main`.

Stage 2 continues stage 1 on other data; its steps count from 0 again, once for each ingredient.
"""

from toolkit.checkpoints.revisions import Model

LISTS = "https://raw.githubusercontent.com/allenai/OLMo/main/configs"


def _lists(folder: str, name: str) -> tuple[str, str]:
    return f"{LISTS}/{folder}/{name}.csv", f"{LISTS}/{folder}/{name}-stage2.csv"


MODELS = {
    "olmo2-1b": Model(
        repo="allenai/OLMo-2-0425-1B",
        lists=_lists("official-0425", "OLMo-2-0425-1B"),
        tokens_per_step=512 * 4096,
    ),
    # Steps 0 to 37000 of the same recipe, a thousand apart, where the run above has three checkpoints.
    "olmo2-1b-early": Model(repo="allenai/OLMo-2-0425-1B-early-training", tokens_per_step=512 * 4096),
    "olmo2-7b": Model(
        repo="allenai/OLMo-2-1124-7B",
        lists=_lists("official-1124", "OLMo-2-1124-7B"),
        tokens_per_step=1024 * 4096,
    ),
    "olmo2-13b": Model(
        repo="allenai/OLMo-2-1124-13B",
        lists=_lists("official-1124", "OLMo-2-1124-13B"),
        tokens_per_step=2048 * 4096,
    ),
    # Its published originals are distributed checkpoints, which no list names file by file: the Hub has them converted.
    "olmo2-32b": Model(repo="allenai/OLMo-2-0325-32B", tokens_per_step=2048 * 4096),
}
