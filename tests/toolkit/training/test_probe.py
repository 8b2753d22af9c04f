"""Heads on a frozen model: features against a plain forward pass, fits against scikit-learn and closed forms."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

from jobs import train
from tests.toolkit.training.small import Small, context
from toolkit.manifest.files import digest_file
from toolkit.spec import build
from toolkit.stage import Artifact
from toolkit.training.methods import probe
from toolkit.training.probe import features, fit_classes, fit_pairs, fit_scores

CITIES = ("Berlin", "Rome", "Oslo")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Texts whose class, score and better answer a model can tell from their last words."""
    from datasets import Dataset, DatasetDict

    def split(rows: int, first: int) -> Any:
        numbers = range(first, first + rows)
        city = [CITIES[n % 3] for n in numbers]
        return Dataset.from_dict(
            {
                "prompt": [f"Person {n} lives in {c}" for n, c in zip(numbers, city)],
                "completion": city,
                "score": [float(n % 3) for n in numbers],
                "chosen": [" in Berlin." for _ in numbers],
                "rejected": [" in Rome and Rome." for _ in numbers],
            }
        )

    folder = tmp_path_factory.mktemp("probe")
    DatasetDict({"train": split(40, 0), "heldout": split(20, 100)}).save_to_disk(str(folder / "data"))
    return Artifact(path=folder)


def run(small: Small, data: Artifact, folder: Path, **fields: Any) -> tuple[Path, dict[str, float]]:
    out = folder / "out"
    out.mkdir(parents=True)
    spec = build(probe.Spec, {"method": "probe"} | fields)
    return out, train.run(spec, probe.Inputs(model=small.model, data=data), out, context(folder))


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_features_are_those_of_a_text_alone(small: Small, layer: int, pooling: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(small.model.path).eval()
    texts = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    found = features(model, texts, layer, pooling, 16, lambda done, total: None)
    for text, feature in zip(texts, found):
        with torch.no_grad():
            states = model(torch.tensor([text]), output_hidden_states=True).hidden_states[layer][0]
        torch.testing.assert_close(feature, states[-1] if pooling == "last" else states.mean(0), rtol=0, atol=2e-6)


def test_classes_as_scikit_learn_fits_them() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 5, 0.1, 1, 1, 2])
    labels = (x[:, 0] + x[:, 1] / 5 > 0).long() + (x[:, 3] > 0.5).long()
    head = fit_classes(x, labels, 3, l2=0.5)
    scaled = StandardScaler().fit_transform(x.double().numpy())
    theirs = LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(scaled, labels.numpy())
    probabilities = torch.softmax(head(x), 1)
    assert (probabilities - torch.from_numpy(theirs.predict_proba(scaled))).abs().max() < 1e-5


def test_pairs_are_where_the_gradient_vanishes() -> None:
    """The loss by hand in float64: -sum log sigma(r - r') + l2/2 |w|^2; at its least every derivative is zero."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(50, 4, generator=generator) + 0.5, torch.randn(50, 4, generator=generator)
    head = fit_pairs(chosen, rejected, l2=1.0)
    weight = head.weight.clone().requires_grad_(True)
    apart = (chosen.double() - rejected.double()) / head.scale @ weight.T
    loss = torch.log(1 + torch.exp(-apart)).sum() + weight.square().sum() / 2
    loss.backward()
    assert weight.grad is not None and weight.grad.abs().max() < 1e-6
    margins = head(chosen) - head(rejected)
    assert margins.flatten().tolist() == pytest.approx(apart.flatten().tolist())


def test_scores_as_scikit_learn_fits_them() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    scores = x @ torch.tensor([1.0, 2, 0, 0, -1]) + 3
    scaled = StandardScaler().fit_transform(x.double().numpy())
    theirs = Ridge(alpha=2.0).fit(scaled, scores.numpy()).predict(scaled)
    assert fit_scores(x, scores, 2.0)(x)[:, 0].tolist() == pytest.approx(theirs.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("objective", "fields", "metrics"),
    [
        ("classes", {"pooling": "mean", "layer": 0}, {"acc", "majority"}),
        ("pairs", {"pooling": "mean", "layer": 1}, {"acc", "margin"}),
        ("scores", {"target": "score", "pooling": "mean", "layer": 0}, {"squared_error"}),
    ],
)
def test_measured_on_rows_it_was_not_fitted_on(
    small: Small, data: Artifact, tmp_path: Path, objective: str, fields: dict[str, Any], metrics: set[str]
) -> None:
    before = digest_file(small.model.path / "model.safetensors")
    out, found = run(small, data, tmp_path, objective=objective, **fields)
    assert digest_file(small.model.path / "model.safetensors") == before
    rows = {row["metric"]: row for row in pyarrow.parquet.read_table(out / "rows.parquet").to_pylist()}
    assert set(rows) == metrics and all(row["n"] == 20 and row["task"] == "probe" for row in rows.values())
    assert {name: found[name] for name in metrics} == {name: row["value"] for name, row in rows.items()}
    assert found["trained"] == (3 * 33 if objective == "classes" else 33) and found["rows"] == 40
    items = pyarrow.parquet.read_table(out / "items.parquet").to_pylist()
    assert len(items) == 20 and items[0]["prompt"].startswith("Person 100")
    if objective == "scores":
        assert found["squared_error"] < 0.3  # of guesses at their mean it would be 2/3
    else:
        assert found["acc"] > 0.9 and found["acc"] == sum(item["correct"] for item in items) / 20
        assert math.isclose(found.get("majority", 0.35), 0.35, abs_tol=0.06)
    assert json.loads((out / "probe.json").read_text())["objective"] == objective


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"l2": 0}, "l2 is 0.0: it must be above 0"),
        ({"layer": 9}, "layer is 9, and the model has 2 blocks: -1 or 0 to 2"),
        ({"layer": -2}, "layer is -2"),
        ({"target": "gold"}, "has no column 'gold'"),
        ({"objective": "scores"}, "column 'completion' must hold numbers for scores; it holds 'Berlin'"),
        ({"target": "chosen"}, "has one value only, ' in Berlin.'"),
        ({"heldout": "train"}, "split and heldout are both 'train'"),
        ({"heldout": "test"}, "unknown split 'test'"),
    ],
)
def test_refused(small: Small, data: Artifact, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(small, data, tmp_path, **fields)


def test_equal_pairs_are_refused(small: Small, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"prompt": ["a", "b"], "chosen": ["x", "same"], "rejected": ["y", "same"]})
    DatasetDict({"train": rows, "heldout": rows}).save_to_disk(str(tmp_path / "d" / "data"))
    with pytest.raises(ValueError, match="pair 1 has equal answers, so that neither is preferred"):
        run(small, Artifact(path=tmp_path / "d"), tmp_path / "r", objective="pairs")


def test_a_probe_is_no_model(small: Small, data: Artifact, tmp_path: Path) -> None:
    from toolkit.generation import models

    out, _ = run(small, data, tmp_path)
    with pytest.raises(ValueError, match="holds no model"):
        models.load(out, "auto", 1)
