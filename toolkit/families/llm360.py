"""LLM360 (arXiv 2312.06550): Amber's branches count checkpoints, not steps; Crystal has three phases."""

from toolkit.checkpoints.revisions import Model

MODELS = {
    # 360 checkpoints, the last of which is `main` as well.
    "amber": Model(repo="LLM360/Amber", pattern=r"ckpt_(?P<step>\d+)", expected=range(359)),
    "crystal": Model(repo="LLM360/Crystal", pattern=r"CrystalCoder_phase(?P<stage>\d)_checkpoint_(?P<step>\d+)"),
}
