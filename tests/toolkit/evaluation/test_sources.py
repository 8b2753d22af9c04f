"""Which data a task reads, in which format and form, and what is said where they do not go together."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.toolkit.evaluation.sets import LABELS, download, nli, questions
from tests.toolkit.generation.tiny import Tiny, save
from toolkit.evaluation import tasks
from toolkit.evaluation.join import Given, Source
from toolkit.evaluation.local import acc, lettered, rouge_l
from toolkit.evaluation.names import own
from toolkit.evaluation.tasks import Loaded
from toolkit.stage import Artifact


def load(folder: Path, *names: str, shots: int = 0, data: dict[str, Artifact], **chosen: Any) -> Loaded:
    given = {label: Given(path=d.path, repo=d.record.get("spec", {}).get("repo")) for label, d in data.items()}
    return tasks.load(names, Source(data=given, **chosen), shots, 1234, folder / "tasks")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    root = tmp_path_factory.mktemp("sets")
    pairs = [
        {**row, "accepted": LABELS[:1] if row["gold"] == LABELS[0] else ["not_entailment", *LABELS[1:]]}
        for row in nli(9)
    ]
    gaps = [
        {"sentence": f"{a} met {b} and _ was born in {i}.", "choices": [a, b], "gold_index": i % 2, "question": "Who?"}
        for i, (a, b) in enumerate([("Ada", "Bo"), ("Cy", "Dee"), ("Eli", "Fay")])
    ]
    sums = [
        {"prompt": f"Question: {i} + 1?\nAnswer:", "completion": f" It is {i + 1}.\n#### {i + 1}", "gold": str(i + 1)}
        for i in range(1000, 1004)
    ]
    texts = [
        {"prompt": f"### Input: text {i}\n ### Summary:", "completion": f" sum {i}", "gold": f"sum {i}"}
        for i in range(4)
    ]
    return {
        "mnli": save(root / "mnli", validation_matched=nli(7), validation_mismatched=nli(5), train=nli(4)),
        "rte": save(root / "rte", train=pairs, validation=pairs[:3]),
        "winogrande": save(root / "winogrande", validation=gaps, train=gaps[:2]),
        "gsm8k": save(root / "gsm8k", test=sums, train=sums[:2]),
        "xsum": save(root / "xsum", test=texts, train=texts[:2]),
        "arc_easy": save(root / "easy", test=questions(5), train=questions(3)),
        "arc_challenge": save(root / "hard", heldout=questions(9, 50), train=questions(3)),
    }


def context(task: Any, shots: int = 0) -> str:
    return str(task.fewshot_context(task.eval_docs[0], shots))


AMURO = (
    "mnli_matched", "mnli_mismatched", "rte", "gpt3nli", "paws", "qqp", "stsb", "xsum", "xlsum", "cnn", "socialiqa",
    "sciq_questions", "tweetqa",
)  # fmt: skip
CHOICES = ("arc_easy", "arc_challenge", "openbookqa", "hellaswag", "boolq", "sciq", "piqa", "winogrande")


def test_every_data_set_of_the_study_has_its_formats_and_forms() -> None:
    formats = {f"{name}{format}" for name in AMURO for format in ("", "_instruct", "_inputoutput")}
    assert formats | {f"{name}_mc" for name in CHOICES} | {"arc", "gsm8k", "mnli_matched_instruct_cloze"} <= set(own())
    for name in AMURO:
        settings = own()[name].config["generation_kwargs"]
        classes = "acc" in own()[name].config["metric_list"][0]["metric"]
        assert settings["max_gen_toks"] == (5 if classes else 60) and settings["do_sample"] is False
        assert classes or "rouge_l" in own()[name].config["metric_list"][0]["metric"]


def test_each_task_reads_its_own_rows(sets: dict[str, Artifact], tmp_path: Path) -> None:
    names = ("mnli_matched", "mnli_mismatched", "rte", "xsum")
    found = load(tmp_path, *names, data={k: sets[k] for k in ("mnli", "rte", "xsum")}).tasks
    assert [len(found[name].eval_docs) for name in names] == [7, 5, 9, 4]
    with pytest.raises(ValueError, match="no task reads the input 'data.xsum'; leave it out"):
        load(tmp_path, "rte", data={k: sets[k] for k in ("rte", "xsum")})
    with pytest.raises(
        ValueError, match=r"'paws' scores the rows of the input 'data.paws', .* \(it has data.rte \(rows\)\)"
    ):
        load(tmp_path, "paws", data={"rte": sets["rte"]})
    assert (
        len(load(tmp_path, "mnli_matched", data={"": sets["mnli"]}, split="train").tasks["mnli_matched"].eval_docs) == 4
    )


def test_a_format_is_a_name_or_a_field(sets: dict[str, Artifact], tmp_path: Path) -> None:
    data = {"mnli": sets["mnli"]}
    plain = load(tmp_path, "mnli_matched", data=data, shots=1).tasks["mnli_matched"]
    named = load(tmp_path, "mnli_matched_instruct", data=data, shots=1).tasks["mnli_matched_instruct"]
    field = load(tmp_path, "mnli_matched", data=data, shots=1, format="instruct").tasks["mnli_matched"]
    assert context(plain).startswith("### Input_1: 0 is")
    assert context(named, 1) == context(field, 1)
    assert re.fullmatch(r"Text 1: \d is. .* is (\w+)\n\nText 1: 0 is. Text 2: 0. The relation is", context(field, 1))
    for words, said in {
        ("mnli_matched_instruct", "instruct"): "its name says 'instruct' already",
        ("mnli_matched", "instuct"): "unknown format 'instuct'; did you mean 'instruct'",
        ("xsum", "inputoutput"): "needs a column 'prompt_inputoutput'",
        ("bios_qa", "instruct"): "unknown format 'instruct'",
        ("lambada_openai", "instruct"): "is lm-eval's own and has one format",
    }.items():
        with pytest.raises(ValueError, match=said):
            load(tmp_path, words[0], data={"mnli": sets["mnli"], "xsum": sets["xsum"]}, format=words[1])


def test_forms(sets: dict[str, Artifact], tmp_path: Path) -> None:
    names = ("mnli_matched_instruct_cloze", "arc_easy_mc", "xsum_likelihood", "gsm8k", "winogrande")
    data = {name: sets[name] for name in ("mnli", "arc_easy", "xsum", "gsm8k", "winogrande")}
    cloze, letters, text, sums, gap = load(tmp_path, *names, data=data, shots=1).tasks.values()
    assert [task.OUTPUT_TYPE for task in (cloze, letters, text, sums, gap)] == [
        "multiple_choice", "multiple_choice", "loglikelihood", "generate_until", "multiple_choice",
    ]  # fmt: skip
    assert cloze.doc_to_choice(cloze.eval_docs[0]) == LABELS and context(cloze).endswith("The relation is")
    asked = "Where was number 0 born?\nA. Paris\nB. Lima\nC. Oslo\nD. In 0\nAnswer:"
    assert context(letters) == asked and re.search(r"Answer: [A-D]\n\nWhere was number 0", context(letters, 1))
    assert text.doc_to_target(text.eval_docs[2]) == " sum 2"
    assert "It is 100" in context(sums, 1) and sums.doc_to_target(sums.eval_docs[0]) == "1001"
    assert gap.fewshot_context(gap.eval_docs[0], 0) == ["Ada met Bo and Ada", "Ada met Bo and Bo"]
    assert gap.doc_to_target(gap.eval_docs[0]) == "was born in 0."


def test_a_group_of_our_own_with_parts_of_one_or_two_data_sets(sets: dict[str, Artifact], tmp_path: Path) -> None:
    found = load(tmp_path, "arc", data={k: sets[k] for k in ("arc_easy", "arc_challenge")})
    assert set(found.tasks) == {"arc_easy", "arc_challenge"} and found.groups["arc"].child_names == list(found.tasks)
    assert [len(task.eval_docs) for task in found.tasks.values()] == [5, 9], "heldout, where there is no test split"
    with pytest.raises(ValueError, match="task 'arc_easy' is named twice in 'tasks', once as part of a group"):
        load(tmp_path, "arc", "arc_easy", data={k: sets[k] for k in ("arc_easy", "arc_challenge")})


def test_a_group_of_lm_evals_on_a_download(tmp_path: Path) -> None:
    """As mmlu is: a group of a tag, one data set with a configuration for each part."""
    rows = [
        {"question_id": i, "question": f"What is {i}?", "option1": "a", "option2": "b", "option3": "c", "option4": "d"}
        | {"answer_id": "ABCD"[i % 4], "answer": "abcd"[i % 4], "vocab": "ATC", "level": "easy"}
        for i in range(6)
    ]
    parts = [f"atc_{level}" for level in ("easy", "medium", "hard")]
    made = download(tmp_path / "med", "ofir408/MedConceptsQA", **{p: {"test": rows, "dev": rows[:2]} for p in parts})
    other = download(tmp_path / "sciq", "allenai/sciq", default={"test": rows})
    found = load(tmp_path, "med_concepts_qa_atc", data={"med": made})
    assert set(found.tasks) == {f"med_concepts_qa_{part}" for part in parts}
    assert all(len(task.eval_docs) == 6 for task in found.tasks.values())
    assert found.groups["med_concepts_qa_atc"].has_aggregation
    with pytest.raises(
        ValueError, match=r"reads ofir408/MedConceptsQA, and this stage has data.sciq \(a download of allen"
    ):
        load(tmp_path, "med_concepts_qa_atc", data={"sciq": other})
    with pytest.raises(ValueError, match="'med_concepts_qa_atc' reads ofir408"):  # two downloads of it, and no name
        load(tmp_path, "med_concepts_qa_atc", data={"a": made, "b": replace(made)})


def test_accuracy_of_what_was_written() -> None:
    def right(said: str, gold: str) -> bool:
        return acc(references=[gold], predictions=[said]) == 1.0

    assert all(right(said, "yes") for said in ("yes", " Yes.", '\n"yes", because', "YES ###"))
    assert not any(right(said, "yes") for said in ("", "no", "yesterday", "not yes", "eyes"))
    assert right(" not_entailment", "not_entailment") and not right("not_entailment", "entailment")
    assert not right("entailment_", "entailment") and right("a+b", "a+b")
    assert rouge_l(references=["a b c d"], predictions=[" a c\n"]) == pytest.approx(2 / 3)


def test_rte_takes_a_third_class_for_no_entailment(sets: dict[str, Artifact], tmp_path: Path) -> None:
    task = load(tmp_path, "rte", data={"rte": sets["rte"]}).tasks["rte"]
    assert [
        task.process_results(task.eval_docs[1], [said])["acc"] for said in (" neutral", " contradiction", " entailment")
    ] == [1, 1, 0]
    assert [task.process_results(task.eval_docs[0], [said])["acc"] for said in (" neutral", " entailment")] == [0, 1]


def test_the_right_letter_varies_where_the_right_choice_stands_first() -> None:
    given = [{"question": f"Which? {i}", "choices": ["right", "wrong", "bad"], "gold_index": 0} for i in range(20)]
    rows = lettered(Dataset.from_list(given))
    assert len(set(rows["gold_index"])) == 3
    for row in rows:
        assert f"{'ABC'[row['gold_index']]}. right\n" in row["prompt"] and row["choices"] == ["A", "B", "C"]
    backward = lettered(Dataset.from_list(given[::-1]))
    assert backward["prompt"][:] == rows["prompt"][::-1], "a row keeps its order whatever the others"


def test_gaps_of_which_one_choice_is_always_right_are_refused(tmp_path: Path) -> None:
    gaps = [{"sentence": f"{i} met _ there.", "choices": ["Ada", "Bo"], "gold_index": i % 2} for i in range(6)]
    load(tmp_path, "winogrande", data={"": save(tmp_path / "both", validation=gaps)})
    with pytest.raises(ValueError, match="all 3 rows of 'winogrande' have the same gold answer"):
        load(tmp_path, "winogrande", data={"": save(tmp_path / "one", validation=gaps[::2])})


def test_more_choices_than_letters() -> None:
    rows = Dataset.from_list([{"question": "Which?", "choices": [str(i) for i in range(27)], "gold_index": 0}])
    with pytest.raises(ValueError, match="has 27 choices, more than there are letters"):
        lettered(rows)


def test_a_task_that_writes_more_than_the_context_holds(tiny: Tiny, sets: dict[str, Artifact], tmp_path: Path) -> None:
    from jobs import evaluate
    from jobs.evaluate import Inputs, Spec
    from tests.toolkit.generation.tiny import context as stage_context

    inputs = Inputs(model=tiny.model, data={"gsm8k": sets["gsm8k"]})
    with pytest.raises(ValueError, match="task 'gsm8k' may write 256 tokens, and the context has only 128"):
        evaluate.run(Spec(tasks=("gsm8k",)), inputs, tmp_path, stage_context(tmp_path / "state"))
