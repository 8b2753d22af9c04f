"""The weight report against numpy in float64; effective rank where it is known; the command and its figure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from slurm.cli import app
from tests.toolkit.training.small import Small
from toolkit.checkpoints.tensors import read_folder
from toolkit.merging.compiled import sums
from toolkit.merging.models import source
from toolkit.merging.stream import walk
from toolkit.merging.weights import KEYS, Weights, effective_rank, layer


def test_six_digits_against_numpy(tmp_path: Path) -> None:
    """Tensors of several pieces, of one, of a vector, with a mean far from zero; bf16, as they are published."""
    random = np.random.default_rng(0)
    shapes = {"model.layers.0.w": (700, 1000), "model.layers.1.w": (64, 64), "model.norm.weight": (77,)}
    stored: dict[str, dict[str, np.ndarray]] = {}
    models = {}
    for role, spread in (("base", 0.0), ("instruct", 1e-3), ("trained", 1e-4)):
        tensors = {
            name: torch.from_numpy((0.01 + 0.02 * np.random.default_rng(len(name)).normal(size=shape)
                                    + spread * random.normal(size=shape)).astype(np.float32)).bfloat16()
            for name, shape in shapes.items()
        }  # fmt: skip
        (tmp_path / role).mkdir()
        save_file(tensors, tmp_path / role / "model.safetensors")
        stored[role] = {name: tensor.double().numpy() for name, tensor in tensors.items()}
        models[role] = {name: source(tensor) for name, tensor in read_folder(tmp_path / role).items()}
    found = []
    for threads, halves in ((1, ()), (3, list(shapes)), (2, ["model.layers.0.w"])):
        sizes = Weights(shapes)
        walk(models, list(shapes), lambda p, c, r: sizes.measure(p, *c), halves=halves, threads=threads)
        found.append(list(sizes.rows()))
    assert found[0] == found[1] == found[2]  # not only to six digits
    for row in found[0]:
        names = [n for n in shapes if row["part"] == "whole" or row["name"] in (n, layer(n))]
        b, i, t = (np.concatenate([stored[role][n].ravel() for n in names]) for role in ("base", "instruct", "trained"))
        for name, x in (("base", b), ("instruct", i), ("delta", i - b), ("change", t - b)):
            assert row[f"{name}_abs"] == pytest.approx(np.abs(x).mean(), rel=5e-7)
            assert row[f"{name}_square"] == pytest.approx((x * x).mean(), rel=5e-7)
        cosine = (i - b) @ (t - b) / np.linalg.norm(i - b) / np.linalg.norm(t - b)
        assert row["cosine"] == pytest.approx(cosine, abs=1e-6)
        assert row["change_over_delta_abs"] == pytest.approx(np.abs(t - b).mean() / np.abs(i - b).mean(), rel=1e-6)
        assert row["elements"] == len(b)
        if row["name"] == "model.layers.1.w":  # all of it is its sample
            assert row["delta_effective_rank"] == pytest.approx(effective_rank(torch.from_numpy(i - b).view(64, 64)))
            assert row["change_effective_rank"] == pytest.approx(effective_rank(torch.from_numpy(t - b).view(64, 64)))
    assert [row["name"] for row in found[0] if row["part"] == "layer"] == ["layer 0", "layer 1", "outside"]


def test_what_is_not_finite_is_not_lost() -> None:
    """Lanes may change the order of a sum, and must not take such values for impossible; blocks end anywhere."""
    ones = np.ones(10_000, np.float32)
    assert sums(ones, 3 * ones, 2 * ones).tolist() == [1e4, 1e4, 3e4, 9e4, 2e4, 4e4, 1e4, 1e4, 2e4]
    for value in (np.nan, np.inf):
        spoilt = ones.copy()
        spoilt[9_999] = value
        finite = np.isfinite(sums(ones, spoilt, 2 * ones))
        assert [key for key, good in zip(KEYS, finite, strict=True) if good] == [
            "base_abs", "base_square", "change_abs", "change_square"
        ]  # fmt: skip


def test_effective_rank_where_it_is_known() -> None:
    assert effective_rank(torch.eye(16, 100)) == pytest.approx(16)
    assert effective_rank(torch.ones(64, 32)) == pytest.approx(1)
    for value in (0.0, math.nan, math.inf):
        assert effective_rank(torch.full((4, 4), value)) is None
    values = torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(values)) == pytest.approx(math.exp(entropy))
    low = torch.randn(64, 4) @ torch.randn(4, 500)
    rank = effective_rank(low)
    assert rank is not None and 3 < rank <= 4.001


def test_the_command(small: Small, tmp_path: Path) -> None:
    further = small.pretrain(tmp_path / "p", inputs={"model": small.model}, steps=2)
    words = ["weights", str(small.model.path), str(small.model.path / "steps" / "2"), str(further)]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "w.png")])
    assert done.exit_code == 0, done.output
    assert "change/delta" in done.output and "layer 1" in done.output and (tmp_path / "w.png").stat().st_size > 5000
    rows = json.loads(CliRunner().invoke(app, [*words[:3], "--json"]).output)
    assert "change_abs" not in rows[0] and rows[0]["delta_abs"] > 0
    assert sum(row["elements"] for row in rows if row["part"] == "tensor") == rows[0]["elements"]
    gone = CliRunner().invoke(app, ["weights", "nowhere", words[1]])
    assert gone.exit_code != 0 and "'nowhere' is no folder" in str(gone.exception)
