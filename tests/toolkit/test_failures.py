"""Exceptions as libraries really raise them, and the reason that is read from each."""

import errno
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.failures import POLICY, Failure, FilesNotVisible, NanLoss, UpstreamDamaged, classify

NO_SERVER = "http://127.0.0.1:9"  # the port of "discard", where nothing listens


def chained(outer: BaseException, inner: BaseException, how: str) -> BaseException:
    """`outer` raised while `inner` was handled (`context`), from it (`cause`), or from None (`hidden`)."""
    try:
        try:
            raise inner
        except BaseException as error:
            if how == "context":
                raise outer
            raise outer from (error if how == "cause" else None)
    except BaseException as error:
        return error


def raised(work: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        work()
    return caught.value


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, "No space left on device"), Failure.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), Failure.DISK_FULL),
        (OSError(errno.ESTALE, "Stale file handle"), Failure.FS_VISIBILITY),
        (OSError(errno.EIO, "Input/output error"), Failure.NODE_FAIL),
        (MemoryError(), Failure.OOM),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), Failure.OOM),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ..."), Failure.OOM),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Failure.GPU_FAULT),
        (RuntimeError("CUDA error: device-side assert triggered"), Failure.GPU_FAULT),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error"), Failure.GPU_FAULT),
        (NanLoss("the loss at step 3 is nan"), Failure.NAN_LOSS),
        (FilesNotVisible("2 of 3 files"), Failure.FS_VISIBILITY),
        (UpstreamDamaged("weights.bin: digest differs"), Failure.UPSTREAM),
        (ValueError("unknown method 'stf'"), Failure.BAD_INPUT),
        (ValueError("the prompt 'No space left on device' is not unique"), Failure.BAD_INPUT),
        (PermissionError(errno.EACCES, "Permission denied"), Failure.BAD_INPUT),
        (KeyError("loss"), Failure.BUG),
        (TypeError("unsupported operand"), Failure.BUG),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Failure.BUG),
        (FloatingPointError("underflow encountered in multiply"), Failure.BUG),
    ],
)
def test_the_reason_of_an_exception(error: BaseException, reason: Failure) -> None:
    assert classify(error) is reason
    assert classify(chained(RuntimeError("rank 0 failed"), error, "cause")) is reason
    assert classify(BaseExceptionGroup("ranks", [RuntimeError("rank 1"), error])) is reason


def test_an_error_that_came_up_while_another_was_handled() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert classify(chained(RuntimeError("cannot clean up"), full, "context")) is Failure.DISK_FULL
    assert classify(chained(KeyError("x"), FileNotFoundError("probe"), "context")) is Failure.BUG
    assert classify(chained(ValueError("line 3 of a.jsonl"), KeyError("x"), "context")) is Failure.BAD_INPUT
    assert classify(chained(KeyError("x"), full, "hidden")) is Failure.BUG


def test_a_chain_that_bites_its_tail() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) is Failure.BUG


def test_errors_of_the_network(tmp_path: Path) -> None:
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    from requests.exceptions import ReadTimeout

    assert classify(raised(lambda: urllib.request.urlopen(f"{NO_SERVER}/x"))) is Failure.HUB
    assert classify(ReadTimeout("read timed out")) is Failure.HUB
    assert classify(LocalEntryNotFoundError("not cached, and the hub is out of reach")) is Failure.HUB
    assert issubclass(HFValidationError, ValueError) and classify(HFValidationError("bad name")) is Failure.BAD_INPUT
    missing = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # it wants a response, which says nothing here
    assert classify(missing) is Failure.BAD_INPUT  # asking again will not make it exist
    assert classify(raised(lambda: json.loads("{"))) is Failure.BAD_INPUT
    assert classify(raised(lambda: open(tmp_path / "nothing"))) is Failure.BAD_INPUT


def test_memory_and_weights_as_torch_reports_them(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    assert classify(torch.OutOfMemoryError("CUDA out of memory")) is Failure.OOM
    assert classify(raised(lambda: torch.empty(10**15))) is Failure.OOM
    save_file({"a": torch.zeros(1000)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-100])
    assert classify(raised(lambda: load_file(tmp_path / "w.safetensors"))) is Failure.BAD_INPUT
    torch.save(torch.zeros(100_000), tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:200_000])
    assert classify(raised(lambda: torch.load(tmp_path / "w.pt", weights_only=True))) is Failure.BAD_INPUT


def test_every_reason_has_a_policy_and_reads_as_a_word() -> None:
    assert set(POLICY) == set(Failure)
    assert all(policy.retry >= 0 and policy.remedy.endswith(".") for policy in POLICY.values())
    assert POLICY[Failure("OOM")].retry == 2 and json.dumps(Failure.OOM) == '"OOM"' and f"{Failure.OOM}" == "OOM"
    assert {name for name, policy in POLICY.items() if policy.retry == 0} == {
        Failure.DISK_FULL,
        Failure.NAN_LOSS,
        Failure.BAD_INPUT,
        Failure.UPSTREAM,
    }
