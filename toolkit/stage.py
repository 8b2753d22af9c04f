"""What a stage's `run(spec, inputs, out, ctx)` is given: artifacts to read and a context to report to.

A job is a module with `VERSION: int`, `Spec` and `Inputs` (frozen keyword-only dataclasses) and `run`. A job whose
behaviour is chosen by one field of its spec (a training method, a data set) has a `CHOICE` instead: the module that the
field names brings `Spec` and `Inputs`.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`field` of the spec names a module of `package`, which brings `Spec` and `Inputs`."""

    field: str
    package: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A committed folder (or file, for adopted data) and its record."""

    path: Path
    fingerprint: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage may use. Never part of a fingerprint: the same cell may run on one core or on 64 GPUs.

    processes: ranks on this node. threads: CPU threads of each rank. zero: DeepSpeed ZeRO stage 0-3, or None for no
    DeepSpeed. micro_batch: sequences that a rank processes at once; None finds it. batch_tokens: tokens of a batch at
    inference.
    """

    processes: int = 1
    threads: int = 1
    zero: int | None = None
    micro_batch: int | None = None
    batch_tokens: int = 16384


class Interrupted(Exception):
    """A stage saved its state because `ctx.stop_requested` was set; the next attempt resumes from `ctx.state`."""


@dataclass(kw_only=True)
class Context:
    """The world outside the fingerprint: where state survives attempts, what may be used, whom to tell.

    state: folder that survives attempts; write to it by rename only, since a lost attempt may still run.
    stop_requested: set by the worker when the allocation ends soon; training saves at the next step and raises
        `Interrupted`.
    """

    state: Path
    resources: Resources = field(default_factory=Resources)
    stop_requested: bool = False
    _last: float = field(default=0.0, init=False)
    _first: tuple[int, float] | None = field(default=None, init=False)

    def progress(self, step: int, total: int, *, unit: str = "step", **numbers: float) -> None:
        """Tell `tidemark status` how far this stage is; call it at every step (it writes twice a second at most)."""
        now = time.time()
        self._first = self._first or (step, now)  # a resumed stage does not begin at 0
        if now - self._last < 0.5 and step < total:
            return
        self._last = now
        done, seconds = step - self._first[0], now - self._first[1]
        eta = (total - step) * seconds / done if done > 0 else None
        line = {"step": step, "total": total, "unit": unit, "eta_seconds": eta, **numbers}
        part = self.state / f"progress.{os.getpid()}.part"
        part.write_text(json.dumps(line))
        part.replace(self.state / "progress.json")
