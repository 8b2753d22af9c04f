"""Magpie against the published code's behaviour on fixed model outputs, case by case.

Read in magpie-align/magpie: exp/gen_ins.py, exp/unitag.py (process_batch, process_engine_responses), exp/gen_dis.py,
configs/model_configs.json and data_sft/data_filter.ipynb. What each case gives there is written here as it came out.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.toolkit.generation.tiny import Tiny, context, save
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.data.datasets import magpie as selection
from toolkit.data.splits import Splits, open_split
from toolkit.generation.judging import QUALITIES, TASKS, ask, parse
from toolkit.generation.near import gram_vectors, mean_vectors, neighbours
from toolkit.generation.prequery import FAMILIES, pre_query, special_ids
from toolkit.generation.recipes import magpie
from toolkit.generation.recipes import neighbours as near_recipe
from toolkit.generation.recipes import rewards, tags
from toolkit.stage import Artifact

GOOD = '\n"explanation": "Clear.",\n"input_quality": "good"\n}'
JUDGED = {
    "quality": ("quality", GOOD, {"quality_explanation": "Clear.", "input_quality": "good"}),
    "words after the last brace": ("quality", GOOD + " I hope", {"input_quality": "good"}),
    "cut before the brace": ("quality", GOOD[:-1], {"input_quality": None, "quality_explanation": None}),
    "a field is missing": ("quality", '"input_quality": "good"}', {"input_quality": None}),
    "no JSON": ("quality", "The query is good.}", {"input_quality": None}),
    "a brace of its own": ("quality", "{" + GOOD, {"input_quality": None}),  # the opening one was given already
    "not of the scale": (
        "quality",
        GOOD.replace("good", "fine"),
        {"input_quality": "fine"},
    ),  # kept; no filter takes it
    "empty": ("quality", "", {"input_quality": None}),
    "difficulty": (
        "difficulty",
        '"intent": "a", "knowledge": "b", "difficulty": "hard"}',
        {"intent": "a", "knowledge": "b", "difficulty": "hard"},
    ),
    "category": (
        "category",
        '"primary_tag": "Math", "other_tags": ["Reasoning"]}',
        {"task_category": "Math", "other_task_category": ["Reasoning"]},
    ),
    # The published code keeps any JSON here; a column has one type.
    "a value of another type": ("category", '"primary_tag": 1, "other_tags": "Math"}', {"task_category": None}),
}


@pytest.mark.parametrize("tag, output, expected", JUDGED.values(), ids=JUDGED)
def test_how_a_judge_is_read(tag: str, output: str, expected: dict[str, Any]) -> None:
    found = parse(tag, output)
    assert {name: found[name] for name in expected} == expected


def test_a_judge_is_shown_the_scale_and_the_form() -> None:
    question = ask("quality", "Why {braces}?")
    assert all(word in question for word in QUALITIES) and "Why {braces}?" in question and '"input_quality"' in question
    assert all(word in ask("category", "x") for word in TASKS)


def test_the_published_templates() -> None:
    assert FAMILIES["llama3"] == "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
    assert FAMILIES["qwen2"] == "<|im_start|>user\n" and FAMILIES["gemma2"] == "<bos><start_of_turn>user\n\n"
    assert FAMILIES["mistral"] == FAMILIES["llama2"] == "<s> [INST] " and FAMILIES["phi3"] == "<s> <|user|>\n"


@pytest.fixture
def tokenizer(tiny: Tiny) -> PreTrainedTokenizerFast:
    found = load_tokenizer(tiny.model.path)
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


def test_a_template_is_derived_from_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pre_query(tokenizer, None).text == "<|user|>"
    tokenizer.chat_template = "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}"
    assert pre_query(tokenizer, None).text == "User:", "a space of its own would stand before the first word's"
    tokenizer.chat_template = "Be kind.\n{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    assert pre_query(tokenizer, None).text == "Be kind.\n["


@pytest.mark.parametrize(
    "family, template, said",
    [
        (None, None, "no chat template to derive its own from: give the family .llama3, qwen2"),
        (None, "{{ messages[0]['content'] }}", "writes nothing before the first user turn"),
        ("lama3", None, "unknown family 'lama3'; did you mean 'llama3'"),
        ("llama3", None, "<.begin_of_text.> is no token of this tokenizer"),
    ],
)
def test_a_family_without_a_template(
    tokenizer: PreTrainedTokenizerFast, family: str | None, template: str | None, said: str
) -> None:
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=said):
        pre_query(tokenizer, family)


def draw(tiny: Tiny, folder: Path, **fields: Any) -> tuple[Artifact, dict[str, Any]]:
    words = {"recipe": "magpie", "rows": 40, "max_query_tokens": 24, "max_answer_tokens": 8, "seed": 1} | fields
    resources = {name: words.pop(name) for name in ("processes", "batch_tokens") if name in words}
    (folder / "out").mkdir(parents=True)
    metrics = magpie.run(
        magpie.Spec(**words), magpie.Inputs(model=tiny.model), folder / "out", context(folder / "state", **resources)
    )
    return Artifact(path=folder / "out"), metrics


@pytest.fixture(scope="module")
def drawn(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, dict[str, Any]]:
    return draw(tiny, tmp_path_factory.mktemp("drawn"))


def test_instructions_are_drawn_and_answered(tiny: Tiny, drawn: tuple[Artifact, dict[str, Any]]) -> None:
    data, metrics = drawn
    rows = open_split(data.path, "train", ["prompt", "completion", "gold", "ended"])
    assert len(rows) + metrics["empty"] == 40 and metrics["rows"] == len(rows) > 5
    for row in rows:
        assert row["prompt"] == row["prompt"].strip() != "" and row["completion"] == row["completion"].strip()
        assert "\n" not in row["prompt"] and "ssistant" not in row["prompt"]
    assert len(set(rows["prompt"])) > 5
    words = json.loads((data.path / "pre_query.json").read_text())
    assert words["pre_query"] == "<|user|>" and words["stop_ids"] == list(special_ids(load_tokenizer(tiny.model.path)))


def test_neither_processes_nor_batches_show(tiny: Tiny, drawn: tuple[Artifact, dict[str, Any]], tmp_path: Path) -> None:
    again, metrics = draw(tiny, tmp_path, processes=2, batch_tokens=120)
    assert metrics == drawn[1]
    assert open_split(again.path, "train").to_list() == open_split(drawn[0].path, "train").to_list()


def test_instructions_that_cannot_fit_are_refused_at_once(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exceed the model's context of 128; lower one"):
        draw(tiny, tmp_path, max_answer_tokens=110)
    assert not (tmp_path / "state/queries").exists()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"rows": None}, "either rows or style"),
        ({"style": "air"}, "either rows or style"),
        ({"temperature": 0.0}, "instructions are sampled"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"rows": 0}, "rows is 0"),
    ],
)
def test_values_that_are_wrong_in_themselves(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        magpie.Spec(**{"recipe": "magpie", "rows": 4} | fields)


def test_tags_of_a_judge_that_writes_no_json(
    tiny: Tiny, drawn: tuple[Artifact, dict[str, Any]], tmp_path: Path
) -> None:
    """The columns are there and empty; instructions that leave it no room are counted (its context is 128 tokens)."""
    (tmp_path / "out").mkdir()
    spec = tags.Spec(recipe="tags", tags=("quality", "category"), max_new_tokens=4)
    metrics = tags.run(spec, tags.Inputs(model=tiny.model, data=drawn[0]), tmp_path / "out", context(tmp_path / "s"))
    rows = open_split(tmp_path / "out", "train", ["prompt", "input_quality", "other_task_category"])
    assert len(rows) == drawn[1]["rows"] and set(rows["input_quality"]) == {None}
    assert metrics["too_long_quality"] + metrics["unread_quality"] == len(rows)


def test_near_duplicates_are_those_of_a_plain_loop() -> None:
    """Squared distances, strictly below the threshold; the first of a group has itself as its first."""
    torch.manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(40, 8), dim=-1)
    points[[7, 21, 30]] = torch.nn.functional.normalize(points[[3, 3, 12]] + 0.02 * torch.randn(3, 8), dim=-1)
    least, count, first = neighbours(points, 0.05)
    for i in range(40):
        apart = {j: float(((points[i] - points[j]) ** 2).sum()) for j in range(40) if j != i}
        close = [j for j, value in apart.items() if value < 0.05]
        assert count[i] == len(close) and first[i] == (min([*close, i]) if close else None)
        assert least[i] == pytest.approx(min(apart.values()), abs=1e-5)
    assert first[3] == 3 and first[7] == 3 and first[30] == 12 and first[0] is None
    assert neighbours(points[:1], 0.05) == ([None], [0], [None])


def test_vectors_without_an_encoder_compare_spelling() -> None:
    texts = ["How do I bake bread?", "how do I  bake bread?", "How do I bake a bread?", "What is the capital of Peru?"]
    vectors = gram_vectors(texts)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(4))
    apart = 2 - 2 * vectors @ vectors.T
    assert apart[0, 1] < 1e-6 < apart[0, 2] < 0.3 < apart[0, 3]


def test_means_leave_padding_out() -> None:
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [99.0, 99.0]]])
    assert torch.allclose(mean_vectors(hidden, torch.tensor([[1, 1, 0]])), torch.tensor([[0.6, 0.8]]))


def encoder(folder: Path, tiny: Tiny) -> Artifact:
    """A small random BERT with the tiny tokenizer."""
    from transformers import BertConfig, BertModel

    tokenizer = load_tokenizer(tiny.model.path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Artifact(path=folder)


def measure(folder: Path, data: Artifact, model: Artifact | None = None, **fields: Any) -> dict[str, Any]:
    (folder / "out").mkdir(parents=True)
    spec = near_recipe.Spec(recipe="neighbours", max_length=64, **fields)
    return near_recipe.run(spec, near_recipe.Inputs(data=data, model=model), folder / "out", context(folder / "state"))


@pytest.mark.parametrize("vectors", ["encoder", "ngrams"])
def test_repeated_instructions_are_found(tiny: Tiny, tmp_path: Path, vectors: str) -> None:
    prompts = [
        "Where was Ada born?",
        "Who is Bo?",
        "Where was Ada born?",
        "What did Cy study at the university of Rome?",
    ]
    data = save(tmp_path / "data", train=[{"prompt": prompt, "completion": "x"} for prompt in prompts])
    model = encoder(tmp_path / "encoder", tiny) if vectors == "encoder" else None
    assert measure(tmp_path, data, model, vectors=vectors) == {"rows": 4, "repeated": 1}
    rows = open_split(tmp_path / "out", "train")
    assert rows["min_similar_id"][:] == [0, None, 0, None] and rows["repeat_count"][:] == [1, 0, 1, 0]
    assert rows["min_neighbor_distance"][0] == pytest.approx(0, abs=1e-5) and rows["completion"][:] == ["x"] * 4


def test_an_encoder_that_is_missing_or_pools_otherwise(tiny: Tiny, tmp_path: Path) -> None:
    data = save(tmp_path / "data", train=[{"prompt": "Who?", "completion": "x"}])
    with pytest.raises(ValueError, match="'model' is not there: give a sentence encoder's folder.*vectors: ngrams"):
        measure(tmp_path / "a", data)
    model = encoder(tmp_path / "encoder", tiny)
    with pytest.raises(ValueError, match="vectors is ngrams, which needs no 'model'"):
        measure(tmp_path / "b", data, model, vectors="ngrams")
    (tmp_path / "encoder/1_Pooling").mkdir()
    (tmp_path / "encoder/1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with pytest.raises(ValueError, match="another pooling than the mean"):
        measure(tmp_path / "c", data, model)


def test_rewards_are_the_classifiers_own_and_no_batch_shows(tiny: Tiny, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

    tokenizer = load_tokenizer(tiny.model.path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_labels=1, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    rows = [{"prompt": "Who?" * (1 + i % 4), "completion": f"Ada {i}"} for i in range(12)]
    rows.append({"prompt": "Who? " * 40, "completion": "too long"})
    data, found = save(tmp_path / "data", train=rows), []
    for name, budget in (("one", 1), ("all", 10**6)):
        (tmp_path / name).mkdir()
        ctx = context(tmp_path / f"state-{name}", batch_tokens=budget)
        inputs = rewards.Inputs(model=Artifact(path=tmp_path / "judge"), data=data)
        metrics = rewards.run(rewards.Spec(recipe="rewards"), inputs, tmp_path / name, ctx)
        assert metrics["rows"] == 13 and metrics["too_long"] == 1
        found.append(open_split(tmp_path / name, "train")["instruct_reward"][:])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "judge").eval()
    plain = AutoTokenizer.from_pretrained(tmp_path / "judge")
    for row, one, whole in zip(rows[:12], *found, strict=False):
        ids = plain(
            f"<|user|>{row['prompt']}<|assistant|><|user|>{row['completion']}<|assistant|>", return_tensors="pt"
        )
        expected = model(**ids).logits.item()
        assert one == pytest.approx(expected, abs=1e-5) and whole == pytest.approx(expected, abs=1e-5)
    assert found[0][12] is None and len({round(value, 4) for value in found[0][:12]}) > 4
    with pytest.raises(ValueError, match="2 labels; a reward model has one"):
        config.num_labels = 2
        config.save_pretrained(tmp_path / "judge")
        rewards.run(rewards.Spec(recipe="rewards"), inputs, tmp_path / "all", ctx)


ROWS = [  # prompt, answer, quality, reward, first near duplicate, why it is dropped
    ("good", "long answer", "good", 1.0, None, None),
    ("excellent", "a much longer answer", "excellent", -9.9, 1, None),
    ("average", "x", "average", 5.0, None, "quality"),
    ("unrated", "x", None, 5.0, None, "quality"),
    ("at the limit", "x", "good", -10.0, None, "reward"),
    ("unrewarded", "x", "good", None, None, "reward"),
    ("List these:", "x", "good", 1.0, None, "colon"),
    ("a colon: inside", "x", "good", 1.0, None, None),
    ("repeats", "x", "good", 1.0, 1, "repeated"),
    ("repeats one that is dropped", "x", "good", 1.0, 2, "repeated"),
    ("ends in a colon and space: ", "x", "good", 1.0, None, None),
]


def select(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    data = save(folder / "data", train=rows)
    splits = Splits(folder / "out" / "data")
    spec = selection.Spec(dataset="magpie", **fields)
    metrics = selection.fill(spec, selection.Inputs(data=data), splits, context(folder / "state"))
    splits.finish()
    return open_split(folder / "out", "train").to_list(), metrics


def filtered() -> list[dict[str, Any]]:
    names = ("prompt", "completion", "input_quality", "instruct_reward", "min_similar_id")
    return [dict(zip(names, row[:5], strict=True)) for row in ROWS]


def test_the_filters_drop_what_the_published_ones_drop(tmp_path: Path) -> None:
    found, metrics = select(tmp_path / "air", filtered())
    assert {row["prompt"] for row in found} == {row[0] for row in ROWS if row[5] is None}
    reasons = [row[5] for row in ROWS]
    assert metrics == {
        f"dropped_{why}": reasons.count(why) for why in ("quality", "reward", "colon", "repeated", "short")
    }
    pro, _ = select(tmp_path / "pro", filtered(), style="pro")
    assert {row["prompt"] for row in pro} - {row["prompt"] for row in found} == {"average"}


def test_the_longest_answers_stay_in_a_seeded_order(tmp_path: Path) -> None:
    found, metrics = select(tmp_path / "a", filtered(), longest=2)
    assert sorted(row["prompt"] for row in found) == ["excellent", "good"] and metrics["dropped_short"] == 2
    rows = [{"prompt": str(i), "completion": "x" * i} for i in range(20)]
    free = {"quality": (), "min_reward": None, "distinct": False}
    one, two = (select(tmp_path / f"{n}", rows, seed=n, longest=12, **free)[0] for n in (1, 2))
    assert one != two and sorted(int(row["prompt"]) for row in one) == list(range(8, 20))


def test_a_filter_without_its_column_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?", "completion": "Ada."}]
    with pytest.raises(ValueError, match="no column 'input_quality', which generate with recipe tags adds"):
        select(tmp_path / "a", rows)
    with pytest.raises(ValueError, match="no column 'min_similar_id', which generate with recipe neighbours adds"):
        select(tmp_path / "b", rows, quality=(), min_reward=None)
    with pytest.raises(ValueError, match="none of the 1 rows is left"):
        select(tmp_path / "c", [{"prompt": "Who:", "completion": "x"}], quality=(), min_reward=None, distinct=False)
