"""The vLLM engine: its real driver, with a stand-in for the package `vllm` that takes the same words (those of 0.33).

The stand-in knows the greedy answers of plain `generate`, and draws where it is told to sample; whatever vLLM's `LLM`
and `SamplingParams` do not know, it refuses. So the protocol, the reading of answers and every refusal are tested; vLLM
itself is not.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import generate
from slurm import profiles
from slurm.submissions import cells_of
from tests.toolkit.generation.tiny import Tiny, context
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.data.splits import open_split
from toolkit.failures import Failure, classify
from toolkit.generation.engine import Decoding
from toolkit.generation.models import load
from toolkit.generation.recipes import predict
from toolkit.generation.rows import Row
from toolkit.generation.vllm_engine import Driver, seed_of, settings
from toolkit.stage import Resources
from toolkit.study import Stage, Study

STAND_IN = """
import json, random
from pathlib import Path
from types import SimpleNamespace
__version__ = "0.33.0"
print("INFO: a banner on standard output")

class SamplingParams:
    def __init__(self, *, max_tokens, temperature, top_p, stop, stop_token_ids, seed):
        assert isinstance(stop, list) and isinstance(stop_token_ids, list) and 0 <= seed < 2**63
        self.__dict__.update(locals())

class LLM:
    def __init__(self, model, *, dtype, max_model_len, tensor_parallel_size, seed, generation_config):
        assert dtype in ("auto", "float32", "bfloat16", "float16") and generation_config == "vllm"
        if max_model_len == 13:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.known = json.loads((Path(__file__).parent / "known.json").read_text())

    def generate(self, prompts, sampling_params, *, use_tqdm):
        print("a word in between")
        return [self.one(p["prompt_token_ids"], how) for p, how in zip(prompts, sampling_params, strict=True)]

    def one(self, ids, how):
        draw = random.Random(how.seed)
        greedy = self.known["greedy"].get(",".join(map(str, ids)))
        new, text, reason = [], "", "length"
        while len(new) < how.max_tokens and reason == "length":
            new.append(draw.randrange(5, 300) if how.temperature else greedy[len(new)])
            text += self.known["pieces"][new[-1]]
            if new[-1] in how.stop_token_ids or any(s in text for s in how.stop):
                reason = "stop"
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=new, finish_reason=reason)])
"""


@pytest.fixture(scope="module")
def python(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that stands for the python of an environment with (the stand-in for) vLLM, which knows the greedy
    answers of plain `generate` to the prompts of this file."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "vllm.py").write_text(STAND_IN)
    model, tokenizer = load(tiny.model.path, "fp32", 1)
    greedy = {}
    for prompt in open_split(tiny.people.path, "heldout", ["prompt"], limit=8)["prompt"]:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        greedy[",".join(map(str, ids[0].tolist()))] = out.tolist()
    special = set(tokenizer.all_special_ids)
    pieces = ["" if i in special else tokenizer.decode([i]) for i in range(len(tokenizer))]
    (folder / "known.json").write_text(json.dumps({"greedy": greedy, "pieces": pieces}))
    start = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[-1], run_name='__main__')"
    (folder / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{start}" "{folder}" "$@"\n')
    (folder / "python").chmod(0o755)
    return str(folder / "python")


def go(tiny: Tiny, folder: Path, engine: str, resources: dict[str, Any], **fields: Any) -> bytes:
    words = {"recipe": "predict", "split": "heldout", "max_new_tokens": 12, "limit": 8, "engine": engine} | fields
    (folder / "out").mkdir(parents=True)
    inputs = predict.Inputs(model=tiny.model, data=tiny.people)
    generate.run(predict.Spec(**words), inputs, folder / "out", context(folder / "state", **resources))
    return (folder / "out" / "predictions.parquet").read_bytes()


def test_greedy_answers_are_those_of_the_other_engine(tiny: Tiny, tmp_path: Path, python: str) -> None:
    """End tokens, stop strings and what remains of them are read the same way; which vLLM it was is written down."""
    vllm = go(tiny, tmp_path / "vllm", "vllm", {"vllm": python, "processes": 2}, stop=("i",))
    assert vllm == go(tiny, tmp_path / "hf", "hf", {"vllm": python}, stop=("i",))
    assert json.loads((tmp_path / "vllm/out/engine.json").read_text()) == {"engine": "vllm", "vllm": "0.33.0"}
    assert not (tmp_path / "hf/out/engine.json").exists()


def test_a_sampled_row_has_a_seed_of_its_own(tiny: Tiny, tmp_path: Path, python: str) -> None:
    rows = [Row(id=i, tokens=(40, 41, 42)) for i in range(4)]
    how = Decoding(max_new_tokens=6, temperature=1.0, seed=3, ends=(0,))
    driver = _driver(tiny, tmp_path, python, how)
    together = driver.answer(rows)
    assert driver.answer(rows[2:3]) == together[2:3] and len({a.text for a in together}) > 1
    assert seed_of(3, 1) != seed_of(1, 3) and seed_of(3, 1) == seed_of(3, 1) < 2**56


def _driver(tiny: Tiny, folder: Path, python: str, how: Decoding, context: int = 128) -> Driver:
    words = settings(tiny.model.path, "fp32", context, how)
    return Driver(Resources(vllm=python), 0, words, load_tokenizer(tiny.model.path), how, folder)


def test_what_goes_wrong_there_is_told_here(tiny: Tiny, tmp_path: Path, python: str) -> None:
    how = Decoding(max_new_tokens=6, ends=(0,))
    with pytest.raises(RuntimeError, match="vLLM failed: RuntimeError: CUDA out of memory") as failed:
        _driver(tiny, tmp_path, python, how, context=13)
    assert classify(failed.value) is Failure.OOM
    driver = _driver(tiny, tmp_path, python, how)
    os.kill(driver._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="vLLM failed: it ended with code -9"):
        driver.answer([Row(id=0, tokens=(5,))])


def test_the_driver_ends_with_its_parent(tiny: Tiny, tmp_path: Path, python: str) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            driver = _driver(tiny, tmp_path, python, Decoding(max_new_tokens=6, ends=(0,)))
            (tmp_path / "pid").write_text(str(driver._process.pid))
        finally:  # also where it failed: a child that lives on would run the other tests
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    child, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{child}/stat").read_text().split(") ")[1][0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    pytest.fail("the driver outlived its parent")


def test_a_profile_says_where_it_is() -> None:
    profile = profiles.read(
        {
            "shapes": {"gpu": {"hours": 1, "gpus": 2}},
            "jobs": {"default": {"shape": "gpu", "vllm": "/envs/vllm/bin/python"}},
        }
    )
    study = Study(name="s", stages={"people": Stage(job="prepare", spec={"dataset": "bios", "people": 4})})
    (cell,) = cells_of(Path("unused"), study)
    assert profiles.fit(profile, cell, study).resources().vllm == "/envs/vllm/bin/python"


@pytest.mark.parametrize(
    "named, said",
    [
        (None, "nothing says where vLLM is installed: give the python"),
        ("/no/such/python", "/no/such/python, which is no program on this node"),
        (sys.executable, "there is no vLLM in its environment: No module named 'vllm'"),
    ],
)
def test_vllm_that_is_not_there(tiny: Tiny, tmp_path: Path, named: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        go(tiny, tmp_path, "vllm", {"vllm": named})
