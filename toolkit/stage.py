"""What a stage's `run(spec, inputs, out, ctx)` is given: artifacts to read and a context to report to.

A job is a module with `VERSION: int`, `Spec` and `Inputs` (frozen keyword-only dataclasses) and `run`. A job whose
behaviour is chosen by one field of its spec (a training method, a data set) has a `CHOICE` instead: the module that the
field names brings `Spec` and `Inputs`. `WARM` names modules that a worker may import for it beforehand, `MANY_NODES =
True` says that several nodes can run it together, `INTERNET = True` that it reads from outside the cluster.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from toolkit.spec import field_types

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """`field` of the spec names a module of `package`, which brings `Spec` and `Inputs`."""

    field: str
    package: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A committed folder (or file, for adopted data) and its record. stored: where it lies, where `path` is a plain
    model that was restored from a change to another."""

    path: Path
    fingerprint: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    stored: Path | None = None


SEVERAL = dict[str, Artifact]  # the type of an input that a stage may have several of: `data`, `data.rte`, `data.qqp`


def gather(inputs: type[T], given: Mapping[str, Artifact]) -> T:
    """A job's `Inputs` from the artifacts of a study's inputs. A field of type `SEVERAL` holds `data.rte` as "rte" and
    a plain `data` as ""."""
    values: dict[str, Any] = {}
    kind: Any = inputs
    for key, artifact in given.items():
        name, _, label = key.partition(".")
        if field_types(kind)[name] == SEVERAL:
            values.setdefault(name, {})[label] = artifact
        else:
            values[name] = artifact
    return inputs(**values)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a stage, or a cluster's profile for it, asks for; None leaves it open. Never part of a fingerprint: the same
    cell may run on one core or on 64 GPUs.

    nodes: that run the stage together. gpus, cpus, memory (GB): of each node. hours: that it may take. processes:
    ranks on a node; one a GPU by default. threads: CPU threads of each rank. zero: DeepSpeed ZeRO stage 0-3; no
    DeepSpeed by default. offload: `cpu` keeps what ZeRO 2 or 3 cuts up in the node's memory, `nvme` AdamW's state of
    ZeRO 3 on its disk. gradient_checkpointing: compute activations again instead of keeping them. micro_batch:
    sequences that a rank processes at once; found by default. batch_tokens: tokens of a batch at inference. tracking:
    `tensorboard` or `wandb` (offline) also hears of every training step. vllm: the python of the environment that has
    vLLM, for the stages whose engine it is.
    """

    nodes: int | None = None
    gpus: int | None = None
    cpus: int | None = None
    memory: float | None = None
    hours: float | None = None
    processes: int | None = None
    threads: int | None = None
    zero: int | None = None
    offload: Literal["cpu", "nvme"] | None = None
    gradient_checkpointing: bool | None = None
    micro_batch: int | None = None
    batch_tokens: int | None = None
    tracking: Literal["tensorboard", "wandb"] | None = None
    vllm: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, (str, bool)):
                continue
            least = 0 if name in ("gpus", "zero") else 1
            if value is not None and (value < least or (name in ("memory", "hours") and value <= 0)):
                raise ValueError(f"{name} is {value!r}: it must be {'0 or more' if least == 0 else 'above 0'}")
        stages = {"cpu": (2, 3), "nvme": (3,)}.get(self.offload or "", (self.zero,))
        if self.zero is not None and self.zero not in stages:  # None: the profile may say it
            raise ValueError(
                f"offload is {self.offload} and zero is {self.zero}, which cuts up nothing that could wait there: take"
                f" zero {' or '.join(map(str, stages))}"
            )


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What an attempt has: the words of `Request`, decided. halvings: how often memory ran out before; what is
    processed at once is halved as often, and the global batch stays as it is."""

    processes: int = 1
    threads: int = 1
    zero: int | None = None
    offload: str | None = None
    gradient_checkpointing: bool = False
    micro_batch: int | None = None
    batch_tokens: int = 16384
    tracking: str | None = None
    vllm: str | None = None
    halvings: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """The nodes that run one attempt together: this one's number, how many there are, where rank 0 waits for the
    others. Port 0 stands for any free one, which will do for one node."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0


class Interrupted(Exception):
    """A stage saved its state because `ctx.stop_requested` was set; the next attempt resumes from `ctx.state`."""


@dataclass(kw_only=True)
class Context:
    """The world outside the fingerprint: where state survives attempts, what may be used, whom to tell.

    state: folder that survives attempts; write to it by rename only, since a lost attempt may still run.
    group: the nodes at work; those beside the first run the same stage for its ranks, and what they return is not kept.
    stop_requested: set by the worker when the allocation ends soon; training saves at the next step and raises
        `Interrupted`.
    """

    state: Path
    resources: Resources = field(default_factory=Resources)
    group: Group = field(default_factory=Group)
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


def read_progress(state: Path) -> dict[str, Any]:
    """What the stage whose state is in this folder last told; {} if it has just begun, or has ended."""
    try:
        found: dict[str, Any] = json.loads((state / "progress.json").read_bytes())
        return found
    except FileNotFoundError:
        return {}
