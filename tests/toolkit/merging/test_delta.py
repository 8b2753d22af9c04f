"""Delta merge against torch in fp32 (bit for bit) and against float64; identities; what does not fit is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from jobs import merge
from tests.toolkit.training.small import SIZES, Small, context, weights
from toolkit.merging.methods.delta import Inputs, Spec, delta
from toolkit.merging.models import read_models
from toolkit.merging.stream import stream
from toolkit.stage import Artifact

Models = dict[str, Path]


@pytest.fixture(scope="module")
def models(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """base, instruct tuned from it, and base trained further."""
    folder = tmp_path_factory.mktemp("models")
    further = small.pretrain(folder / "p", inputs={"model": small.model}, steps=3, lr=1e-2)
    return {"trained": further, "base": small.model.path, "instruct": small.tune(folder / "t", steps=3, lr=1e-2)}


def in_bf16(models: Models, folder: Path) -> Models:
    found = {}
    for role, path in models.items():
        shutil.copytree(path, folder / role, ignore=shutil.ignore_patterns("steps"))
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights(path).items()}
        save_file(tensors, folder / role / "model.safetensors", metadata={"format": "pt"})
        found[role] = folder / role
    return found


def go(models: Models, folder: Path, **fields: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "out"
    out.mkdir(parents=True)
    inputs = Inputs(**{role: Artifact(path=path) for role, path in models.items()})
    return out, merge.run(Spec(method="delta", **fields), inputs, out, context(folder))


def reference(models: Models, scale: float, kind: torch.dtype) -> dict[str, torch.Tensor]:
    trained, base, instruct = (weights(models[role]) for role in ("trained", "base", "instruct"))
    return {
        name: tensor.to(kind) + scale * (instruct[name].to(kind) - base[name].to(kind))
        for name, tensor in trained.items()
    }


@pytest.mark.parametrize("scale", [1.0, 0.3, -0.5])
def test_fp32_is_the_float64_result_rounded(models: Models, tmp_path: Path, scale: float) -> None:
    out, _ = go(models, tmp_path, scale=scale)
    exact = reference(models, scale, torch.float64)
    for name, tensor in weights(out).items():
        assert tensor.dtype == torch.float32
        # One rounding in the difference, one (fused) or two in the sum: each half a unit in the last place of its result.
        bound = 2.0**-23 * (exact[name].abs() + exact[name].abs().max())
        assert bool(((tensor.double() - exact[name]).abs() <= bound).all())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_bf16_is_correctly_rounded(models: Models, tmp_path: Path, scale: float) -> None:
    small = in_bf16(models, tmp_path / "bf16")
    out, _ = go(small, tmp_path, scale=scale)
    exact, fp32 = reference(small, scale, torch.float64), reference(small, scale, torch.float32)
    different = total = 0
    for name, tensor in weights(out).items():
        assert torch.equal(tensor, fp32[name].to(torch.bfloat16))  # powers of two scale without rounding
        different += int((tensor != exact[name].to(torch.bfloat16)).sum())
        total += tensor.numel()
    assert different <= total * 1e-4  # a sum that fp32 rounds to the middle between two bf16 numbers


def test_wider_and_narrower_output(models: Models, tmp_path: Path) -> None:
    small = in_bf16(models, tmp_path / "bf16")
    out, _ = go(small, tmp_path / "wide", dtype="fp32")
    expected = reference(small, 1.0, torch.float32)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(out).items())
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.float32
    out, _ = go(models, tmp_path / "narrow", dtype="bf16")
    expected = reference(models, 1.0, torch.float32)
    assert all(torch.equal(tensor, expected[name].to(torch.bfloat16)) for name, tensor in weights(out).items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_identities(models: Models, tmp_path: Path) -> None:
    spoilt = shutil.copytree(models["trained"], tmp_path / "m")
    tensors = load_file(spoilt / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = -0.0
    save_file(tensors, spoilt / "model.safetensors", metadata={"format": "pt"})
    out, _ = go(models | {"trained": spoilt}, tmp_path / "zero", scale=0)
    for name, tensor in weights(out).items():  # bits, so that -0.0 is not 0.0
        assert torch.equal(tensor.view(torch.int32), tensors[name].view(torch.int32))
    out, _ = go(models | {"trained": models["base"]}, tmp_path / "one")
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, weights(models["instruct"])[name], rtol=0, atol=1e-7)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1),
    st.floats(-4, 4, width=32),
)
def test_identities_of_any_numbers(numbers: list[tuple[float, float, float]], scale: float) -> None:
    trained, base, instruct = torch.tensor(numbers, dtype=torch.float32).T.contiguous()
    nothing = delta(trained.clone(), base, instruct.clone(), 0.0)
    assert torch.equal(nothing.view(torch.int32), trained.view(torch.int32))
    exact = (instruct.double() - base.double()).float()
    whole = delta(base.clone(), base, instruct.clone(), 1.0)
    small = exact.isfinite()  # with trained = base: instruct, but for the rounding of the difference
    assert bool(
        ((whole - instruct).abs()[small] <= exact.abs()[small] * 2.0**-23 + instruct.abs()[small] * 2.0**-23).all()
    )
    assert torch.equal(
        delta(trained.clone(), base, instruct.clone(), scale).nan_to_num(),
        (trained if scale == 0 else trained + scale * (instruct - base)).nan_to_num(),
    )


def test_chunks_threads_and_shards_change_nothing(models: Models, tmp_path: Path) -> None:
    whole, metrics = go(models, tmp_path / "whole")
    sharded = {}
    for role, path in models.items():
        sharded[role] = shutil.copytree(path, tmp_path / role, ignore=shutil.ignore_patterns("steps", "*.safetensors"))
        size = {"trained": "20KB", "base": "30KB", "instruct": "50KB"}[role]
        AutoModelForCausalLM.from_pretrained(path).save_pretrained(sharded[role], max_shard_size=size)
    out, again = go(sharded, tmp_path / "sharded")
    assert len(list(out.glob("*.safetensors"))) > 2
    merged = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in weights(whole).items())
    assert again == metrics  # not only to some digits

    def combine(parts: list[torch.Tensor]) -> torch.Tensor:
        return parts[0].add_(parts[2].sub_(parts[1]), alpha=1.0)

    (tmp_path / "chunks").mkdir()
    stream(read_models(models), combine, tmp_path / "chunks", None, piece=1000, threads=3)
    assert (tmp_path / "chunks" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_norms_against_float64(models: Models, tmp_path: Path) -> None:
    _, metrics = go(models, tmp_path)
    trained, base, instruct = (weights(models[role]) for role in ("trained", "base", "instruct"))
    flat = {
        "base": torch.cat([base[n].double().flatten() for n in base]),
        "instruct": torch.cat([instruct[n].double().flatten() for n in base]),
        "change": torch.cat([(trained[n].double() - base[n].double()).flatten() for n in base]),
        "delta": torch.cat([(instruct[n].double() - base[n].double()).flatten() for n in base]),
    }
    for name, x in flat.items():
        assert metrics[f"{name}_abs"] == pytest.approx(float(x.abs().mean()), rel=1e-6)
        assert metrics[f"{name}_square"] == pytest.approx(float(x.square().mean()), rel=1e-6)
    ratio = float(flat["delta"].abs().mean() / flat["base"].abs().mean())
    assert metrics["delta_over_base_abs"] == pytest.approx(ratio, rel=1e-6)
    assert metrics["parameters"] == flat["base"].numel()


def test_tokenizer_is_that_of_instruct_and_config_that_of_trained(models: Models, tmp_path: Path) -> None:
    instruct = shutil.copytree(models["instruct"], tmp_path / "i")
    (instruct / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (instruct / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    out, _ = go(models | {"instruct": instruct}, tmp_path)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (instruct / name).read_bytes()
    assert (out / "config.json").read_bytes() == (models["trained"] / "config.json").read_bytes()


def test_tensors_are_paired_by_name(models: Models, tmp_path: Path) -> None:
    """The same tensors in another order in the file."""
    base = shutil.copytree(models["base"], tmp_path / "b")
    from toolkit.checkpoints.tensors import chunks, read_folder, write_folder

    tensors = dict(reversed(list(read_folder(models["base"]).items())))
    write_folder(base, tensors, None, lambda name: chunks(tensors[name]))
    one, _ = go(models, tmp_path / "one")
    two, _ = go(models | {"base": base}, tmp_path / "two")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_what_does_not_fit_is_refused(small: Small, models: Models, tmp_path: Path) -> None:
    words = {"model_type": "olmo2", "max_position_embeddings": 64, **SIZES}
    wide = small.pretrain(tmp_path / "wide", architecture=words | {"intermediate_size": 96}, steps=1)
    message = r"tensor 'model.layers.0.mlp.down_proj.weight' has shape \(32, 64\) in trained and \(32, 96\) in base"
    with pytest.raises(ValueError, match=message):
        go(models | {"base": wide}, tmp_path / "a")
    deep = small.pretrain(tmp_path / "deep", architecture=words | {"num_hidden_layers": 3}, steps=1)
    with pytest.raises(
        ValueError, match="tensor 'model.layers.2.mlp.down_proj.weight' is in instruct and not in trained"
    ):
        go(models | {"instruct": deep}, tmp_path / "b")


def test_all_tied_models_merge(small: Small, tmp_path: Path) -> None:
    words = {"model_type": "llama", **SIZES, "tie_word_embeddings": True}
    base = small.pretrain(tmp_path / "base", architecture=words, steps=1, keep_steps=[0])
    models = {"trained": base, "base": base / "steps" / "0", "instruct": base}
    stored = shutil.copytree(base, tmp_path / "s", ignore=shutil.ignore_patterns("steps"))
    tensors = weights(base)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, stored / "model.safetensors")
    out, _ = go(models | {"trained": stored}, tmp_path / "m")
    assert "lm_head.weight" not in weights(out)
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_memory_is_some_chunks(tmp_path: Path) -> None:
    """Peak memory of a merge of 3 x 64 MB stays far below them (a fork, so that the peak is its own)."""
    import os
    import resource

    from toolkit.checkpoints.tensors import read_folder

    models = {}
    for role in ("trained", "base", "instruct"):
        (tmp_path / role).mkdir()
        save_file({"w": torch.ones(32, 1 << 20, dtype=torch.bfloat16)}, tmp_path / role / "model.safetensors")
        models[role] = read_folder(tmp_path / role)
    (tmp_path / "out").mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            stream(models, lambda parts: parts[0].add_(parts[2].sub_(parts[1])), tmp_path / "out", None)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            (tmp_path / "grown").write_text(str(grown))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert float((tmp_path / "grown").read_text()) < 96  # MB, of 192 read
