"""Nodes that a study is better off without, by what its workers met there."""

import time
from collections import Counter
from pathlib import Path

from slurm.profiles import Profile
from toolkit.failures import Failure
from toolkit.manifest.log import Reader

FORGET_SECONDS = 86400.0  # a node that failed is given another chance after a day


def bad_nodes(root: Path, study: str, profile: Profile) -> dict[str, str]:
    """Nodes that a study is better off without -> why: one GPU_FAULT, or several NODE_FAIL, within a day."""
    faults: dict[str, Counter[str]] = {}
    for event in Reader(root, study).new_events():
        node, reason = event.get("node"), event.get("reason")
        if node and reason in (Failure.GPU_FAULT, Failure.NODE_FAIL) and time.time() - event["time"] < FORGET_SECONDS:
            faults.setdefault(node, Counter())[reason] += 1
    return {
        node: ", ".join(f"{times} {reason}" for reason, times in count.items())
        for node, count in faults.items()
        if count[Failure.GPU_FAULT] or count[Failure.NODE_FAIL] >= profile.repeat_failures
    }
