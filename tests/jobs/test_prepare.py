"""The prepare job at its borders: what it writes, where it does not write, what planning may import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import prepare
from toolkit.expand import choose
from toolkit.lookup import names
from toolkit.spec import FieldError, build
from toolkit.stage import Context

ROOT = Path(__file__).parents[2]

PIPELINE = """
import json, sys
from pathlib import Path
from jobs import prepare, tokenizer
from toolkit.data.datasets import bios, packed
from toolkit.stage import Artifact, Context

root = Path(sys.argv[1])
for name in ("people", "tokenizer", "tokens", "state"):
    (root / name).mkdir(parents=True)
ctx = Context(state=root / "state")
people, trained = Artifact(path=root / "people"), Artifact(path=root / "tokenizer")
prepare.run(bios.Spec(dataset="bios", people=50), bios.Inputs(), people.path, ctx)
tokenizer.run(tokenizer.Spec(split="pretrain", vocab_size=400), tokenizer.Inputs(data=people), trained.path, ctx)
spec = packed.Spec(dataset="packed", split="pretrain", sequence_length=16, shuffle_seed=0)
print(json.dumps(prepare.run(spec, packed.Inputs(data=people, tokenizer=trained), root / "tokens", ctx)))
"""


def python(code, *args, **env):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_write_the_same_bytes_quietly_and_nothing_outside(tmp_path):
    """The caches of the libraries stay empty: home, HF_HOME's default in it, and the temporary folder."""
    home, scratch = tmp_path / "home", tmp_path / "tmp"
    found = []
    for run, seed in enumerate(("1", "2")):
        home.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        env = {"HOME": str(home), "TMPDIR": str(scratch), "PATH": os.environ["PATH"], "PYTHONHASHSEED": seed,
               "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true" if run else "false",
               "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
        done = python(PIPELINE, tmp_path / f"run{run}", **env)
        metrics = json.loads(done.stdout)
        assert metrics["rows_train"] == metrics["tokens"] // 16 > 10
        assert "%|" not in done.stderr  # no progress bars in logs
        written = [p for folder in (home, scratch) for p in folder.rglob("*") if p.is_file()]
        assert not written
        files = [p for p in (tmp_path / f"run{run}").rglob("*") if p.is_file() and "state/" not in str(p)]
        found.append({str(p.relative_to(tmp_path / f"run{run}")): p.read_bytes() for p in files})
    assert found[0] == found[1] and "tokens/data/train/data-00000.arrow" in found[0]


def test_planning_imports_nothing_heavy():
    code = (
        "import sys; from toolkit.lookup import find, names\n"
        "from jobs import prepare, tokenizer\n"
        "for name in names(prepare.CHOICE.package): find(prepare.CHOICE.package, name, 'dataset')\n"
        "from toolkit.data.datasets.bios import Spec; Spec(dataset='bios', people=10)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pyarrow', 'pandas', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    python(code, **os.environ)


def test_every_data_set_has_the_three_parts():
    for name in names(prepare.CHOICE.package):
        module = choose(prepare, {"dataset": name})
        assert callable(module.fill) and module.Spec.__doc__ and module.Inputs.__doc__


def test_an_unknown_data_set_gets_the_nearest_spelling():
    files = sorted(path.stem for path in (ROOT / "toolkit/data/datasets").glob("[!_]*.py"))
    with pytest.raises(FieldError) as error:
        choose(prepare, {"dataset": "boss"})
    assert str(error.value) == f"unknown dataset 'boss'; did you mean 'bios'? valid: {', '.join(files)}"


def test_progress_reaches_the_end(tmp_path):
    module = choose(prepare, {"dataset": "bios"})
    (tmp_path / "out").mkdir()
    spec = build(module.Spec, {"dataset": "bios", "people": 30, "biographies": 2})
    metrics = prepare.run(spec, module.Inputs(), tmp_path / "out", Context(state=tmp_path))
    assert metrics["rows_pretrain"] == 60 and metrics["rows_train"] == metrics["rows_heldout"] == 90
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["step"], progress["total"], progress["unit"]) == (60, 60, "document")
