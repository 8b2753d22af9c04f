"""Every scheme on a small model: what is stored, what is loaded, what it computes, how far off it is."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from jobs import quantize
from tests.toolkit.manifest.conftest import tiny_disk  # noqa: F401
from tests.toolkit.training.small import OLMO, packed, tokenizer
from toolkit.expand import choose
from toolkit.generation import models
from toolkit.lookup import names
from toolkit.quantization.integers import absmax, dequantize
from toolkit.quantization.layers import Both, Outliers, Weights
from toolkit.spec import build
from toolkit.stage import Artifact, Context

IDS = torch.arange(2, 26).reshape(2, 12)
WAYS: dict[str, dict[str, Any]] = {
    "half": {},
    "absmax": {"granularity": "vector", "activations": "dynamic"},
    "zero_point": {"granularity": "row", "activations": "dynamic"},
    "int4": {"group": 16, "symmetric": False},
    "llm_int8": {},
    "torchao": {"activations": "dynamic"},
    "bitsandbytes": {},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OLMo-2 with two layers and an input feature that is an outlier (some 8 in each token)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tokenizer(tmp_path_factory.mktemp("plain"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(**OLMO, vocab_size=280, pad_token_id=1, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.post_feedforward_layernorm.weight, 1.0, 0.3)
        layer.post_feedforward_layernorm.weight.data[3] = 8.0
    model.save_pretrained(folder)
    return folder


def run(
    plain: Path, folder: Path, scheme: str, data: Artifact | None = None, **fields: Any
) -> tuple[Path, dict[str, Any]]:
    """Quantize as a worker does; the folder and the metrics."""
    words = {"scheme": scheme, **fields}
    chosen = choose(quantize, words)
    given = {"model": Artifact(path=plain)} | ({"data": data} if data else {})
    out, state = folder / "out", folder / "state"
    out.mkdir(parents=True), state.mkdir()
    return out, quantize.run(build(chosen.Spec, words), chosen.Inputs(**given), out, Context(state=state))


def logits(folder: Path) -> torch.Tensor:
    model, _ = models.load(folder, "auto", 1)
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits.float()


def test_every_scheme_is_tried() -> None:
    assert set(WAYS) == set(names("toolkit.quantization.schemes"))


@pytest.mark.parametrize("scheme", WAYS)
def test_what_is_written_is_loaded_and_near(plain: Path, tmp_path: Path, scheme: str) -> None:
    out, metrics = run(plain, tmp_path, scheme, **WAYS[scheme])
    true = logits(plain)
    error = ((logits(out) - true).norm() / true.norm()).item()
    assert 0 < error < {"half": 0.02, "int4": 0.3}.get(scheme, 0.05)
    weights = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert metrics["bytes"] == weights < 0.8 * metrics["bytes_before"]
    assert metrics["bytes_before"] == (plain / "model.safetensors").stat().st_size
    rows = pq.read_table(out / "rows.parquet").to_pylist()
    by_layer = {row["task"]: row["value"] for row in rows if row["metric"] == "weight_error"}
    assert len(by_layer) >= 15 and by_layer["all"] == metrics["weight_error"]
    assert all(0 <= value < (0.15 if scheme == "int4" else 0.02) for value in by_layer.values())
    twice, again = run(plain, tmp_path / "again", scheme, **WAYS[scheme])
    assert again == metrics
    stored, anew = load_file(out / "model.safetensors"), load_file(twice / "model.safetensors")
    assert stored.keys() == anew.keys() and all(torch.equal(stored[name], anew[name]) for name in stored)


def test_what_is_stored_is_codes_and_scales(plain: Path, tmp_path: Path) -> None:
    out, _ = run(plain, tmp_path, "int4", group=16)
    before, after = load_file(plain / "model.safetensors"), load_file(out / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert after[name].dtype == torch.uint8 and after[name].numel() == before[name].numel() // 2
    assert after[f"{name}_scale"].shape == (32, 4, 1)
    same = [n for n in before if "_proj" not in n]
    assert len(same) > 5 and all(torch.equal(before[n], after[n]) for n in same)
    out, _ = run(plain, tmp_path / "8", "zero_point")
    after = load_file(out / "model.safetensors")
    assert {after[name + end].dtype for end in ("", "_zero")} == {torch.int8}
    model, _ = models.load(out, "auto", 1)
    layer = model.get_submodule(name.removesuffix(".weight"))
    assert isinstance(layer, Weights) and torch.nn.functional.mse_loss(layer.weight, before[name]) < 1e-6  # type: ignore[arg-type]


def test_tied_embeddings_stay_tied(plain: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(plain, tmp_path / "tied")
    config = AutoConfig.from_pretrained(plain, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    out, _ = run(folder, tmp_path, "int4", group=8)
    found, _ = models.load(out, "auto", 1)
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    assert ((logits(out) - logits(folder)).norm() / logits(folder).norm()).item() < 0.3


@pytest.mark.parametrize("scheme", ["absmax", "zero_point"])
def test_static_ranges_are_those_of_the_calibration_set(plain: Path, tmp_path: Path, scheme: str) -> None:
    data = packed(tmp_path / "data", rows=6, length=12)
    out, metrics = run(plain, tmp_path, scheme, data, activations="static", rows=4)
    assert 0 < metrics["activation_error"] < 0.1
    model, _ = models.load(plain, "auto", 1)
    seen: list[torch.Tensor] = []
    hook = model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    from toolkit.data.splits import open_split

    for row in open_split(data.path, "train", limit=4):
        model(torch.tensor([row["input_ids"]]))
    hook.remove()
    stored = load_file(out / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    assert stored[f"{name}.input_low"] == min(x.min() for x in seen)
    assert stored[f"{name}.input_high"] == max(x.max() for x in seen)
    assert ((logits(out) - logits(plain)).norm() / logits(plain).norm()).item() < 0.1
    layer = models.load(out, "auto", 1)[0].get_submodule(name)
    assert isinstance(layer, Both)
    beyond = layer.integers(torch.tensor([[1e6, -1e6, 0.0]])).codes
    assert beyond[0, 0] == 127 and beyond[0, 1] in (-127, -128)


def test_finer_granularity_is_nearer(plain: Path, tmp_path: Path) -> None:
    errors = [run(plain, tmp_path / g, "absmax", granularity=g)[1]["weight_error"] for g in ("tensor", "row")]
    errors += [run(plain, tmp_path / str(g), "int4", group=g)[1]["weight_error"] for g in (32, 8)]
    assert errors[0] > errors[1] and errors[2] > errors[3] > errors[1]


def outlier_case() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(16, 64, generator=generator), torch.randn(24, 64, generator=generator) / 8
    x[:, 5] *= 20
    x[3, 40] = -7.5
    return x.clamp(-60, 60), w


def test_outliers_are_split_off_and_the_rest_is_as_if_they_were_not_there() -> None:
    x, w = outlier_case()
    layer = Outliers(absmax(w, 1), None, 6.0)
    chosen = (x.abs() >= 6).any(0)
    assert 2 <= int(chosen.sum()) < 10 and bool(chosen[5]) and bool(chosen[40])
    floats = x[:, chosen] @ dequantize(absmax(w, 1))[:, chosen].t()
    rest = dequantize(absmax(x.masked_fill(chosen, 0), 1)) @ dequantize(absmax(w, 1)).t()
    torch.testing.assert_close(layer(x), floats + rest, rtol=1e-5, atol=1e-5)
    true = x @ w.t()
    without = Both(absmax(w, 1), None, affine=False, by_row=True)
    assert (layer(x) - true).norm() < 0.5 * (without(x) - true).norm()
    torch.testing.assert_close(Outliers(absmax(w, 1), None, 1e9)(x), without(x))


def test_the_reference_is_near_bitsandbytes() -> None:
    """It rounds activations to fp16 first, and leaves what is below the threshold in a feature with outliers in the row's
    maximum: outputs differ by less than 0.5 % in norm, and both by as much from the truth, within a tenth."""
    bnb = pytest.importorskip("bitsandbytes")
    x, w = outlier_case()
    theirs = bnb.nn.Linear8bitLt(64, 24, bias=False, has_fp16_weights=False, threshold=6.0)
    theirs.weight = bnb.nn.Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
    theirs = theirs.to("cpu").eval()
    with torch.inference_mode():
        found = theirs(x.half()).float()
    ours, true = Outliers(absmax(w, 1), None, 6.0)(x), x @ w.t()
    assert (ours - found).norm() / true.norm() < 0.005
    assert (ours - true).norm() == pytest.approx((found - true).norm().item(), rel=0.1)


def test_a_layer_with_a_bias_adds_it() -> None:
    x, w = outlier_case()
    bias = torch.arange(24.0)
    for make in (
        lambda b: Weights(absmax(w, 1), b, torch.float32),
        lambda b: Both(absmax(w, 1), b, affine=True, by_row=False),
        lambda b: Outliers(absmax(w, 1), b, 6.0),
    ):
        torch.testing.assert_close(make(bias)(x), make(None)(x) + bias)
        assert make(bias)(x.reshape(4, 4, 64)).shape == (4, 4, 24)


@pytest.mark.parametrize(
    ("scheme", "fields", "message"),
    [
        ("absmax", {"granularity": "vector"}, "set activations to dynamic, or granularity to row"),
        ("absmax", {"rows": 3}, "are of calibration, for activations: static; they are none"),
        ("zero_point", {"activations": "static", "rows": 0}, "calibration needs at least one"),
        ("zero_point", {"activations": "static"}, "activations are static, and the input data.* is not there"),
        ("int4", {"group": 3}, "it must be even"),
        ("int4", {"group": 48}, "64 inputs, which are no multiple of group 48"),
        ("llm_int8", {"threshold": 0}, "it must be above 0"),
        ("bitsandbytes", {"threshold": -1.0}, "it must be above 0"),
        ("gptq", {}, "unknown scheme 'gptq'"),
    ],
)
def test_what_means_nothing_is_refused(plain: Path, tmp_path: Path, scheme: str, fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(plain, tmp_path, scheme, **fields)


def test_a_quantized_model_is_not_taken_for_a_plain_one(plain: Path, tmp_path: Path) -> None:
    out, _ = run(plain, tmp_path, "absmax")
    with pytest.raises(ValueError, match="unexpected .*weight_scale"):
        run(out, tmp_path / "again", "int4", group=16)
    (out / "quantization.json").write_text(json.dumps({"kind": "weights"}))
    tensors = load_file(out / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight_scale"]
    from safetensors.torch import save_file

    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match="lacks the codes or the scale of layer 'model.layers.0.mlp.up_proj'"):
        models.load(out, "auto", 1)


@pytest.mark.parametrize("scheme", ["int4", "half"])
def test_a_full_disk_is_an_error_and_no_model(plain: Path, tiny_disk: Path, scheme: str) -> None:  # noqa: F811
    """The worker commits what `run` filled only if it returned; here it does not."""
    (tiny_disk / "filler").write_bytes(b"x" * (shutil.disk_usage(tiny_disk).free - 60_000))
    with pytest.raises(OSError, match="No space left"):
        run(plain, tiny_disk, scheme, **({"group": 16} if scheme == "int4" else {}))
    assert not (tiny_disk / "out" / "rows.parquet").exists()


def test_killed_in_the_middle_it_is_made_whole_by_the_next(plain: Path, tmp_path: Path) -> None:
    """What a dead attempt left in its `out` is never committed; the next one has another `out` and the same state."""
    whole, metrics = run(plain, tmp_path / "whole", "int4", group=16)

    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from tests.toolkit.quantization.test_schemes import run\n"
        "def hook(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('quantization.json'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), 'int4', group=16)\n"
    )
    words = [sys.executable, "-c", code, str(plain), str(tmp_path / "killed")]
    done = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "killed/out/model.safetensors").exists(), done.stderr
    assert not (tmp_path / "killed/out/quantization.json").exists()
    shutil.rmtree(tmp_path / "killed/out")
    shutil.rmtree(tmp_path / "killed/state")
    out, again = run(plain, tmp_path / "killed", "int4", group=16)
    assert again == metrics and (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
