"""What a cluster is like: `configs/clusters/NAME.yaml`, or a file of the user's own.

A profile names shapes (what one worker is given: nodes, GPUs, CPUs, memory, hours, a partition) and says which shape
each job gets, by `job` or `job.method`, with the resources that go with it. What a stage asks for in `resources:` wins.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jobs
from toolkit import study_file
from toolkit.expand import choose
from toolkit.lookup import unknown
from toolkit.manifest.dropping import Size
from toolkit.spec import FieldError, build
from toolkit.stage import Choice, Request, Resources
from toolkit.study import FOLDER, Cell, Keys, Study, StudyError

CLUSTERS = Path(__file__).parents[1] / "configs" / "clusters"
NAME = r"[A-Za-z0-9_-]+"
LOGIN = "login"  # the shape of what needs the internet, where no shape of a cluster has it: the host that launches


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One worker: what sbatch is asked for.

    nodes; gpus, cpus and memory (GB; None: the partition's default) of each. hours: the time limit. workers: at most so
    many at a time. internet: its nodes reach the Hub. partition, account, qos, constraint: as sbatch knows them.
    exclude: nodes never to be used. sbatch: any other option, such as `{gres: "gpu:a100:4", exclusive: true}`.
    """

    nodes: int = 1
    gpus: int = 0
    cpus: int = 1
    memory: float | None = None
    hours: float
    workers: int = 1
    internet: bool = False
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: tuple[str, ...] = ()
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")
        if self.gpus < 0 or self.hours <= 0 or (self.memory is not None and self.memory <= 0):
            raise ValueError(f"gpus {self.gpus}, hours {self.hours}, memory {self.memory}: not below 0, hours above it")
        wrong = next((key for key in self.sbatch if not re.fullmatch(r"[a-z][a-z0-9-]*", key)), None)
        if wrong is not None:
            raise ValueError(f"sbatch option {wrong!r}: write it as sbatch's long option without dashes in front")
        for value in (self.partition, self.account, self.qos, self.constraint, *self.exclude, *self.sbatch.values()):
            if isinstance(value, str) and (not value or not value.isprintable()):
                raise ValueError(f"{value!r} cannot stand in a batch file: give printable characters, on one line")

    def covers(self, other: "Shape") -> bool:
        """Whether a stage of the other shape fits: everything but time, which a worker knows better."""
        return (
            other.nodes in (1, self.nodes)
            and self.gpus >= other.gpus
            and self.cpus >= other.cpus
            and (self.memory is None or self.memory >= (other.memory or 0))
            and (self.internet or not other.internet)
        )


@dataclass(frozen=True, kw_only=True)
class Container:
    """Python runs inside an image. apptainer: `apptainer exec OPTIONS IMAGE python`; pyxis: srun's `--container-image`.

    mounts: `/path` or `/path:/inside`; the root, the checkout and the scratch folder must be seen under their own
    paths.
    """

    runtime: Literal["apptainer", "pyxis"]
    image: str
    mounts: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DiskBudget:
    """What downloads and conversions may take of a root: bytes, which may be written `45G`, and inodes."""

    bytes: int | str | None = None
    inodes: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bytes, str):
            object.__setattr__(self, "bytes", _bytes(self.bytes))
        if self.bytes is None and self.inodes is None:
            raise ValueError("a disk budget says bytes, inodes or both, such as {bytes: 45G, inodes: 200000}")
        for name in ("bytes", "inodes"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: at least 1")

    def fits(self, size: Size) -> bool:
        """Whether so much is within the budget."""
        limits = ((size.bytes, self.bytes), (size.inodes, self.inodes))
        return all(limit is None or taken <= int(limit) for taken, limit in limits)

    def __str__(self) -> str:
        words = [f"{int(self.bytes):,} bytes"] if self.bytes is not None else []
        return " and ".join(words + ([f"{self.inodes:,} inodes"] if self.inodes is not None else []))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size: give bytes, such as 45G (10^9) or 45GiB (2^30)")
    power = " KMGT".index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A cluster.

    scheduler: `local` runs workers on this machine. shapes, jobs: see the module; `jobs` maps `default`, a job or a
    `job.method` to a shape and fields of `Request`. setup: shell lines that run before Python on a node (modules,
    conda, venv). python: the command that is Python there; this interpreter by default. scratch: a folder on the node
    for what Triton, torch's compilers and the Hub's modules leave behind, removed at the worker's end; $VARIABLES are
    those of the job. What was downloaded from the Hub stays where it is. poll_seconds: at least so long between two
    questions to Slurm. grace_seconds: between the signal that time is up, or the place is wanted, and the end.
    idle_minutes: a worker that waits longer for work gives its place back and comes back later. max_jobs: of this user
    at once, beside what Slurm's own limits say. repeat_failures: a node with so many NODE_FAIL in a day is excluded
    (one GPU_FAULT is enough). disk_budget: downloads and conversions are dropped when they have served, and made again
    when they are needed, so that all that is there of them stays within it.
    """

    scheduler: Literal["local", "slurm"] = "slurm"
    shapes: dict[str, Shape]
    jobs: dict[str, dict[str, Any]]
    setup: tuple[str, ...] = ()
    python: str | None = None
    container: Container | None = None
    scratch: str | None = None
    poll_seconds: float = 60.0
    grace_seconds: int = 120
    idle_minutes: float = 10.0
    max_jobs: int | None = None
    repeat_failures: int = 2
    disk_budget: DiskBudget | None = None


def load(name: str) -> tuple[Profile, dict[str, Any]]:
    """The profile of that name in `configs/clusters`, or in a file; and its plain words, which a submission keeps.

    Raises:
        StudyError: there is none, or something in it is wrong; file, line, value and valid choices are named.
    """
    known = {path.stem: path for path in sorted(CLUSTERS.glob("*.yaml"))}
    path = known.get(name, Path(name).expanduser())
    if not path.is_file():
        raise StudyError(f"{unknown('cluster', name, known)}; or give the path of a profile of your own (.yaml)")
    origins: dict[Keys, str] = {}
    words = study_file.parse(path.read_text(encoding="utf-8"), str(path), origins)
    return read(words, origins), words


def read(words: Any, origins: Mapping[Keys, str] | None = None) -> Profile:
    """A profile from its plain words.

    Raises:
        StudyError: what is wrong, and where.
    """
    if not isinstance(words, dict):
        raise StudyError(f"a profile is a mapping with shapes and jobs, not {words!r}", (), origins)
    for name, shape in (words.get("shapes") or {}).items():
        _checked(Shape, shape, ("shapes", name), origins)
        if not re.fullmatch(NAME, str(name)) or name == LOGIN:
            text = f"a shape's name is letters, digits, '_' and '-', and not {LOGIN!r}, which is this host: {name!r}"
            raise StudyError(text, ("shapes", name), origins)
    profile: Profile = _checked(Profile, words, (), origins)
    if not profile.shapes:
        raise StudyError("a profile needs at least one shape", ("shapes",), origins)
    if "default" not in profile.jobs:
        raise StudyError("jobs must say which shape is the `default`", ("jobs",), origins)
    for name, entry in profile.jobs.items():
        _check_entry(profile, name, entry, origins)
    return profile


def _checked(kind: type, words: Any, at: Keys, origins: Mapping[Keys, str] | None) -> Any:
    if not isinstance(words, dict):
        raise StudyError(f"must be a mapping, not {words!r}", at, origins)
    try:
        return build(kind, words)
    except FieldError as error:
        raise StudyError(str(error), (*at, *re.split(r"[.\[]", error.field)), origins) from None
    except ValueError as error:
        raise StudyError(str(error), at, origins) from None


def _check_entry(profile: Profile, name: str, entry: dict[str, Any], origins: Mapping[Keys, str] | None) -> None:
    at: Keys = ("jobs", name)
    job = name.split(".")[0]
    if name != "default":
        try:
            jobs.load(job)
        except ValueError as error:
            raise StudyError(str(error), at, origins) from None
    if entry.get("shape") not in profile.shapes:
        message = unknown("shape", entry.get("shape"), profile.shapes)
        raise StudyError(message, (*at, "shape") if "shape" in entry else at, origins)
    _checked(Request, {key: value for key, value in entry.items() if key != "shape"}, at, origins)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Which shape a cell gets, and what is asked for it: the stage's own words over the profile's."""

    name: str
    shape: Shape
    request: Request

    def resources(self, halvings: int = 0) -> Resources:
        """What an attempt is given: one rank a GPU and all CPUs, where nobody said otherwise."""
        asked = self.request
        processes = asked.processes or max(1, self.shape.gpus)
        chosen = {key: getattr(asked, key) for key in ("zero", "offload", "micro_batch", "tracking", "vllm")}
        return Resources(
            processes=processes,
            threads=asked.threads or max(1, self.shape.cpus // processes),
            batch_tokens=asked.batch_tokens or Resources.batch_tokens,
            halvings=halvings,
            gradient_checkpointing=bool(asked.gradient_checkpointing),
            **chosen,
        )


def fit(profile: Profile, cell: Cell, study: Study | None = None) -> Fit:
    """The shape of a cell: the one that the profile gives its job if that is enough for what the stage asks, or else
    the first that is.

    Raises:
        StudyError: no shape is enough, its job runs on one node and the shape has more, or what it and the profile ask
            for does not go together.
    """
    job = jobs.load(cell.job)
    choice: Choice | None = getattr(job, "CHOICE", None)
    method = f"{cell.job}.{cell.spec[choice.field]}" if choice else cell.job
    entry = profile.jobs.get(method) or profile.jobs.get(cell.job) or profile.jobs["default"]
    given = build(Request, {key: value for key, value in entry.items() if key != "shape"})
    at: Keys = ("stages", cell.stage, "resources")
    origins = study.origins if study else None
    try:
        asked = _over(cell.resources, given)
    except ValueError as error:
        raise _unfit(cell, str(error), study) from None
    if asked.offload is not None and asked.zero is None:
        raise _unfit(cell, f"offload is {asked.offload} and zero is not set: say zero 2 or 3 beside it", study)
    internet = bool(getattr(job, "INTERNET", False))
    if profile.scheduler == "local":  # what this machine lacks is seen when it is missed
        return Fit(name=entry["shape"], shape=profile.shapes[entry["shape"]], request=asked)
    if internet and not any(shape.internet for shape in profile.shapes.values()):
        return Fit(name=LOGIN, shape=Shape(hours=1, internet=True), request=asked)
    names = [entry["shape"], *(name for name in profile.shapes if name != entry["shape"])]
    found = next((name for name in names if _enough(profile.shapes[name], asked, internet)), None)
    if found is None:
        words = ", ".join(f"{key} {value}" for key, value in vars(asked).items() if value is not None)
        need = f"{words or 'nothing special'}{' and the internet' if internet else ''}"
        have = "; ".join(f"{name}: {_describe(shape)}" for name, shape in profile.shapes.items())
        raise StudyError(f"no shape of this cluster is enough for {need}; there are {have}", at, origins)
    if profile.shapes[found].nodes > 1 and not getattr(job, "MANY_NODES", False):
        raise StudyError(
            f"the job {cell.job!r} runs on one node, and the shape {found!r} that the profile gives it has"
            f" {profile.shapes[found].nodes}: give it another in the profile's jobs", at, origins
        )  # fmt: skip
    return Fit(name=found, shape=profile.shapes[found], request=asked)


def fits(profile: Profile, cells: list[Cell], study: Study | None = None) -> dict[str, Fit]:
    """Fingerprint -> shape, for all cells that run; those of a stage are alike but for their method.

    Raises:
        StudyError: what `fit` says, or a cell's method says that it cannot run so.
    """
    known: dict[Any, Fit] = {}
    found = {}
    for cell in cells:
        if cell.job != FOLDER:
            job = jobs.load(cell.job)
            choice = getattr(job, "CHOICE", None)
            key = (cell.job, cell.spec[choice.field] if choice else "", cell.resources)
            made = found[cell.fingerprint] = known.get(key) or known.setdefault(key, fit(profile, cell, study))
            chosen = choose(job, cell.spec)
            if hasattr(chosen, "check"):
                try:
                    chosen.check(build(chosen.Spec, cell.spec), made.request)
                except ValueError as error:
                    raise _unfit(cell, str(error), study) from None
    return found


def _unfit(cell: Cell, error: str, study: Study | None) -> StudyError:
    text = f"with what the profile gives this stage, {error}"
    return StudyError(text, ("stages", cell.stage, "resources"), study.origins if study else None)


def _over(first: Request, second: Request) -> Request:
    chosen = {key: value for key, value in vars(first).items() if value is not None}
    return dataclasses.replace(second, **chosen)


def _enough(shape: Shape, asked: Request, internet: bool) -> bool:
    needed = {key: getattr(asked, key) for key in ("nodes", "gpus", "cpus", "memory", "hours")}
    return (shape.internet or not internet) and all(
        need is None or getattr(shape, key) is None or need <= getattr(shape, key) for key, need in needed.items()
    )


def _describe(shape: Shape) -> str:
    memory = "" if shape.memory is None else f", {shape.memory:g} GB"
    text = f"{shape.nodes} nodes with {shape.gpus} GPUs, {shape.cpus} CPUs{memory} for {shape.hours:g} h"
    return text + (", internet" if shape.internet else "")


def scratch_variables(profile: Profile, job: str) -> dict[str, str]:
    """The caches of libraries, in a folder on the node that is this job's own: a compiler's lock that a killed job
    leaves in a shared one would hang all later jobs."""
    if profile.scratch is None:
        return {}
    folder = Path(os.path.expandvars(os.path.expanduser(profile.scratch))) / f"tidemark-{os.getuid()}-{job}"
    names = {
        "TRITON_CACHE_DIR": "triton", "TORCH_EXTENSIONS_DIR": "torch-extensions", "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "HF_MODULES_CACHE": "hf-modules", "TMPDIR": "tmp", "TIDEMARK_SWAP": "swap",
    }  # fmt: skip
    return {variable: str(folder / name) for variable, name in names.items()}
