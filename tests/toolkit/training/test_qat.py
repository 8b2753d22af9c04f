"""Quantization-aware training: the grid by hand, what it is worth after rounding, kills, and what is refused."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toolkit.training.small import Small, context, dataset, losses, run, weights
from tests.toolkit.training.test_resume import Deadly, again, same
from tests.toolkit.training.test_sft import by_hand
from toolkit.spec import build
from toolkit.stage import Artifact, Context
from toolkit.training.methods import qat


def trained(small: Small, folder: Path, data: Artifact, ctx: Context | None = None, **more: Any) -> Path:
    fields = {"method": "qat", "global_batch": 4, "lr": 1e-3, "max_length": 64} | more
    fields |= {} if "epochs" in more else {"steps": 4}
    return run(build(qat.Spec, fields), qat.Inputs(model=small.model, data=data), folder, ctx)


def rounded(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Symmetric groups: the scale maps the largest size onto half of the range, where it lies between two steps; so in
    fp32 and by the same operations, or it would be a matter of luck which of them it is rounded to."""
    cut = weight.view(weight.shape[0], -1, group or weight.shape[1])
    scale = cut.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
    steps = (cut * (1 / scale)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (steps * scale).view_as(weight)


@pytest.mark.parametrize(("bits", "group"), [(2, 16), (4, 32), (8, 0)])
def test_the_first_loss_is_of_rounded_weights(small: Small, tmp_path: Path, bits: int, group: int) -> None:
    """Rounded by hand here, in the plain model; embeddings, norms and the output head are not."""
    out = trained(small, tmp_path, small.pairs, global_batch=20, steps=1, bits=bits, group=group)
    model, tok = AutoModelForCausalLM.from_pretrained(small.model.path), AutoTokenizer.from_pretrained(small.model.path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj" in name:
                parameter.copy_(rounded(parameter, bits, group))
    from datasets import load_from_disk

    rows = load_from_disk(str(small.pairs.path / "data"))["train"]
    assert losses(out)[0] == pytest.approx(by_hand(model, tok, rows["prompt"], rows["completion"]), abs=3e-5)


def test_trained_so_it_is_better_once_it_is_rounded(small: Small, tmp_path: Path) -> None:
    """At two bits, against the same training without rounding; both are rounded afterwards by torchao's own scheme."""
    from torchao.quantization import quantize_

    prompts = [f"Where was Anna {n} born?" for n in range(16)]
    answers = [" Berlin, in Rome", " Rome, in Oslo", " Oslo, not in Rome", " Berlin"] * 4
    data = dataset(tmp_path / "d", {"prompt": prompts, "completion": answers})
    fields = {"epochs": 80, "lr": 5e-3, "global_batch": 16}
    aware = trained(small, tmp_path / "aware", data, bits=2, group=16, **fields)
    plain = small.tune(tmp_path / "plain", inputs={"data": data}, **fields)
    spec = qat.Spec(method="qat", global_batch=1, lr=1, steps=1, bits=2, group=16)
    found = []
    for folder in (aware, plain):
        model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        quantize_(model, qat.scheme(spec), filter_fn=qat.linear(model))
        with torch.no_grad():
            found.append(by_hand(model, tok, prompts, answers))
    assert found[0] == pytest.approx(losses(aware)[-1], abs=0.05)  # what training saw is what use sees
    assert losses(plain)[-1] < found[0] < found[1]  # rounding costs something, and less so


@pytest.mark.parametrize(
    ("words", "scheme"),
    [
        ({"bits": 8, "group": 0}, {"scheme": "torchao"}),
        ({"bits": 4, "group": 32}, {"scheme": "int4", "group": 32, "full_range": True}),
        ({"bits": 2, "group": 16}, {"scheme": "int4", "group": 16, "full_range": True, "bits": 2}),
    ],
    ids=["w8", "w4", "w2"],
)
def test_a_scheme_rounds_as_training_did(
    small: Small, tmp_path: Path, words: dict[str, Any], scheme: dict[str, Any]
) -> None:
    """The model that `job: quantize` makes of a trained one computes what the model in training computed."""
    from jobs import quantize
    from toolkit import lookup
    from toolkit.generation import models

    out = trained(small, tmp_path / "t", small.pairs, **words)
    aware = qat.prepared(
        qat.Spec(method="qat", global_batch=1, lr=1, steps=1, **words), AutoModelForCausalLM.from_pretrained(out)
    )
    kind = lookup.find(quantize.CHOICE.package, scheme["scheme"], "scheme")
    (tmp_path / "q").mkdir()
    kind.run(build(kind.Spec, scheme), kind.Inputs(model=Artifact(path=out)), tmp_path / "q", context(tmp_path / "c"))
    made, _ = models.load(tmp_path / "q", "fp32", 1)
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        torch.testing.assert_close(made(ids).logits, aware(ids).logits, rtol=0, atol=1e-5)


def test_activations_are_rounded_and_the_head_is_not(small: Small, tmp_path: Path) -> None:
    spec = qat.Spec(method="qat", global_batch=1, lr=1, steps=1, activations="int8", group=16)
    model = qat.prepared(spec, AutoModelForCausalLM.from_pretrained(small.model.path))
    layers = {name: type(m).__name__ for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert layers.pop("lm_head") == "Linear" and set(layers.values()) == {"FakeQuantizedLinear"}
    assert model.model.layers[0].mlp.up_proj.activation_fake_quantizer is not None
    out = trained(small, tmp_path, small.pairs, activations="int8")
    assert weights(out).keys() == weights(small.model.path).keys()
    assert {t.dtype for t in weights(out).values()} == {torch.float32}


def test_killed_it_ends_with_the_same_bytes(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    fields = {"steps": 6, "keep_steps": [3]}
    whole = trained(small, tmp_path / "whole", small.pairs, **fields)
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")
    folder = tmp_path / "killed"
    pid = os.fork()
    if pid == 0:
        try:
            trained(small, folder, small.pairs, Deadly(state=context(folder).state, step=4), **fields)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    same(whole, trained(small, again(folder), small.pairs, **fields))


def test_two_ranks_compute_what_one_process_computes(small: Small, tmp_path: Path) -> None:
    """Within what a weight on the edge of a step of the grid does when it is rounded the other way."""
    one = trained(small, tmp_path / "one", small.pairs, bits=8)
    two = trained(small, tmp_path / "two", small.pairs, context(tmp_path / "two", processes=2, zero=2), bits=8)
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 9}, "unknown value of 'bits' 9"),
        ({"group": 24}, "group is 24 and the rows of .* have 32 weights: it must divide them"),
        ({"group": -1}, "group is -1"),
        ({"lr": 0}, "lr is 0.0"),
    ],
)
def test_refused(small: Small, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(small, tmp_path, small.pairs, **fields)
