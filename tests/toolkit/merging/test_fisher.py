"""The Fisher information against torch by hand and against its definition; the merge that it weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs import fisher as job
from jobs import merge
from tests.toolkit.training.small import Small, context, dataset, weights
from toolkit.merging.methods.fisher import Inputs, Spec, fisher
from toolkit.stage import Artifact

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Models = dict[str, Path]


def estimate(model: Path, data: Artifact, folder: Path, **fields: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    out.mkdir(parents=True)
    inputs = job.Inputs(model=Artifact(path=model), data=data)
    return out, job.run(job.Spec(**fields), inputs, out, context(folder))


def test_with_the_labels_of_the_data_it_is_the_mean_square_of_gradients(small: Small, tmp_path: Path) -> None:
    out, metrics = estimate(small.model.path, small.pairs, tmp_path, rows=3, labels="data", max_length=64)
    model = AutoModelForCausalLM.from_pretrained(small.model.path)
    tokenizer = AutoTokenizer.from_pretrained(small.model.path)
    pairs = load_from_disk(str(small.pairs.path / "data"))["train"]
    expected: dict[str, Any] = {}
    for row in pairs.select(range(3)):
        prompt, answer = (tokenizer(row[name])["input_ids"] for name in ("prompt", "completion"))
        answer = answer + [tokenizer.eos_token_id]
        logp = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        loss = sum(logp[len(prompt) - 1 + at, token] for at, token in enumerate(answer))
        named = dict(model.named_parameters())
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            expected[name] = expected.get(name, 0) + gradient.double() ** 2 / 3
    found = weights(out)
    assert set(found) == set(expected) and metrics["rows"] == 3
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-12)
    assert metrics["trace"] == pytest.approx(float(sum(x.sum() for x in expected.values())), rel=1e-4)


def test_with_labels_of_the_model_it_is_the_fisher_information(small: Small, tmp_path: Path) -> None:
    """Its definition, summed over every label that the model could have drawn, against the mean of 300 draws: within
    four standard errors, which are known from all pairs of labels of the two targets."""
    ids, names = [5, 90, 17], ("model.norm.weight", "model.layers.0.mlp.up_proj.weight")
    model = AutoModelForCausalLM.from_pretrained(small.model.path)
    parameters = [model.get_parameter(name) for name in names]
    logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    chances = logp.detach().exp().double()
    rows = dataset(tmp_path / "rows", {"input_ids": [ids] * 300})
    out, metrics = estimate(small.model.path, rows, tmp_path / "f", rows=300, seed=1)
    assert metrics == {"rows": 300, "targets": 600, "trace": metrics["trace"]}
    drawn = weights(out)
    gradients = [[torch.autograd.grad(value, parameters, retain_graph=True) for value in row] for row in logp]
    for number, name in enumerate(names):
        one, two = (torch.stack([g[number].flatten() for g in row]).double() for row in gradients)
        exact = chances[0] @ one**2 + chances[1] @ two**2
        of_pairs = (one**2).sum(1)[:, None] + (two**2).sum(1)[None, :] + 2 * one @ two.T
        chance = chances[0][:, None] * chances[1][None, :]
        mean = float((chance * of_pairs).sum())
        spread = float((chance * (of_pairs - mean) ** 2).sum()) ** 0.5
        assert mean == pytest.approx(float(exact.sum()), rel=1e-3)  # targets of a row are uncorrelated
        assert abs(float(drawn[name].double().sum()) - mean) < 4 * spread / 300**0.5
        assert spread / 300**0.5 < 0.2 * mean
    again, _ = estimate(small.model.path, rows, tmp_path / "g", rows=20, seed=1)
    twice, _ = estimate(small.model.path, rows, tmp_path / "h", rows=20, seed=1)
    other, _ = estimate(small.model.path, rows, tmp_path / "i", rows=20, seed=2)
    name = "model.norm.weight"
    assert torch.equal(weights(again)[name], weights(twice)[name])
    assert not torch.equal(weights(again)[name], weights(other)[name])


def test_rows_without_targets_or_columns_are_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no column 'prompt' and no 'input_ids'; it has text"):
        estimate(small.model.path, dataset(tmp_path / "t", {"text": ["a"]}), tmp_path / "a")
    with pytest.raises(ValueError, match="none of the 1 rows has a target"):
        estimate(small.model.path, dataset(tmp_path / "o", {"input_ids": [[5]]}), tmp_path / "b")
    with pytest.raises(ValueError, match="rows is 0"):
        job.Spec(rows=0)


@pytest.fixture(scope="module", params=KINDS)
def models(request: Any, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Three models in one type, and a made-up Fisher information of each, with zeros in places."""
    folder, kind, random = tmp_path_factory.mktemp("m"), KINDS[request.param], torch.Generator().manual_seed(0)
    start, found = weights(small.model.path), {}
    for role in ("first", "second", "third"):
        moved = {n: (x + 0.02 * torch.randn(x.shape, generator=random)).to(kind) for n, x in start.items()}
        made = {n: (torch.randn(x.shape, generator=random).relu() * 1e-3) ** 2 for n, x in start.items()}
        for name, tensors in ((role, moved), (f"fisher.{role}", made)):
            found[name] = shutil.copytree(small.model.path, folder / name, ignore=shutil.ignore_patterns("steps"))
            save_file(tensors, found[name] / "model.safetensors", metadata={"format": "pt"})
    return found


def go(models: Models, folder: Path, **fields: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    out.mkdir(parents=True)
    named = {role: Artifact(path=path) for role, path in models.items() if "." not in role}
    information = {role[7:]: Artifact(path=path) for role, path in models.items() if role.startswith("fisher.")}
    inputs = Inputs(**named, fisher=information)
    return out, merge.run(Spec(method="fisher", **fields), inputs, out, context(folder, threads=2))


@pytest.mark.parametrize("normalize", [True, False])
def test_bit_equal_to_torch_on_whole_tensors(models: Models, tmp_path: Path, normalize: bool) -> None:
    given = (0.5, 2.0, 1.0)
    out, metrics = go(models, tmp_path / "own", weights=given, normalize=normalize)
    wide, _ = go(models, tmp_path / "wide", weights=given, normalize=normalize, dtype="fp32")
    roles, below, total = ("first", "second", "third"), 0, 0
    theta = [weights(models[role]) for role in roles]
    information = [weights(models[f"fisher.{role}"]) for role in roles]
    length = [
        float(torch.cat([x.double().flatten() for x in f.values()]).norm()) if normalize else 1 for f in information
    ]
    w = [weight / size for weight, size in zip(given, length, strict=True)]
    stored = weights(out)
    for name, tensor in weights(wide).items():
        a, b, c = (model[name].float() for model in theta)
        f, g, h = (model[name] for model in information)
        below, total = below + int((f < 1e-6).sum()), total + f.numel()
        f, g, h = f.clamp(min=1e-6) * w[0], g * w[1], h * w[2]
        expected = ((a * f + b * g) + c * h) / ((f + g) + h)
        # the lengths are summed in another order: their last digit in float64 is free, and so is the last bit here
        assert torch.equal(tensor, expected) or normalize and torch.allclose(tensor, expected, rtol=3e-7, atol=0)
        assert torch.equal(stored[name], tensor.to(stored[name].dtype))
    assert metrics["at_floor"] == pytest.approx(below / total) and 0.5 < metrics["at_floor"] < 0.9


def test_what_matters_to_one_model_alone_is_its_own() -> None:
    """Where the second's information is zero the result is the first's, and nearly the second's the other way round."""
    one, two = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0])
    found = fisher([one, two], [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])], [1.0, 1.0], 1e-6)
    assert found[0] == 1 and found[2] == 1 and float(found[1]) == pytest.approx(3, abs=1e-5)


def test_each_model_needs_its_own(models: Models, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="each model needs its own: fisher.first, fisher.second, fisher.third; given: fi"
    ):
        go({name: path for name, path in models.items() if name != "fisher.third"}, tmp_path)
    with pytest.raises(ValueError, match="floor is 0: it must be above 0"):
        Spec(method="fisher", floor=0)
    with pytest.raises(ValueError, match="none may be negative"):
        Spec(method="fisher", weights=(1.0, -1.0))
