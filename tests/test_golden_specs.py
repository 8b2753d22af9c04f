"""A default may not change under a fingerprint that leaves it out: every Spec's fields, types and defaults are on file.

python -m tests.test_golden_specs      writes the file anew, and refuses a changed default without a new VERSION
"""

import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import jobs
from slurm.submissions import cells_of
from tests.test_house import STAGES
from toolkit.expand import choose
from toolkit.fingerprint import canonical, spec_fields
from toolkit.provenance import HOME
from toolkit.spec import build, defaults, field_types, type_name
from toolkit.study_file import load

FILE = Path(__file__).with_name("golden_specs.json")
UPDATE = "python -m tests.test_golden_specs"
Golden = dict[str, dict[str, Any]]


def describe() -> Golden:
    """`train.sft` -> VERSION and fields: name -> `type` or `type = default`."""
    found: Golden = {}
    for name, (job, chosen) in STAGES.items():
        unset = {field: f" = {json.dumps(canonical(value))}" for field, value in defaults(chosen.Spec).items()}
        fields = {field: _type(hint) + unset.get(field, "") for field, hint in field_types(chosen.Spec).items()}
        found[name] = {"version": job.VERSION, "fields": fields}
    return found


def _type(hint: Any) -> str:
    """Python 3.14 writes unions in another way than its elders."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return " | ".join(map(_type, typing.get_args(hint))) if union else type_name(hint).replace("NoneType", "None")


def changed_defaults(before: Golden, now: Golden) -> list[str]:
    """Defaults that are not what they were, in jobs whose VERSION is: artifacts would be taken for what they are not."""
    found = []
    for name in before.keys() & now.keys():
        if now[name]["version"] == before[name]["version"]:
            for field in before[name]["fields"].keys() & now[name]["fields"].keys():
                was, is_ = (side[name]["fields"][field].partition(" = ")[2] or "none" for side in (before, now))
                if was != is_:
                    found.append(f"{name}.{field}: {was} -> {is_}")
    return sorted(found)


def test_specs_are_as_on_file() -> None:
    before, now = json.loads(FILE.read_text()), describe()
    changed = changed_defaults(before, now)
    assert not changed, f"a changed default needs a new VERSION of its job: {', '.join(changed)}; then {UPDATE}"
    other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    assert not other, f"these specs are not as on file: {', '.join(other)}; if that is meant, update with {UPDATE}"


def test_spelling_defaults_out_changes_no_fingerprint() -> None:
    for cell in cells_of(Path("unused"), load(HOME / "configs" / "studies" / "quickstart.yaml")):
        spec = choose(jobs.load(cell.job), cell.spec).Spec
        whole = build(spec, {**{name: canonical(value) for name, value in defaults(spec).items()}, **cell.spec})
        assert spec_fields(whole) == cell.spec, f"{cell.name}: its defaults, spelled out, make another cell of it"


def test_a_changed_default_is_found_unless_the_version_says_so() -> None:
    def job(version: int, **fields: str) -> Golden:
        return {"train.x": {"version": version, "fields": fields}}

    before = job(1, lr="float", epochs="int = 1")
    assert changed_defaults(before, job(1, lr="float", epochs="int = 2")) == ["train.x.epochs: 1 -> 2"]
    assert changed_defaults(before, job(1, lr="float = 0.1", epochs="int = 1")) == ["train.x.lr: none -> 0.1"]
    assert changed_defaults(before, job(2, lr="float", epochs="int = 2")) == []
    assert changed_defaults(before, job(1, lr="float", epochs="int = 1", new="int = 0")) == []


if __name__ == "__main__":
    specs = describe()
    wrong = changed_defaults(json.loads(FILE.read_text()), specs) if FILE.exists() else []
    if wrong:
        sys.exit(f"a changed default needs a new VERSION of its job: {', '.join(wrong)}")
    FILE.write_text(json.dumps(specs, indent=1, sort_keys=True) + "\n")
