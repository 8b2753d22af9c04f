"""Every method against torch in fp32 on whole tensors, bit for bit, in every type; the identities; exact thresholds."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jobs import merge
from tests.toolkit.training.small import Small, context, weights
from toolkit import lookup
from toolkit.merging import stream
from toolkit.merging.methods import breadcrumbs, dare, norm_weighted, slerp, ties
from toolkit.merging.rounding import random_words, stochastic
from toolkit.merging.statistics import magnitudes
from toolkit.spec import build
from toolkit.stage import Artifact

State = dict[str, torch.Tensor]
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module", params=KINDS)
def models(request: Any, small: Small, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four models of one shape: a base and three that are some way from it, stored in one type."""
    folder, kind = tmp_path_factory.mktemp("m"), KINDS[request.param]
    random = torch.Generator().manual_seed(0)
    start = weights(small.model.path)
    found = {}
    for role in ("base", "first", "second", "third"):
        moved = {
            name: x + (0 if role == "base" else 0.02) * torch.randn(x.shape, generator=random)
            for name, x in start.items()
        }
        found[role] = shutil.copytree(small.model.path, folder / role, ignore=shutil.ignore_patterns("steps"))
        tensors = {name: x.to(kind) for name, x in moved.items()}
        save_file(tensors, found[role] / "model.safetensors", metadata={"format": "pt"})
    return found


def go(models: dict[str, Path], folder: Path, threads: int = 2, **words: Any) -> tuple[Path, dict[str, Any]]:
    method = lookup.find(merge.CHOICE.package, words["method"], "method")
    out = folder / "out"
    out.mkdir(parents=True)
    inputs = method.Inputs(**{role: Artifact(path=path) for role, path in models.items()})
    return out, merge.run(build(method.Spec, words), inputs, out, context(folder, threads=threads))


def in_fp32(models: dict[str, Path], name: str) -> list[torch.Tensor]:
    return [weights(path)[name].float() for path in models.values()]


def reference_task(x: list[torch.Tensor], name: str) -> torch.Tensor:
    base, one, two, three = x
    return base + 0.7 * ((0.5 * (one - base) + -0.25 * (two - base)) + 2.0 * (three - base))


def reference_linear(x: list[torch.Tensor], name: str) -> torch.Tensor:
    return (0.25 * x[1] + 0.5 * x[2]) + 0.25 * x[3]


def reference_slerp(x: list[torch.Tensor], name: str) -> torch.Tensor:
    a, b = x[1].double(), x[2].double()
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    if abs(cosine) > 0.9995:
        return (1 - 0.3) * x[1] + 0.3 * x[2]
    angle = math.acos(cosine)
    return math.sin(0.7 * angle) / math.sin(angle) * x[1] + math.sin(0.3 * angle) / math.sin(angle) * x[2]


def reference_ties(x: list[torch.Tensor], name: str) -> torch.Tensor:
    """Deltas that equal the threshold are kept, as in the authors' code (kthvalue, then >=). mergekit 0.1.5 keeps the
    first k of an argsort: elements with a delta at its threshold may differ (0.05 % in bf16), and no others do."""
    base, trimmed = x[0], []
    for model in x[1:]:
        delta = model - base
        size = delta.abs().flatten()
        least = size.kthvalue(size.numel() - max(1, int(0.3 * size.numel())) + 1).values
        trimmed.append(torch.where(delta.abs() >= least, delta, 0.0))
    sign = torch.where((trimmed[0] + trimmed[1]) + trimmed[2] >= 0, 1.0, -1.0)
    agree = [(part.sign() == sign).float() for part in trimmed]
    total = (agree[0] * trimmed[0] + agree[1] * trimmed[1]) + agree[2] * trimmed[2]
    return base + 0.9 * (total / ((agree[0] + agree[1]) + agree[2]).clamp(min=1))


def reference_dare(x: list[torch.Tensor], name: str) -> torch.Tensor:
    parts = []
    for role, model in zip(("first", "second", "third"), x[1:], strict=True):
        drawn = random_words(7, f"kept of {role} {name}", 0, model.numel(), "uint32").astype(np.int64)
        keep = torch.from_numpy(drawn < round(0.4 * 2**32)).view(model.shape)
        parts.append((model - x[0]) * keep / 0.4)
    return x[0] + 0.5 * ((parts[0] + parts[1]) + parts[2])


def reference_breadcrumbs(x: list[torch.Tensor], name: str) -> torch.Tensor:
    parts = []
    for model in x[1:]:
        delta = model - x[0]
        size, n = delta.abs().flatten().sort().values, delta.numel()
        count = max(1, int(0.6 * n))
        low = max(0, n - count - int(0.1 * n))
        parts.append(torch.where((delta.abs() >= size[low]) & (delta.abs() <= size[low + count - 1]), delta, 0.0))
    return x[0] + 0.5 * ((parts[0] + parts[1]) + parts[2])


def reference_norm(x: list[torch.Tensor], name: str) -> torch.Tensor:
    inverse = [1 / float((model.double() - x[0].double()).norm()) for model in x[1:]]
    parts = [(value / sum(inverse)) * (model - x[0]) for value, model in zip(inverse, x[1:], strict=True)]
    return x[0] + 0.5 * ((parts[0] + parts[1]) + parts[2])


METHODS: dict[str, tuple[dict[str, Any], Callable[[list[torch.Tensor], str], torch.Tensor]]] = {
    "task_arithmetic": ({"weights": [0.5, -0.25, 2.0], "scale": 0.7}, reference_task),
    "linear": ({"weights": [1, 2, 1]}, reference_linear),
    "slerp": ({"share": 0.3}, reference_slerp),
    "ties": ({"density": 0.3, "scale": 0.9}, reference_ties),
    "dare": ({"density": 0.4, "scale": 0.5, "seed": 7}, reference_dare),
    "breadcrumbs": ({"density": 0.6, "outliers": 0.1, "scale": 0.5}, reference_breadcrumbs),
    "norm_weighted": ({"power": -1, "scale": 0.5}, reference_norm),
}
TAKES = {"linear": ("first", "second", "third"), "slerp": ("first", "second")}


def test_no_method_is_without_a_reference() -> None:
    """Those of `delta` and `fisher` stand in files of their own."""
    assert {*METHODS, "delta", "fisher"} == set(lookup.names(merge.CHOICE.package))


@pytest.mark.parametrize("method", METHODS)
def test_bit_equal_to_torch_on_whole_tensors(method: str, models: dict[str, Path], tmp_path: Path) -> None:
    words, reference = METHODS[method]
    inputs = {role: models[role] for role in TAKES.get(method, models)}
    out, metrics = go(inputs, tmp_path / "own", method=method, **words)
    wide, _ = go(inputs, tmp_path / "fp32", method=method, dtype="fp32", **words)
    stored = weights(out)
    for name, tensor in weights(wide).items():
        expected = reference(in_fp32(models, name), name)
        assert tensor.dtype == torch.float32 and torch.equal(tensor, expected), name
        assert torch.equal(stored[name], expected.to(stored[name].dtype)), name
    assert metrics["notes"]["tokenizer"] == "first" and metrics["notes"]["rounding"] == "nearest"


@pytest.mark.parametrize("method", ["ties", "dare", "slerp"])
def test_threads_and_pieces_change_nothing(
    method: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = METHODS[method][0] | {"method": method, "dtype": "bf16", "rounding": "stochastic"}
    inputs = {role: models[role] for role in TAKES.get(method, models)}
    whole, _ = go(inputs, tmp_path / "a", threads=1, **words)
    for function in (stream.walk, stream.write):
        monkeypatch.setitem(function.__kwdefaults__, "piece", 4096)
    parts, _ = go(inputs, tmp_path / "b", threads=3, **words)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_thresholds_are_exact(tmp_path: Path) -> None:
    """Order statistics of |delta| with many equal ones, zeros and denormals, against a sort."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(300, 1000, generator=random)
    x[:50] = x[0, 0]
    x[50:60] = 0
    x[60:70] = 1e-42 * torch.arange(1000)
    for role, tensor in (("base", torch.zeros_like(x)), ("model", x)):
        (tmp_path / role).mkdir()
        save_file({"w": tensor}, tmp_path / role / "model.safetensors")
    from toolkit.checkpoints.tensors import read_folder
    from toolkit.merging.models import source

    models = {role: {n: source(t) for n, t in read_folder(tmp_path / role).items()} for role in ("base", "model")}
    ranks = [0, 1, 9_999, 15_000, 150_000, 299_998, 299_999]
    ordered = x.abs().flatten().sort().values
    assert magnitudes(models, lambda n: ranks, 2) == {"w": [[float(ordered[rank]) for rank in ranks]]}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bfloat16, torch.float16]), st.integers(-20, 3))
def test_stochastic_rounding_is_between_neighbours_and_right_in_the_mean(
    seed: int, kind: torch.dtype, power: int
) -> None:
    value = np.random.default_rng(seed).normal() * 2.0**power
    n = 1 << 16
    x = torch.full((n,), value, dtype=torch.float32)
    found = stochastic(x, kind, random_words(seed, "w", 0, n, "uint16")).double()
    below, above = found.min(), found.max()
    assert below <= x[0] <= above and len(found.unique()) <= 2
    step = float(above - below)
    assert abs(float(found.mean()) - float(x[0].double())) <= 4.5 * step * 0.5 / math.sqrt(n) + step * 2**-15
    kept = x.to(kind).float()
    assert torch.equal(stochastic(kept, kind, random_words(seed, "w", 0, n, "uint16")).float(), kept)


def test_random_words_begin_anywhere() -> None:
    whole = random_words(3, "w", 0, 1000, "uint16")
    assert len(set(whole.tolist())) > 900
    for first in (0, 1, 2, 3, 4, 7, 500):
        assert (random_words(3, "w", first, 100, "uint16") == whole[first : first + 100]).all()
    assert (random_words(4, "w", 0, 1000, "uint16") != whole).mean() > 0.99
    assert (random_words(3, "v", 0, 1000, "uint16") != whole).mean() > 0.99


def test_dare_keeps_what_it_says() -> None:
    mask = dare.mask(0, "first w", 0, 1 << 18, 0.3)
    assert abs(float(mask.float().mean()) - 0.3) < 5 * math.sqrt(0.21 / (1 << 18))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"method": "ties", "density": 0}, "density is 0: it must be above 0"),
        ({"method": "breadcrumbs", "density": 0.9, "outliers": 0.2}, "together at most 1"),
        ({"method": "slerp", "share": 1.5}, "share is 1.5"),
        ({"method": "linear", "weights": [1, -1]}, "add up to 0"),
        ({"method": "task_arithmetic", "weights": [1] * 9}, "at most 8 models"),
    ],
)
def test_wrong_numbers_are_refused_when_planning(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(lookup.find(merge.CHOICE.package, words["method"], "method").Spec, words)


def test_weights_must_be_one_for_each(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights has 2 numbers for 3 models \(first, second, third\)"):
        go(models, tmp_path, method="ties", weights=[1, 2])


def test_special_cases() -> None:
    assert slerp.coefficients(4.0, 0.0, 0.0, 0.3) == (0.7, 0.3)
    assert norm_weighted.shares([0.0, 2.0], -1) == [0.0, 1.0]
    assert breadcrumbs.between(10, 0.8, 0.1) == [1, 8]
    alone = ties.ties(torch.zeros(2), [torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 3.0])], [0, 0], [1, 1], 1)
    assert alone.tolist() == [1.0, 3.0]  # a vote that ends at zero elects plus
    equal = ties.ties(torch.zeros(4), [torch.tensor([1.0, -1.0, 1.0, 0.5])], [1.0], [1], 1)
    assert equal.tolist() == [
        1.0,
        -1.0,
        1.0,
        0.0,
    ]  # density 0.5: two, and what equals them; mergekit keeps two of three
