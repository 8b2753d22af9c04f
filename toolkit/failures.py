"""Why an attempt ended: one word per kind of failure, found from the exception, and what to do about each.

`classify(exc)` looks at the exception, at its causes and at what it was raised while handling, because libraries wrap:
a full disk arrives as `OSError`, as `SafetensorError` or as a `RuntimeError` of torch. Classes of libraries are known
by name, so that nothing heavy is imported here. What kills a process without an exception (TIMEOUT, PREEMPTED,
NODE_FAIL, LOST, an out-of-memory kill) is said by the worker.
"""

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Failure(StrEnum):
    """The reason of a failed attempt, as it stands in logs and tables."""

    OOM = "OOM"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    GPU_FAULT = "GPU_FAULT"
    DISK_FULL = "DISK_FULL"
    NAN_LOSS = "NAN_LOSS"
    BAD_INPUT = "BAD_INPUT"
    HUB = "HUB"
    FS_VISIBILITY = "FS_VISIBILITY"
    UPSTREAM = "UPSTREAM"
    BUG = "BUG"
    LOST = "LOST"


class Killed(RuntimeError):
    """A process of the stage was killed from outside: by a person, or for lack of memory."""


class NanLoss(FloatingPointError):
    """Training reached a loss that is not a finite number."""


class FilesNotVisible(OSError):
    """Files that a record names are not there (yet): a network file system's caches, or somebody removed them."""


class HubUnavailable(OSError):
    """A server of checkpoints or data sets fails, or sends what it should not, however often it is asked."""


class UpstreamDamaged(ValueError):
    """A committed artifact is not what its record says, or its record cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`retry`: further attempts that are made without being asked. `remedy`: a sentence for the user."""

    retry: int
    remedy: str


POLICY: dict[Failure, Policy] = {
    Failure.OOM: Policy(
        retry=2,
        remedy="Memory ran out: set a smaller micro_batch, a higher ZeRO stage or more memory in the stage's resources"
        " (the global batch stays as it is), then launch again.",
    ),
    Failure.TIMEOUT: Policy(
        retry=3,
        remedy="The time limit came first: launch again to resume from the last saved step, or ask for more hours.",
    ),
    Failure.PREEMPTED: Policy(
        retry=100, remedy="Other work took the node; the next attempt resumes from the last saved step."
    ),
    Failure.NODE_FAIL: Policy(
        retry=3,
        remedy="The node or its disk failed; the stage is tried elsewhere. Exclude the node if it comes back broken.",
    ),
    Failure.GPU_FAULT: Policy(
        retry=2,
        remedy="A device failed; the stage is tried again. If it fails on the same node each time, exclude that node.",
    ),
    Failure.DISK_FULL: Policy(
        retry=0,
        remedy="No space or quota is left under the root: free some (`tidemark clean` shows what), then launch again.",
    ),
    Failure.NAN_LOSS: Policy(
        retry=0,
        remedy="The loss is not finite: lower the learning rate, lengthen the warm-up or change the precision.",
    ),
    Failure.BAD_INPUT: Policy(
        retry=0, remedy="A value or file of the study is wrong: correct what the message names, then launch again."
    ),
    Failure.HUB: Policy(
        retry=3,
        remedy="The hub did not answer as it should: check the network, the name and your token, then launch again.",
    ),
    Failure.FS_VISIBILITY: Policy(
        retry=3,
        remedy="Files that a record names could not be seen from this node: launch again; if they stay away, run"
        " `tidemark verify`.",
    ),
    Failure.UPSTREAM: Policy(
        retry=0,
        remedy="An artifact is damaged: `tidemark verify` names it; move its folder away and launch again.",
    ),
    Failure.BUG: Policy(
        retry=1,
        remedy="The stage raised an error of its own: read its log (`tidemark logs`), correct it, launch again.",
    ),
    Failure.LOST: Policy(
        retry=3, remedy="The attempt ended without a word (killed, or its node died); launch again to resume it."
    ),
}

HUB_MODULES = ("huggingface_hub", "requests", "urllib3", "httpx", "httpx2", "httpcore", "http.client", "urllib.error")
# The hub answered, and what was asked for is not there: asking again cannot help.
HUB_USER = {
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "RemoteEntryNotFoundError",
    "GatedRepoError",
    "HFValidationError",
}
BY_ERRNO = {
    errno.ENOSPC: Failure.DISK_FULL,
    errno.EDQUOT: Failure.DISK_FULL,
    errno.ENOMEM: Failure.OOM,
    errno.ESTALE: Failure.FS_VISIBILITY,
    errno.EIO: Failure.NODE_FAIL,
    errno.EREMOTEIO: Failure.NODE_FAIL,
    errno.ENODEV: Failure.NODE_FAIL,
}
# In this order: "CUDA error: out of memory" is a matter of memory, any other CUDA error is the device's.
BY_TEXT = (
    (r"No space left on device|Disk quota exceeded|os error (28|122)\b|\[errno (28|122)\]", Failure.DISK_FULL),
    # What torch.save and numpy say of a full disk: they do not name it.
    (r"inline_container.*unexpected pos|PytorchStreamWriter failed|\d+ requested and \d+ written", Failure.DISK_FULL),
    (
        r"(CUDA|HIP|cuda\w*).{0,40}out of memory|DefaultCPUAllocator|can't allocate memory|Cannot allocate memory",
        Failure.OOM,
    ),
    (r"CUDA error|cuda runtime error|CUBLAS_STATUS|CUDNN_STATUS|HIP error|device-side assert", Failure.GPU_FAULT),
    (r"Couldn't reach .* on the Hub|couldn't connect to 'https?://", Failure.HUB),
    (r"Error while deserializing|PytorchStreamReader failed", Failure.BAD_INPUT),  # a truncated file of weights
    (r"\bECC\b|\bXid\b|NCCL (error|failure)|unspecified launch failure|illegal memory access", Failure.GPU_FAULT),
)
USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def classify(exc: BaseException) -> Failure:
    """The kind of failure that `exc` is; `Failure.BUG` where nothing tells otherwise.

    A specific reason wins wherever it stands in the chain. An error of the user's (`ValueError`, a missing file) counts
    only where it was raised on purpose, not where another error came up while it was being handled.
    """
    for error in _chain(exc, context=True):
        reason = _specific(error)
        if reason is not None:
            return reason
    if any(isinstance(error, USER_ERRORS) for error in _chain(exc, context=False)):
        return Failure.BAD_INPUT
    return Failure.BUG


def _chain(exc: BaseException, context: bool) -> Iterator[BaseException]:
    """`exc`, members of a group, its explicit causes and (where asked for) what was being handled, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        error = waiting.pop(0)
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            waiting.extend(error.exceptions)
        waiting.append(error.__cause__)
        if context and not error.__suppress_context__:
            waiting.append(error.__context__)


def _specific(error: BaseException) -> Failure | None:
    if isinstance(error, FilesNotVisible):
        return Failure.FS_VISIBILITY
    if isinstance(error, UpstreamDamaged):
        return Failure.UPSTREAM
    if isinstance(error, HubUnavailable):
        return Failure.HUB
    if isinstance(error, Killed):
        return Failure.LOST
    if isinstance(error, NanLoss):
        return Failure.NAN_LOSS
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Failure.OOM
    if isinstance(error, OSError) and error.errno in BY_ERRNO:
        return BY_ERRNO[error.errno]
    if isinstance(error, USER_ERRORS) and not isinstance(error, OSError) and type(error).__module__ == "builtins":
        return None  # a message of ours may quote any of the words below
    return _by_text(error) or _by_library(error)


def _by_text(error: BaseException) -> Failure | None:
    text = str(error)
    return next((reason for pattern, reason in BY_TEXT if re.search(pattern, text)), None)


def _by_library(error: BaseException) -> Failure | None:
    names = {cls.__name__ for cls in type(error).__mro__}
    modules = [cls.__module__ for cls in type(error).__mro__]
    if names & HUB_USER:
        return Failure.BAD_INPUT
    if any(m == known or m.startswith(known + ".") for m in modules for known in HUB_MODULES):
        return Failure.HUB
    return Failure.GPU_FAULT if "AcceleratorError" in names else None
