"""compare, check, figure, and published results next to one's own, on a study of predictions that were scored here."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from jobs import evaluate
from slurm.cli import app
from slurm.submissions import cells_of
from toolkit import study_file
from toolkit.analysis import load, load_published
from toolkit.analysis.paired import mcnemar
from toolkit.analysis.published import amuro
from toolkit.manifest import record
from toolkit.manifest.adopt import adopt
from toolkit.plan import folder
from toolkit.spec import build
from toolkit.stage import Artifact, Context

N = 60
STUDY = """name: answers
stages:
  base: {path: base}
  tuned: {path: tuned}
  tables: {path: released}
  scores: {job: evaluate, inputs: {predictions: [base, tuned]}, spec: {metrics: [exact_match, f1]}}
  paper: {job: published, inputs: {tables: tables}, spec: {source: amuro}}
"""
RELEASED = """,model_id,eval dataset,Performance,std
0,olmo1b_checkpoint-1000_original_hf_4shots,qqp,0.99999,0.00001
1,olmo1b_checkpoint-1000_original_hf_4shots,rte,0.5,0.01
2,olmo1b_original_hf_4shots,rte,0.6,0.01
"""
OFFICIAL = ",model_id,eval dataset,Performance\n0,checkpoint-1000,rte,0.5270758122743683\n"


def tidemark(*words: Any) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.yaml, whose scores are committed under `root`."""
    here = tmp_path_factory.mktemp("answers")
    (here / "study.yaml").write_text(STUDY)
    random = np.random.default_rng(0)
    right = {"base": random.random(N) < 0.3, "tuned": random.random(N) < 0.8}
    for model, hits in right.items():
        (here / model).mkdir()
        gold = ["yes" if i % 3 == 0 and i < N - 20 else f"no {i % 5}" for i in range(N - 20)] + ["one class"] * 20
        said = [g if hit else "nothing of this" for g, hit in zip(gold, hits)]
        answers = {"id": range(N), "prompt": [f"q{i}" for i in range(N)], "prediction": said, "gold": gold}
        answers["task"] = ["many"] * (N - 20) + ["single"] * 20
        pq.write_table(pa.table({k: list(v) for k, v in answers.items()}), here / model / "predictions.parquet")
    (here / "released").mkdir()
    (here / "released" / "all_perf_table.csv").write_text(RELEASED)
    (here / "released" / "official_eval_table.csv").write_text(OFFICIAL)
    root = here / "root"
    for cell in cells_of(root, study_file.load(here / "study.yaml")):
        if cell.job == "folder" and cell.stage != "tables":
            adopt(root, path=here / cell.stage, label=cell.label)
        if cell.job == "evaluate":
            commit(root, cell, here / cell.coords["predictions"])
    return here


def commit(root: Path, cell: Any, source: Path) -> None:
    """What a worker does for a cell of `evaluate`."""
    out = root / "work" / cell.fingerprint[:12]
    out.mkdir(parents=True)
    inputs = evaluate.Inputs(predictions=Artifact(path=source))
    metrics = evaluate.run(build(evaluate.Spec, cell.spec), inputs, out, Context(state=out))
    made = {"spec": cell.spec, "inputs": {}, "metrics": metrics, "provenance": {}}
    record.commit(root, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=out, record=made)


def items(home: Path, model: str) -> list[dict[str, Any]]:
    cells = cells_of(home / "root", study_file.load(home / "study.yaml"))
    (cell,) = [c for c in cells if c.coords.get("predictions") == model]
    return pq.read_table(folder(home / "root", cell) / "items.parquet").to_pylist()


def test_compare_is_the_paired_test_of_the_items(home: Path) -> None:
    words = (
        "compare",
        home / "study.yaml",
        "scores[predictions=base]",
        "scores[predictions=tuned]",
        "--root",
        home / "root",
    )
    done = tidemark(*words, "--on", "many", "--json")
    (row,) = json.loads(done.stdout)
    pairs = [
        (a["correct"], b["correct"]) for a, b in zip(items(home, "base"), items(home, "tuned")) if a["task"] == "many"
    ]
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    assert (row["only_first"], row["only_second"], row["n"]) == (lost, won, N - 20)
    assert row["p"] == pytest.approx(mcnemar(lost, won, mid=True)) == row["p_holm"]
    assert row["difference"] == pytest.approx((won - lost) / (N - 20)) and row["verdict"] == "better"
    shown = tidemark(*words, "--on", "many").stdout
    assert "McNemar mid-p" in shown and shown.rstrip().endswith("better") and f"{row['resolvable']:.3f}" in shown


def test_compare_of_many_cells_adjusts_by_holm(home: Path) -> None:
    done = tidemark(
        "compare",
        home / "study.yaml",
        "predictions=base",
        "predictions=tuned",
        "--metric",
        "f1",
        "--root",
        home / "root",
        "--json",
    )
    rows = json.loads(done.stdout)
    assert {row["task"] for row in rows} == {"many", "single"} and {row["test"] for row in rows} == {"McNemar mid-p"}
    least = min(row["p"] for row in rows)
    assert min(row["p_holm"] for row in rows) == pytest.approx(2 * least)
    assert "have one gold answer" in done.stderr  # of the task `single`


@pytest.mark.parametrize(
    "one, two, said",
    [
        ("predictions=base", "predictions=other", "no evaluated cell with items has 'predictions=other'"),
        ("prediction=base", "predictions=tuned", "unknown axis 'prediction'; did you mean 'predictions'"),
        ("scores[predictions=base]", "scores[predictions=base]", "or both are one cell"),
    ],
)
def test_compare_says_what_is_wrong(home: Path, one: str, two: str, said: str) -> None:
    assert said in str(tidemark("compare", home / "study.yaml", one, two, "--root", home / "root").exception)


def test_what_is_not_done_is_not_compared(home: Path, tmp_path: Path) -> None:
    cells = [f"scores[predictions={model}]" for model in ("base", "tuned")]
    told = str(tidemark("compare", home / "study.yaml", *cells, "--root", tmp_path).exception)
    assert "scores[predictions=base] is never-run: there is nothing to compare yet" in told


def test_a_task_that_is_not_there_is_told(home: Path) -> None:
    done = tidemark(
        "compare", home / "study.yaml", "predictions=base", "predictions=tuned", "--on", "mny", "--root", home / "root"
    )
    assert "unknown task 'mny'; did you mean 'many'" in str(done.exception)


def test_published_results_stand_beside_ones_own(home: Path) -> None:
    root = home / "root"
    done = tidemark("adopt", "--published", "amuro", home / "released", "--root", root)
    assert done.exit_code == 0 and "4 numbers, 6 places that were not run" in done.stdout
    assert "acc of qqp is 0.99 or more at step 1000 already" in done.stderr
    again = tidemark("adopt", "--published", "amuro", home / "released", "--root", root)
    assert again.stdout.splitlines()[1] == done.stdout.splitlines()[1] and not list((root / "work").iterdir())
    frame = load(home / "study.yaml", root)
    paper = frame[frame["stage"] == "paper"]
    plain = load_published("amuro", home / "released")
    for name in ("step", "tokens", "train", "shots", "format", "harness", "task", "metric", "value", "stderr", "n"):
        assert paper[name].astype(object).where(paper[name].notna(), None).tolist() == (
            plain[name].astype(object).where(plain[name].notna(), None).tolist()
        ), name
    assert frame[frame["stage"] == "scores"]["value"].notna().all() and set(frame["state"]) == {"done"}
    shown = tidemark(
        "table",
        home / "study.yaml",
        "--root",
        root,
        "--rows",
        "step",
        "--cols",
        "harness",
        "--values",
        "acc",
        "--where",
        "task=rte",
    )
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "| 1000 | 0.500 ± 0.010 | 0.527 |" in lines and "| 342000 | no value | – |" in lines


def test_two_harnesses_in_one_table_are_refused_unless_said(home: Path) -> None:
    root = home / "root"
    tidemark("adopt", "--published", "amuro", home / "released", "--root", root)
    words = ("table", home / "study.yaml", "--root", root, "--rows", "step,shots", "--cols", "task", "--values", "acc")
    refused = str(tidemark(*words).exception)
    assert "'acc' of task 'rte' was scored by amuro and by olmo-eval" in refused and "--any-harness" in refused
    assert "unknown column 'tsk'; did you mean 'task'" in str(tidemark(*words[:-3], "tsk").exception)
    assert "0.527" in tidemark(*words, "--any-harness").stdout
    assert tidemark(*words, "--where", "harness=amuro").exit_code == 0
    assert tidemark("table", home / "study.yaml", "--root", root).exit_code == 0  # the long table shows the harness


def test_check_lists_what_a_reader_would_object_to(home: Path) -> None:
    tidemark("adopt", "--published", "amuro", home / "released", "--root", home / "root")
    found = json.loads(tidemark("check", home / "study.yaml", "--root", home / "root", "--json").stdout)
    for said in ("acc of qqp is 0.99", "all 20 items of single have one gold answer", "harnesses do not compare"):
        assert sum(said in finding for finding in found) == 1, found
    with pytest.raises(ValueError, match="unknown source 'amaro'; did you mean 'amuro'"):
        raise tidemark("adopt", "--published", "amaro", home / "released", "--root", home / "none").exception or OSError
    assert not list((home / "none").rglob(record.RECORD))  # a wrong name adopts nothing


def test_figures_are_written_for_print(home: Path) -> None:
    pytest.importorskip("matplotlib")
    tidemark("adopt", "--published", "amuro", home / "released", "--root", home / "root")
    words = ("figure", home / "study.yaml", "--root", home / "root", "--where", "task=rte")
    for name, start in (("rte.pdf", b"%PDF"), ("rte.png", b"\x89PNG")):
        done = tidemark(*words, "-o", home / name, "--lines", "harness,shots", "--scale", "even")
        assert done.exit_code == 0, done.exception
        assert (home / name).read_bytes().startswith(start)
    assert "must end in .pdf, .png, .svg" in str(tidemark(*words, "-o", home / "rte.jpg").exception)
    assert "unknown column 'harnes'; did you mean" in str(
        tidemark(*words, "-o", home / "x.pdf", "--lines", "harnes").exception
    )
    for idle, kind in (("--lines=shots", "heat"), ("--scale=log", "signal"), ("--panels=task", "heat")):
        more = ["--signal", "paper.acc@rte"] if kind == "signal" else []
        told = str(tidemark(*words, "-o", home / "x.pdf", "--kind", kind, idle, *more).exception)
        assert f"{idle.split('=')[0]} means nothing for {kind}" in told
    told = str(tidemark(*words[:4], "-o", home / "x.pdf", "--where", "stage=scores").exception)
    assert "no row that was chosen has a coordinate of 'step'" in told  # its tokens are of the paper's rows
    for idle in ("--kind=heat", "--lines=shots", "--over=step"):
        told = str(tidemark(*words, "-o", home / "all", "--paper", "amuro", idle).exception)
        assert f"{idle.split('=')[0]} means nothing for --paper" in told
    assert "give -o a folder" in str(tidemark(*words, "-o", home / "all.pdf", "--paper", "amuro").exception)
    refused = tidemark(*words, "-o", home / "all", "--paper", "amuro")
    assert "no figure of 'amuro' can be drawn" in str(refused.exception) and not (home / "all").exists()
    assert refused.stderr.count("is not drawn: no row") == len(amuro.ABOUT)


def test_an_answer_is_written_where_it_was_asked_for(home: Path) -> None:
    words = ("table", home / "study.yaml", "--root", home / "root", "--where", "stage=scores", "-o")
    assert tidemark(*words, home / "new" / "folders" / "t.md").exit_code == 0
    assert "exact_match" in (home / "new" / "folders" / "t.md").read_text()
    assert "is a folder: name a file in it" in str(tidemark(*words, home).exception)
    assert "a file has the name of a folder above it" in str(tidemark(*words, home / "study.yaml" / "t.md").exception)


GRADED = """name: graded
stages:
  base: {path: base}
  tuned: {path: tuned}
  scores: {job: evaluate, inputs: {model: [base, tuned]}, spec: {tasks: [boolq, piqa]}}
  few: {job: evaluate, inputs: {model: base}, spec: {tasks: [piqa], limit: 10}}
"""


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with one score between them, evaluated by two versions of the harness; and a stage with a limit."""
    here = tmp_path_factory.mktemp("graded")
    (here / "study.yaml").write_text(GRADED)
    root = here / "root"
    for name in ("base", "tuned"):
        (here / name).mkdir()
        (here / name / "weights").write_text(name)
    for cell in cells_of(root, study_file.load(here / "study.yaml")):
        if cell.job == "folder":
            adopt(root, path=here / cell.stage, label=cell.label)
            continue
        n = 10 if cell.stage == "few" else 9815
        out = root / "work" / cell.fingerprint[:12]
        out.mkdir(parents=True)
        rows = {"task": "piqa", "metric": "acc", "value": 3 / 10 if n == 10 else 3212 / 9815, "stderr": 0.0047, "n": n}
        pq.write_table(pa.Table.from_pylist([rows, {**rows, "task": "boolq"}]), out / "rows.parquet")
        right = [i % 3 == 0 for i in range(20)]
        said = [
            {"task": task, "doc_id": i, "filter": "none", "prompt": f"q{i}", "prediction": "yes", "correct": hit,
             "gold": "yes" if task == "boolq" else f"g{i % 2}", "loglikelihoods": [-1.0, -2.0]}
            for task in ("boolq", "piqa") for i, hit in enumerate(right)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(said), out / "items.parquet")
        version = "0.4.12" if cell.coords.get("model") == "tuned" else "0.4.13"
        made = {"identity": {"packages": {"lm_eval": version}}}
        cut = {"truncated_requests": 7, "piqa/truncated_requests": 7, "boolq/truncated_requests": 0}
        cut |= {"piqa/left_out": 9805} if n == 10 else {}
        spec = {"spec": cell.spec, "inputs": {}, "metrics": cut, "provenance": made}
        record.commit(root, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=out, record=spec)
    return here


def test_each_guard_speaks_on_the_command_line(graded: Path) -> None:
    words = (graded / "study.yaml", "--root", graded / "root")
    found = "\n".join(json.loads(tidemark("check", *words, "--json").stdout))
    for said in (
        "2 models have acc 0.32725 on piqa: scores model base; scores model tuned",
        "acc of piqa is of 9815 items in 2 rows and of fewer (10) in 1",
        "all 20 items of boolq have one gold answer",
        "scored by lm_eval 0.4.12 and by lm_eval 0.4.13",
        "up to 7 prompts of piqa were longer than the context in 2 cells of scores",
        "up to 9805 items of piqa were not scored in 1 cells of few: a limit is in the spec",
    ):
        assert said in found, found
    mixed = ("table", *words, "--rows", "model", "--cols", "task", "--values", "acc", "--where", "stage=scores")
    assert "numbers of two harnesses do not compare" in str(tidemark(*mixed).exception)
    assert "0.327" in tidemark(*mixed, "--any-harness").stdout
    sides = ("compare", graded / "study.yaml", "model=base", "model=tuned", "--root", graded / "root", "--json")
    assert "scored by lm_eval 0.4.13" in str(tidemark(*sides).exception)
    one, two = json.loads(tidemark(*sides, "--any-harness").stdout)
    assert one["verdict"] == two["verdict"] == "same scores"


def test_the_report_says_what_the_guards_say_and_draws_chance(graded: Path) -> None:
    done = tidemark("report", graded / "study.yaml", "--root", graded / "root", "-o", graded / "report.html")
    assert done.exit_code == 0, done.exception
    page = (graded / "report.html").read_text()
    assert (
        "have one gold answer" in page
        and "numbers of two harnesses do not compare" in page
        and "2 models have acc 0.32725" in page
    )
    assert (
        "up to 7 prompts of piqa were longer than the context in 1 cells of few" in page and "of boolq were" not in page
    )
    data = json.loads(page.split('id="page-data">')[1].split("</script>")[0])
    assert data["chance"] == {"boolq": 0.5, "piqa": 0.5} and data["table"]["total"] > 4


PAPER = """name: paper
stages:
  released: {path: RELEASED}
  paper: {job: published, inputs: {tables: released}, spec: {source: amuro}}
"""
AMURO = Path(__file__).parents[3] / "shared" / "amuro"


BESIDE = f"""{PAPER}  mine: {{path: mine}}
  scores: {{job: evaluate, inputs: {{model: mine}}, spec: {{tasks: [mnli_matched]}},
           axes: {{shots: [0, 4], train: {{base: {{seed: 1}}, mnli: {{seed: 2}}}}}}}}
"""


@pytest.mark.skipif(not AMURO.is_dir(), reason="the released tables are not here")
def test_a_table_has_ones_own_rows_beside_the_papers(tmp_path: Path) -> None:
    study = tmp_path / "beside.yaml"
    study.write_text(BESIDE.replace("RELEASED", str(AMURO)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights").write_text("mine")
    tidemark("adopt", "--published", "amuro", AMURO, "--root", tmp_path)
    for cell in cells_of(tmp_path, study_file.load(study)):
        if cell.job == "folder" and cell.stage == "mine":
            adopt(tmp_path, path=tmp_path / "mine", label=cell.label)
        if cell.job == "evaluate":
            out = tmp_path / "work" / cell.fingerprint[:12]
            out.mkdir(parents=True)
            row = {"task": "mnli_matched", "metric": "acc", "value": 0.25, "stderr": 0.1, "n": 20}
            pq.write_table(pa.Table.from_pylist([row]), out / "rows.parquet")
            packages = {"lm_eval": f"0.4.{cell.coords['shots']}"}
            made = {"spec": cell.spec, "inputs": {}, "metrics": {}, "provenance": {"identity": {"packages": packages}}}
            record.commit(
                tmp_path, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=out, record=made
            )  # fmt: skip
    where = [f"--where={word}" for word in ("task=mnli_matched", "shots=4", "format=default", "train=base")]
    words = ("table", study, "--root", tmp_path, "--paper", "amuro", *where, "--rows", "step", "--cols", "source")
    assert "scored by lm_eval 0.4.0 and by lm_eval 0.4.4" in str(tidemark(*words).exception)
    done = tidemark(*words, "--any-harness", "--latex")
    assert done.exit_code == 0, done.exception
    lines = [line.rstrip(" \\").split(" & ") for line in done.stdout.splitlines() if " & " in line]
    assert lines[0] == ["step", "paper", "own"] and len(lines) == 10
    assert ["1000", "0.354 [0.345, 0.364]", "--"] in lines
    (own,) = [line for line in lines[1:] if line[2] != "--"]
    assert own[2].startswith("0.250 [") and own[1] == "--"
    drawn = ("figure", study, "--root", tmp_path, "-o", tmp_path / "figures", "--paper", "amuro")
    assert "scored by lm_eval 0.4.0 and by lm_eval 0.4.4" in str(tidemark(*drawn).exception)
    pairs = ("average", "--paper", "amuro", "--pairs", "mnli:mnli_matched,mnli:rte", "--over", "-", "--format", "csv")
    done = tidemark("dynamics", study, *pairs, "--root", tmp_path)
    assert done.exit_code == 0, done.exception
    means = [line.split(",") for line in done.stdout.splitlines()]
    assert means[0] == ["source", "mean", "low", "high", "sd", "n", "missing"] and means[2][0] == "paper"
    assert (means[1][0], float(means[1][1]), means[1][5:]) == ("own", 0.0, ["1", "1"])  # its mean is not the paper's
    wrong = tidemark("table", study, "--root", tmp_path, "--paper", "amaro", "--any-harness")
    assert "unknown source 'amaro'; did you mean 'amuro'" in str(wrong.exception)


@pytest.mark.skipif(not AMURO.is_dir(), reason="the released tables are not here")
def test_dynamics_of_published_tables(tmp_path: Path) -> None:
    """Table 6 and the cross-task means from the command line, with the places that were not run."""
    import io

    study = tmp_path / "paper.yaml"
    study.write_text(PAPER.replace("RELEASED", str(AMURO)))
    tidemark("adopt", "--published", "amuro", AMURO, "--root", tmp_path)

    def ask(*words: Any) -> list[dict[str, str]]:
        done = tidemark("dynamics", study, *words, "--root", tmp_path, "--format", "csv")
        assert done.exit_code == 0, done.exception
        return list(csv.DictReader(io.StringIO(done.stdout)))

    with (AMURO / "paper_table6.csv").open() as lines:
        printed = list(csv.DictReader(lines))
    for group, column in (("pretraining", "learned_in_pretrain"), ("tuning", "learned_in_finetune")):
        means = ask("average", "--paper", "amuro", "--pairs", f"learned-in-{group}")
        assert [f"{float(row['mean']):.3f}" for row in means] == [f"{float(row[column]):.3f}" for row in printed]
    missing = ask("relative", "--paper", "amuro", "--pairs", "cross-task", "--over", "train")
    assert {row["train"]: row["missing"] for row in missing} == {
        "mnli": "1",
        "paws": "2",
        "socialiqa": "0",
        "xsum": "0",
    }
    gains = ask("gain", "--paper", "amuro", "--where", "task=mnli_matched")
    assert [row["step"] for row in gains if row["train"] == "paws" and not row["gain"]] == ["342000", "738000"]
    (pooled,) = ask("forgetting", "--paper", "amuro", "--pairs", "mnli:paws,mnli:xsum", "--over", "-")
    assert (pooled["n"], pooled["missing"]) == ("15", "1")
    for operation in ("revealed", "learned", "ranks", "slopes", "breaks"):
        found = ask(operation, "--paper", "amuro")
        assert len(found) > 10 and (operation in ("revealed", "learned") or float(found[0]["p_holm"]) > 0)
    latex = tidemark(
        "dynamics", study, "formats", "--where", "task=paws", "--format", "latex", "--root", tmp_path
    ).stdout
    assert latex.startswith(r"\begin{tabular}") and r"\toprule" in latex
    refused = str(tidemark("dynamics", study, "average", "--pairs", "mnli", "--root", tmp_path).exception)
    assert "'mnli' is no pair MODEL:TASK" in refused
    assert "say --pairs" in str(tidemark("dynamics", study, "average", "--root", tmp_path).exception)
    assert "say --in-domain" in str(
        tidemark("dynamics", study, "transfer", "--pairs", "mnli:rte", "--root", tmp_path).exception
    )
    for words, told in (
        (("slopes", "--over", "train"), "--over means nothing for slopes: it is for average, relative"),
        (("gain", "--pairs", "mnli:rte"), "--pairs means nothing for gain"),
        (("signals", "--paper", "amuro"), "--paper means nothing for signals"),
        (("average", "--paper", "amuro", "--pairs", "in-domain", "--over", "trian"), "unknown column 'trian'; did you"),
    ):
        assert told in str(tidemark("dynamics", study, *words, "--root", tmp_path).exception)


MERGES = """name: merges
stages:
  instruct: {path: instruct}
  trained: {path: trained}
  merged: {job: merge, inputs: {first: instruct, second: trained}, spec: {method: linear}, axes: {seed: [0, 1]}}
  scores: {job: evaluate, inputs: {model: [instruct, trained, merged]}, spec: {tasks: [piqa]}}
"""


def test_dynamics_of_merges(tmp_path: Path) -> None:
    """Of a study that is there but for one merge; `--where` chooses, and a study without merges is told so."""
    (tmp_path / "study.yaml").write_text(MERGES)
    for name in ("instruct", "trained"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"model_type": "{name}"}}')
    root, right = tmp_path / "root", {"instruct": 50, "trained": 10, "merged": 40}
    for cell in cells_of(root, study_file.load(tmp_path / "study.yaml")):
        if cell.job == "folder":
            adopt(root, path=tmp_path / cell.stage, label=cell.label)
        elif cell.coords.get("seed") != 1:
            out = root / "work" / cell.fingerprint[:12]
            out.mkdir(parents=True)
            if cell.job == "evaluate":
                hits = [i < right[str(cell.coords["model"])] for i in range(N)]
                asked = {"task": ["piqa"] * N, "filter": ["none"] * N, "doc_id": list(range(N)), "gold": ["0"] * N}
                pq.write_table(pa.table({**asked, "correct": hits}), out / "items.parquet")
                row = {"task": ["piqa"], "metric": ["acc"], "value": [sum(hits) / N], "stderr": [0.05], "n": [N]}
                pq.write_table(pa.table(row), out / "rows.parquet")
            made: dict[str, Any] = {"spec": cell.spec, "inputs": {}, "metrics": {}, "provenance": {}}
            record.commit(root, job=cell.job, label=cell.label, fingerprint=cell.fingerprint, out=out, record=made)
    words = ("dynamics", tmp_path / "study.yaml", "merges", "--root", root)
    done = tidemark(*words, "--format", "csv")
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert (row["merged"], row["better"], row["weakest"]) == ("merged[seed=0]", "instruct", "trained")
    assert (float(row["share"]), row["verdict"]) == (pytest.approx(0.75), "worse")
    told = str(tidemark(*words, "--where", "model=instruct").exception)
    assert "no merged model here has a score, with its items, that two or more of its parents have, too" in told
