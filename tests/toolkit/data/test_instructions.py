"""Instruction rows in their three forms: rendering, splits, and what is said about a row that fits none."""

import json

import pytest
from datasets import load_from_disk

from tests.toolkit.data.conftest import SHARED, content
from toolkit.data.datasets.instructions import Spec

TRIPLES = [
    {"instruction": f"Add one to {i}.", "input": f"{i}" if i % 2 else "", "output": f"{i + 1}"} for i in range(50)
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return {"files": path}


def load(artifact):
    return load_from_disk(str(artifact.path / "data"))


@pytest.fixture
def triples(tmp_path):
    real = SHARED / "instructions_rasbt.json"
    rows = json.loads(real.read_text()) if real.is_file() else TRIPLES
    (tmp_path / "triples.json").write_text(json.dumps(rows))
    return tmp_path / "triples.json", rows


@pytest.mark.parametrize("template", ["alpaca", "plain"])
def test_every_triple_is_in_one_split_whole(make, triples, template):
    path, rows = triples
    data = load(make("instructions", {"files": path}, template=template, validation_fraction=0.1))
    count = len(rows)
    assert {name: len(rows) for name, rows in data.items()} == {
        "train": count - 2 * round(count * 0.1), "validation": round(count * 0.1), "heldout": round(count * 0.1),
    }  # fmt: skip
    found = [row for split in data.values() for row in split]
    assert sorted(row["gold"] for row in found) == sorted(row["output"].strip() for row in rows)
    by_gold = {row["output"].strip(): row for row in rows}
    for row in found:
        source = by_gold[row["gold"]]
        assert source["instruction"] in row["prompt"] or len(by_gold) < len(rows)
        assert source["input"] in row["prompt"] or len(by_gold) < len(rows)
        assert row["completion"].strip() == row["gold"] and not row["prompt"].endswith(" ")


def test_the_templates_to_the_letter(make, tmp_path):
    rows = [{"instruction": "Say it.", "input": "It", "output": "It."}, {"instruction": "Stop.", "output": "Ok "}]
    inputs = write(tmp_path / "rows.jsonl", rows)
    plain = load(make("instructions", inputs, template="plain", heldout_fraction=0.0))["train"]
    assert plain["prompt"][:] == ["Say it.\n\nIt\n\nAnswer:", "Stop.\n\nAnswer:"]
    assert plain["completion"][:] == [" It.", " Ok "] and plain["gold"][:] == ["It.", "Ok"]
    alpaca = load(make("instructions", inputs, heldout_fraction=0.0))["train"]
    assert alpaca["prompt"][0].endswith("\n\n### Instruction:\nSay it.\n\n### Input:\nIt\n\n### Response:\n")
    assert "### Input" not in alpaca["prompt"][1] and alpaca["completion"][0] == "It."


def test_pairs_are_taken_as_they_are_and_conversations_end_with_the_assistant(make, tmp_path):
    talk = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    rows = [
        {"prompt": "a ->", "completion": " b", "source": "x"},
        {"messages": [{"role": role, "content": text} for role, text in talk], "source": "y"},
    ]
    inputs = write(tmp_path / "rows.jsonl", rows)
    found = load(make("instructions", inputs, heldout_fraction=0.0, keep=["source"]))["train"]
    assert found[0] == {"prompt": "a ->", "completion": " b", "gold": "b", "source": "x"}
    prompt = "System: Be brief.\nUser: Hi\nAssistant: Hello\nUser: Bye\nAssistant:"
    assert found[1] == {"prompt": prompt, "completion": " Ciao", "gold": "Ciao", "source": "y"}


def test_other_fields_are_dropped_and_same_seed_gives_same_bytes(make, tmp_path):
    inputs = write(tmp_path / "rows.jsonl", [{**row, "id": i} for i, row in enumerate(TRIPLES)])
    first, again, other = (make("instructions", inputs, seed=seed) for seed in (0, 0, 1))
    assert content(first) == content(again)
    assert load(first)["train"].column_names == ["prompt", "completion", "gold"]
    assert load(first)["heldout"]["prompt"][:] != load(other)["heldout"]["prompt"][:]


def test_empty_answers_are_refused_or_counted(make, tmp_path):
    inputs = write(tmp_path / "rows.jsonl", [*TRIPLES[:9], {"instruction": "x", "output": "  "}])
    with pytest.raises(ValueError, match=r"rows\.jsonl:10: the answer is empty.*drop_empty: true"):
        make("instructions", inputs)
    metrics = make("instructions", inputs, drop_empty=True).record["metrics"]
    assert metrics == {"rows_read": 10, "rows_dropped": 1, "spaces_moved": 0, "rows_train": 8, "rows_heldout": 1}


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        ({"question": "x"}, {}, r":1: a row has 'instruction' and 'output'.*this one has 'question'"),
        ({"instruction": "x"}, {}, r":1: no field 'output'"),
        ({"instruction": "x", "output": 1}, {}, r":1: field 'output' must be a string"),
        ({"prompt": "x"}, {}, r":1: no field 'completion'"),
        ({"messages": []}, {}, r":1: 'messages' must be a list"),
        ({"messages": [{"role": "user", "content": "x"}]}, {}, r"last message must be the assistant's, not the user's"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, {}, r"did you mean 'assistant'"),
        ({"prompt": "x", "completion": "y"}, {"keep": ["tsk"]}, r":1: keep: unknown field 'tsk'"),
        ({"prompt": "x", "completion": "y"}, {}, r"gives 1 rows, too few for the splits train, heldout"),
    ],
)
def test_bad_rows_are_named(make, tmp_path, row, values, message):
    with pytest.raises(ValueError, match=message):
        make("instructions", write(tmp_path / "rows.jsonl", [row]), **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heldout_fraction": -0.1}, "heldout_fraction is -0.1"),
        ({"heldout_fraction": 0.5, "validation_fraction": 0.5}, "leave no rows"),
        ({"keep": ("gold",)}, "'gold' is a column that is there already"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Spec(**{"dataset": "instructions", **values})
