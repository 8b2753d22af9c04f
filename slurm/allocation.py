"""What a worker was given: this machine, or a Slurm job of some shape, with its ids, nodes and hours."""

import math
import os
import time
from dataclasses import dataclass, field
from typing import Any

from slurm.profiles import LOGIN, Profile, Shape


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """shape is None for a worker on this machine, which ends when it wants. `slurm` says which job this is, as its
    claims tell others. Times are of this host's monotonic clock."""

    profile: Profile
    name: str
    shape: Shape | None = None
    slurm: dict[str, Any] | None = None
    node: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def nodes(self) -> int:
        """How many nodes work together."""
        return self.shape.nodes if self.shape else 1

    def remaining(self) -> float:
        """Seconds until the signal that time is up; a clock that starts with the worker is seconds late."""
        if self.shape is None:
            return math.inf
        return self.began + self.shape.hours * 3600 - self.profile.grace_seconds - time.monotonic()

    def fresh(self) -> bool:
        """Whether nearly all of its time is left: no other allocation of this shape has more."""
        return self.shape is None or time.monotonic() - self.began < 0.1 * self.shape.hours * 3600


def allocation(profile: Profile, name: str) -> Allocation:
    """The allocation of this process."""
    if profile.scheduler == "local" or name == LOGIN:
        return Allocation(profile=profile, name=name)
    return Allocation(
        profile=profile, name=name, shape=profile.shapes[name], slurm=slurm_job(),
        node=int(os.environ.get("SLURM_PROCID", 0)),
    )  # fmt: skip


def slurm_job() -> dict[str, Any] | None:
    """Which job this process runs in, as squeue would list it; None outside one that submitit submitted."""
    env = os.environ
    if env.get("SUBMITIT_EXECUTOR") != "slurm" or "SLURM_JOB_ID" not in env:
        return None
    array = env.get("SLURM_ARRAY_JOB_ID")
    return {
        "cluster": env.get("SLURM_CLUSTER_NAME", ""),
        "job": f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"],
        "restarts": int(env.get("SLURM_RESTART_COUNT", 0)),
        "name": env.get("SLURM_JOB_NAME", ""),
        "node": env.get("SLURMD_NODENAME", ""),
    }
