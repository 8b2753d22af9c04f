"""DeepSpeed's configuration: `configs/deepspeed/zero<stage>.json` says where tensors lie, no more.

`zero3-cpu.json` is what `offload: cpu` makes of stage 3: AdamW's state and the weights wait in the node's memory.
`zero3-nvme.json` is `offload: nvme` (ZeRO-Infinity, arXiv 2104.07857): AdamW's state, master weights included, waits in
files, of which a part at a time is read, stepped and written; the weights wait in memory.
"""

import json
from pathlib import Path
from typing import Any

from toolkit.lookup import unknown

FOLDER = Path(__file__).parents[2] / "configs" / "deepspeed"
LAYOUT_KEYS = (
    "zero_optimization",
    "aio",
    "zero_force_ds_cpu_optimizer",
    "communication_data_type",
    "wall_clock_breakdown",
)
SPEC_FIELDS = {
    "optimizer": "lr, betas and weight_decay",
    "scheduler": "schedule and warmup",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "gradient_clipping": "clip",
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "global_batch (and micro_batch in the stage's resources)",
    "gradient_accumulation_steps": "global_batch (and micro_batch in the stage's resources)",
}


def layout_config(stage: int, folder: Path = FOLDER, offload: str | None = None) -> dict[str, Any]:
    """The memory layout of a ZeRO stage, with what is offloaded.

    Raises:
        ValueError: no such stage, a file that is not JSON, or a key that changes the mathematics.
    """
    path = folder / (f"zero{stage}.json" if offload is None else f"zero{stage}-{offload}.json")
    if not path.is_file():
        names = sorted(p.stem.removeprefix("zero").replace("-", " with offload ") for p in folder.glob("zero*.json"))
        given = f"{stage!r}" + (f" with offload {offload}" if offload else "")
        raise ValueError(f"zero is {given}; valid: {', '.join(names)} (or none, for no DeepSpeed)")
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    for key in config:
        if key in SPEC_FIELDS:
            raise ValueError(
                f"{path} sets {key!r}, which changes the result: this file holds memory layout only; the spec's field"
                f" for it is {SPEC_FIELDS[key]}"
            )
        if key not in LAYOUT_KEYS:
            raise ValueError(f"{path}: {unknown('key', key, LAYOUT_KEYS)}")
    return config


def deepspeed_config(
    stage: int, precision: str, offload: str | None = None, swap: Path | None = None
) -> dict[str, Any]:
    """What DeepSpeed is given: the layout, the spec's numbers by way of Trainer ("auto"), fp32 master weights.

    swap: the folder for the files of `offload: nvme`.

    bf16 is torch's autocast over fp32 weights, as Trainer does it without DeepSpeed; DeepSpeed's own bf16 would hold
    and save rounded weights, so that a result would depend on the layout. Memory is the same: 16 bytes a parameter.
    """
    config = layout_config(stage, offload=offload)
    if offload == "nvme":
        config["zero_optimization"]["offload_optimizer"]["nvme_path"] = str(swap)
    config |= {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }
    if precision == "bf16":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config
