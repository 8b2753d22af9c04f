"""The job `train` as the worker sees it: methods by name, specs from plain values, light to import."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import train
from tests.toolkit.training.small import Small, context, dataset
from tests.toolkit.training.small import small as build
from toolkit import lookup
from toolkit.fingerprint import spec_fields
from toolkit.spec import build as make
from toolkit.stage import Artifact


@pytest.fixture(scope="module")
def small() -> Small:
    return build()


def test_methods_by_name() -> None:
    assert {"pretrain", "sft"} <= set(lookup.names(train.CHOICE.package))
    with pytest.raises(ValueError, match="unknown method 'pretrian'; did you mean 'pretrain'"):
        lookup.find(train.CHOICE.package, "pretrian", "method")


def test_metrics_name_no_time_and_are_the_same_twice(small: Small, tmp_path: Path) -> None:
    method = lookup.find(train.CHOICE.package, "sft", "method")
    spec = make(method.Spec, {"method": "sft", "epochs": 1, "global_batch": 4, "lr": "1e-4"})
    assert spec_fields(spec) == {"method": "sft", "epochs": 1.0, "global_batch": 4, "lr": 1e-4}
    found = []
    for number in (1, 2):
        out = tmp_path / str(number) / "out"
        out.mkdir(parents=True)
        inputs = method.Inputs(model=small.model, data=small.pairs)
        found.append(train.run(spec, inputs, out, context(tmp_path / str(number))))
    assert found[0] == found[1]
    assert found[0]["steps"] == 5 and found[0]["rows"] == 20 and found[0]["dropped"] == 0


def test_study_on_real_instructions(small: Small, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / ".." / "shared" / "data" / "instructions_rasbt.json"
    if not path.is_file():
        pytest.skip("no instruction data beside this checkout")
    import json

    entries = json.loads(path.read_text())[:40]
    prompts = [f"{entry['instruction']}\n{entry['input']}\n" for entry in entries]
    data = dataset(tmp_path / "d", {"prompt": prompts, "completion": [entry["output"] for entry in entries]})
    source = small.pretrain(
        tmp_path / "p", architecture={"model_type": "llama", "max_position_embeddings": 256, **SIZES}
    )
    out = small.tune(
        tmp_path / "t", inputs={"model": Artifact(path=source), "data": data}, max_length=256, packing=True
    )
    assert (out / "model.safetensors").is_file()


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_planning_imports_nothing_heavy() -> None:
    """`tidemark plan` builds the specs of every cell on a login node."""
    code = (
        "import sys; from jobs import convert, merge, train; from toolkit.training.methods import pretrain, sft;"
        "from toolkit.merging.methods import delta;"
        "pretrain.Spec(method='pretrain', steps=1, global_batch=1, lr=1e-3); sft.Spec(method='sft', steps=1, global_batch=1, lr=1e-3);"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'numpy', 'trl', 'tokenizers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
