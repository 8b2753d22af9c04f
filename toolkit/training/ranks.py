"""Ranks of one node, forked from a process that has imported everything: no second start-up, no launcher. Where several
nodes work together each forks its own, and all meet at rank 0's.

The parent must not have used CUDA, nor OpenMP with several threads, before it forks: neither survives a fork.
"""

import ctypes
import io
import mmap
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from toolkit.failures import Killed
from toolkit.stage import Group

PR_SET_PDEATHSIG = 1
POLL_SECONDS, GRACE_SECONDS = 0.2, 0.5


class RankFailed(RuntimeError):
    """A rank ended with an error or was killed; the message has its traceback."""


class RankKilled(RankFailed, Killed):
    """A rank was killed; what others then say of their connection to it is no cause."""


class StopFlag:
    """One byte that a parent sets and its ranks see: `ctx.stop_requested` of the parent is not theirs after a fork."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def set(self) -> None:
        """Ask every rank to stop at its next step."""
        self._byte[0] = 1

    def __bool__(self) -> bool:
        return self._byte[0] == 1


def run_ranks(
    count: int, work: Callable[[int], Any], stop: Callable[[], bool], flag: StopFlag, group: Group = Group()
) -> Any:
    """Run `work(rank)` in `count` forked processes with torch's rendezvous variables set; returns the first one's
    value.

    stop: asked several times a second; when it says so, `flag` is set for the ranks. group: the nodes that do the same
    at the same time; the ranks of this one come after those of the nodes before it.

    Raises:
        RankFailed: as the cause of the rank's own exception where that could be carried over, or by itself.
    """
    port = group.port or _free_port()
    pipes = {}
    pids = []
    for rank in range(count):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _be_rank(rank, count, group, port, work, write)
        os.close(write)
        pipes[read] = rank
        pids.append(pid)
    try:
        return _watch(pids, pipes, stop, flag)
    finally:
        for pid in pids:
            _kill(pid)


def _watch(pids: list[int], pipes: dict[int, int], stop: Callable[[], bool], flag: StopFlag) -> Any:
    answers: dict[int, io.BytesIO] = {rank: io.BytesIO() for rank in pipes.values()}
    result = None
    while pipes:
        if stop():
            flag.set()
        for read in select.select(list(pipes), [], [], POLL_SECONDS)[0]:
            rank = pipes[read]
            block = os.read(read, 1 << 16)
            answers[rank].write(block)
            if not block:
                os.close(read)
                del pipes[read]
                try:
                    value = _outcome(rank, len(pids), pids[rank], answers[rank].getvalue())
                except Exception as error:
                    if not isinstance(error, RankKilled) and (other := _killed(pids)) is not None:
                        raise RankKilled(f"rank {other} of {len(pids)} was killed") from error
                    raise
                result = value if rank == 0 else result
    return result


def _killed(pids: list[int]) -> int | None:
    """A rank that was killed, if there is one; its end may be seen after what it does to the others."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        for rank, pid in enumerate(pids):
            with suppress(ChildProcessError):  # it has been collected
                seen = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if seen is not None and seen.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
                    return rank
        time.sleep(0.05)
    return None


def _outcome(rank: int, count: int, pid: int, answer: bytes) -> Any:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not answer:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        hint = "; the kernel kills what exceeds its memory" if code == -signal.SIGKILL else ""
        raise (RankKilled if code < 0 else RankFailed)(f"rank {rank} of {count} {how}{hint}")
    value, error, text = pickle.loads(answer)
    if text is None:
        return value
    failed = RankFailed(f"rank {rank} of {count} failed:\n{text}")
    if error is None:
        raise failed
    raise error from failed


def _be_rank(
    rank: int, count: int, group: Group, port: int, work: Callable[[int], Any], write: int
) -> NoReturn:  # fmt: skip
    code = 1
    try:
        # A rank must not outlive its parent: it would hold the device and write into the state of the next attempt.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ.update(
            RANK=str(group.node * count + rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(group.nodes * count),
            LOCAL_WORLD_SIZE=str(count),
            MASTER_ADDR=group.address,
            MASTER_PORT=str(port),
        )
        try:
            _answer(write, (work(rank), None, None))
            code = 0
        except BaseException as error:  # noqa: B902 - the parent raises it again
            _answer(write, (None, _portable(error), traceback.format_exc()))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)  # neither the parent's finally clauses nor its exit handlers belong to a rank


def _answer(write: int, answer: tuple[Any, BaseException | None, str | None]) -> None:
    with os.fdopen(write, "wb") as pipe:
        pipe.write(pickle.dumps(answer))


def _portable(error: BaseException) -> BaseException | None:
    """The exception if it survives pickling: some library exceptions do not, and then the text has to do."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:
        return None
    return error if isinstance(copy, Exception) else None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _kill(pid: int) -> None:
    """Kill and reap a rank that is still there; one that waits in a collective for a dead rank never ends by itself."""
    for _ in range(100):
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return
        except ChildProcessError:
            return
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
