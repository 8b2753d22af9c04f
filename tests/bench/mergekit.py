"""Merged weights beside those of mergekit, element by element.

    python -m tests.bench.mergekit PYTHON

PYTHON: of an environment with mergekit (pip install mergekit==0.1.5). Three models of 5 M parameters (bf16, random weights)
are merged by both, in float32 and into float32. Of the methods that both have, DARE is left out: elements are dropped at
random, and mergekit scales the others to the L1 norm that there was, where the paper divides by the density.
"""

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

from tests.bench.merging import MERGEKIT, ROLES, SMALL, make
from toolkit import lookup
from toolkit.merging.methods.breadcrumbs import between
from toolkit.merging.methods.ties import kept
from toolkit.spec import build
from toolkit.stage import Artifact, Context, Resources

BOTH = {"base": "base", "first": "instruct", "second": "trained"}
TWO = {"first": "instruct", "second": "trained"}
ONES = {"instruct": {"weight": 1.0}, "trained": {"weight": 1.0}}
WEIGHTED = {"instruct": {"weight": 0.7}, "trained": {"weight": 0.4}}


def ways() -> Iterator[tuple[dict[str, Any], dict[str, str], dict[str, Any]]]:
    """(our spec, our inputs, mergekit's recipe); a role stands for the folder of its model."""

    def recipe(method: str, models: dict[str, dict[str, float]], **rest: Any) -> dict[str, Any]:
        return {"merge_method": method, "models": [{"model": m, "parameters": p} for m, p in models.items()], **rest}

    def each(**parameters: float) -> dict[str, dict[str, float]]:
        return {role: weight | parameters for role, weight in ONES.items()}

    base = {"base_model": "base"}
    yield {"method": "delta"}, {role: role for role in ROLES}, recipe("task_arithmetic", ONES, **base)
    for scale in (1.0, 0.6):
        spec = {"method": "task_arithmetic", "weights": [0.7, 0.4], "scale": scale}
        yield spec, BOTH, recipe("task_arithmetic", WEIGHTED, **base, parameters={"lambda": scale})
    yield {"method": "linear", "weights": [0.7, 0.4]}, TWO, recipe("linear", WEIGHTED)
    yield {"method": "slerp", "share": 0.3}, TWO, recipe(
        "slerp", {"trained": {}}, base_model="instruct", parameters={"t": 0.3}
    )
    yield {"method": "ties", "density": 0.5}, BOTH, recipe("ties", each(density=0.5), **base)
    crumbs = {"method": "breadcrumbs", "density": 0.8, "outliers": 0.01}
    yield crumbs, BOTH, recipe("breadcrumbs", each(density=0.8, gamma=0.01), **base)


def ours(folder: Path, spec: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    """Tensors that our method writes."""
    out = folder / "ours"
    out.mkdir()
    method = lookup.find("toolkit.merging.methods", spec["method"], "method")
    given = method.Inputs(**{role: Artifact(path=folder / model) for role, model in inputs.items()})
    method.run(
        build(method.Spec, {**spec, "dtype": "fp32"}), given, out, Context(state=out, resources=Resources(threads=2))
    )
    return loaded(out)


def loaded(folder: Path) -> dict[str, Any]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def theirs(folder: Path, recipe: dict[str, Any], python: str) -> dict[str, Any]:
    """Tensors that mergekit writes."""
    models = [{**entry, "model": str(folder / entry["model"])} for entry in recipe["models"]]
    words = recipe | {"models": models, "dtype": "float32", "out_dtype": "float32"}
    if "base_model" in words:
        words["base_model"] = str(folder / words["base_model"])
    (folder / "recipe.yaml").write_text(yaml.safe_dump(words))
    subprocess.run([python, "-c", MERGEKIT, folder / "recipe.yaml", folder / "theirs"], check=True, capture_output=True)
    return loaded(folder / "theirs")


def at_threshold(folder: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Whether an element has a delta that equals a threshold of its tensor: which of these are kept is a choice."""
    import torch

    base, *models = (loaded(folder / role) for role in ("base", "instruct", "trained"))
    found = {name: torch.zeros(start.shape, dtype=torch.bool) for name, start in base.items()}
    for model in models:
        for name, start in base.items():
            sizes = (model[name].float() - start.float()).abs()
            for rank in thresholds(spec, start.numel()):
                found[name] |= sizes == sizes.flatten().kthvalue(rank + 1).values
    return found


def thresholds(spec: dict[str, Any], elements: int) -> list[int]:
    """Ranks (from 0, the least) of the |delta| at which a method cuts."""
    if spec["method"] == "ties":
        return [elements - kept(elements, spec["density"])]
    return between(elements, spec["density"], spec["outliers"]) if spec["method"] == "breadcrumbs" else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", help="of an environment with mergekit")
    options = parser.parse_args()
    print("| method | parameters | equal elements | largest difference | where no delta is at a threshold |")
    print("| --- | --- | --- | --- | --- |")
    for spec, inputs, recipe in ways():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, SMALL)
            mine, other = ours(folder, spec, inputs), theirs(folder, recipe, options.python)
            excused = at_threshold(folder, spec)
        assert mine.keys() == other.keys(), mine.keys() ^ other.keys()
        equal = sum(int((x == other[name]).sum()) for name, x in mine.items())
        apart = {name: (x - other[name]).abs() for name, x in mine.items()}
        largest = max(float(x.max()) for x in apart.values())
        elsewhere = max(float(x[~excused[name]].max()) for name, x in apart.items())
        parameters = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "method")
        total = sum(x.numel() for x in mine.values())
        print(
            f"| `{spec['method']}` | {parameters} | {equal:,} of {total:,} | {largest:.2g} | {elsewhere:.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
