"""Where an artifact comes from: code and libraries (`identity`, which is compared to see drift) and the machine."""

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]  # the checkout
PACKAGES = (
    "accelerate", "datasets", "deepspeed", "lm_eval", "numpy", "peft", "pyarrow", "safetensors", "tokenizers", "torch",
    "transformers", "trl",
)  # fmt: skip


@cache
def identity() -> dict[str, Any]:
    """What decides, beside the fingerprint, how an artifact comes out: our code (a digest), Python, libraries."""
    versions = {name: _version(name) for name in PACKAGES}
    return {"code": _code(), "python": platform.python_version(), "packages": versions}


@cache
def machine() -> dict[str, Any]:
    """The host and, in a Slurm job, its ids; no digest or comparison looks at it."""
    slurm = {
        key: os.environ[key]
        for key in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION")
        if key in os.environ
    }
    return {"host": socket.gethostname(), "cpus": os.cpu_count(), "gpus": _gpus(), "commit": _commit(), **slurm}


@cache
def environment() -> list[str]:
    """Every installed distribution as `name==version`, sorted: the lock that a launch keeps beside its submission."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)


def _gpus() -> list[str]:
    """Models of the GPUs that this process may use, as the driver names them; torch is not asked, it takes seconds."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = [re.search(r"Model:\s*(.*)", path.read_text()) for path in found]
    names = [match[1].strip() if match else "unknown" for match in models]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names if visible is None else names[: len([number for number in visible.split(",") if number.strip()])]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _code() -> str:
    """12 hex digits over the sources of `toolkit` and `jobs` and over the templates, as they are, committed or not."""
    digest = hashlib.sha256()
    for folder, files in (("toolkit", "*.py"), ("jobs", "*.py"), ("configs/templates", "*.yaml")):
        for path in sorted((HOME / folder).rglob(files)):
            digest.update(f"{path.relative_to(HOME)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _commit() -> str:
    """The commit of the checkout, `+` behind it if tracked files differ; "unknown" outside a git checkout."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (
        OSError,
        subprocess.CalledProcessError,
    ):  # no git here, or no checkout: the digest of the code is known anyway
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(HOME), *words], check=True, capture_output=True, text=True).stdout.strip()
