"""Distillation: distances against formulas in float64, a step by hand, stored logits, ranks, kills, and what is refused."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.toolkit.training.small import OLMO, SIZES, Small, context, dataset, losses, packed, run, tokenizer, weights
from tests.toolkit.training.test_resume import Deadly, again, same
from toolkit.generation.recipes import logits
from toolkit.generation.stored_logits import StoredLogits
from toolkit.spec import build
from toolkit.stage import Artifact, Context
from toolkit.training import distances
from toolkit.training.alignment import NONE, Alignment
from toolkit.training.methods import distill


@pytest.fixture(scope="module")
def teacher(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Wider and deeper than the student, and trained a little."""
    sizes = {**SIZES, "hidden_size": 48, "num_hidden_layers": 3}
    folder = tmp_path_factory.mktemp("teacher")
    return Artifact(path=small.pretrain(folder, steps=6, lr=1e-2, architecture={"model_type": "llama", **sizes}))


def distilled(
    small: Small, folder: Path, given: dict[str, Artifact], ctx: Context | None = None, **fields: Any
) -> Path:  # fmt: skip
    spec = build(distill.Spec, {"method": "distill", "steps": 4, "global_batch": 8, "lr": 1e-2} | fields)
    return run(spec, distill.Inputs(**({"model": small.model, "data": small.packed} | given)), folder, ctx)


def store(folder: Path, model: Artifact, data: Artifact, ctx: Context | None = None, **fields: Any) -> Artifact:
    out = folder / "out"
    out.mkdir(parents=True)
    spec = build(logits.Spec, {"recipe": "logits"} | fields)
    logits.run(spec, logits.Inputs(model=model, data=data), out, ctx or context(folder))
    return Artifact(path=out)


def curve(out: Path) -> dict[str, list[float]]:
    return dict(pyarrow.parquet.read_table(out / "loss.parquet").to_pydict())


# --- distances, against sums written out -----------------------------------------------------------------------------


def softmax(row: np.ndarray) -> np.ndarray:
    powers = [math.exp(x - max(row)) for x in row]
    return np.array(powers) / math.fsum(powers)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_divergence_is_the_formula(direction: Any) -> None:
    rng = np.random.default_rng(0)
    for temperature in (1.0, 3.0):
        t, s = rng.normal(size=(2, 3, 7)) * 4
        found = distances.divergence(
            *(torch.tensor(x / temperature).log_softmax(-1) for x in (t, s)), direction
        )  # fmt: skip
        for i in range(3):
            p, q = softmax(t[i] / temperature), softmax(s[i] / temperature)
            assert found[i].item() == pytest.approx(kl(p, q) if direction == "forward" else kl(q, p), rel=1e-12)


def test_the_bucket_is_all_other_tokens() -> None:
    rng = np.random.default_rng(1)
    s = rng.normal(size=(4, 9)) * 3
    ids = torch.tensor([[8, 1, 3], [0, 1, 2], [5, 4, 7], [2, 6, 0]])
    found = distances.bucketed(torch.tensor(s), ids).exp()
    for i in range(4):
        p = softmax(s[i])
        top = [p[j] for j in ids[i].tolist()]
        assert found[i].tolist() == pytest.approx([*top, 1 - math.fsum(top)], rel=1e-9)
    sure = torch.tensor([[200.0, 0.0, 0.0, 0.0]], requires_grad=True)  # 1 less the rest is 0 in any precision
    rest = distances.bucketed(sure, torch.tensor([[0]]))[0, 1]
    assert rest.item() == pytest.approx(math.log(3) - 200)
    rest.backward()
    assert sure.grad is not None and bool(sure.grad.isfinite().all())


def test_inner_distances_are_the_formulas() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 1, 5, 4))
    found = distances.cosine(torch.tensor(a), torch.tensor(b))[0]
    for i in range(5):
        cos = math.fsum(a[0, i] * b[0, i]) / math.sqrt(math.fsum(a[0, i] ** 2) * math.fsum(b[0, i] ** 2))
        assert found[i].item() == pytest.approx(1 - cos, rel=1e-12)
    wide, narrow, heads = rng.normal(size=(1, 5, 12)), rng.normal(size=(1, 5, 6)), 2
    seen = torch.ones(5, 5, dtype=torch.bool).tril()[None].clone()
    seen[0, 3:, :3] = False  # two documents
    found = distances.relation(torch.tensor(wide), torch.tensor(narrow), heads, seen)[0]
    for i in range(5):
        visible = [j for j in range(5) if seen[0, i, j]]
        total = 0.0
        for head in range(heads):
            p, q = (
                softmax(np.array([x[0, i, c] @ x[0, j, c] / math.sqrt(d) for j in visible]))
                for x, d in ((wide, 6), (narrow, 3))
                for c in [slice(head * d, head * d + d)]
            )
            total += kl(p, q)
        assert found[i].item() == pytest.approx(total / heads, rel=1e-9, abs=1e-12)


# --- a step ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_first_loss_is_as_by_hand(small: Small, teacher: Artifact, tmp_path: Path, direction: Any) -> None:
    """In float64 from the same weights; all 40 rows are one batch, cut into micro-batches of 8."""
    fields = {"steps": 1, "global_batch": 40, "temperature": 2.0, "label_weight": 0.3, "direction": direction}
    ctx = context(tmp_path, micro_batch=8)
    found = curve(distilled(small, tmp_path, {"teacher": teacher}, ctx, **fields))
    ids = torch.tensor(load_from_disk(str(small.packed.path / "data"))["train"]["input_ids"])
    s, t = (AutoModelForCausalLM.from_pretrained(x.path).double().eval() for x in (small.model, teacher))
    with torch.no_grad():
        ours, theirs = s(ids).logits[:, :-1], t(ids).logits[:, :-1]
    label = torch.nn.functional.cross_entropy(ours.reshape(-1, ours.shape[-1]), ids[:, 1:].reshape(-1)).item()
    p, q = (x.div(2).log_softmax(-1) for x in (theirs, ours))
    p, q = (p, q) if direction == "forward" else (q, p)
    apart = 4 * torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item() / (40 * 15)
    assert found["label"] == [pytest.approx(label, abs=3e-6)]
    assert found["divergence"] == [pytest.approx(apart, abs=3e-6)]
    assert found["loss"] == [pytest.approx(0.3 * label + 0.7 * apart, abs=3e-6)]


@pytest.mark.parametrize(
    ("hidden", "kind", "more"),
    [
        ("relation", "llama", {}),
        ("relation", "gpt_neox", {"relation_heads": 2, "teacher_block": 1}),
        ("cosine", "", {}),
    ],
)
def test_inner_states_come_closer(
    small: Small, teacher: Artifact, tmp_path: Path, hidden: str, kind: str, more: dict[str, Any]
) -> None:
    if hidden == "cosine":  # needs the student's width
        teacher = Artifact(path=small.pretrain(tmp_path / "t", steps=2, seed=5, architecture=OLMO))
    elif kind == "gpt_neox":  # its projections are one tensor
        sizes = {**SIZES, "hidden_size": 48}
        teacher = Artifact(path=small.pretrain(tmp_path / "t", steps=2, architecture={"model_type": kind, **sizes}))
    out = distilled(
        small, tmp_path, {"teacher": teacher}, steps=12, global_batch=40, hidden=hidden, hidden_weight=1e3, **more
    )
    found = curve(out)["hidden"]
    assert 0 < found[-1] < 0.8 * found[0]


def test_the_student_goes_to_its_teacher(small: Small, teacher: Artifact, tmp_path: Path) -> None:
    found = curve(distilled(small, tmp_path, {"teacher": teacher}, steps=30, global_batch=20, label_weight=0.0))
    assert found["divergence"][-1] < 0.5 * found["divergence"][0]


def test_documents_do_not_see_each_other(small: Small, teacher: Artifact, tmp_path: Path) -> None:
    """With positions, a row of two documents gives what the documents give alone."""
    rows = load_from_disk(str(small.packed.path / "data"))["train"]["input_ids"]
    from tests.toolkit.training.small import dataset

    whole = dataset(tmp_path / "d", {"input_ids": rows[:8], "position_ids": [[*range(8), *range(8)]] * 8})
    cut = dataset(tmp_path / "c", {"input_ids": [half for r in rows[:8] for half in (r[:8], r[8:])]})
    one, two = (
        curve(distilled(small, tmp_path / n, {"teacher": teacher, "data": d}, steps=1, global_batch=b))
        for n, d, b in (("one", whole, 8), ("two", cut, 16))
    )
    for name in ("label", "divergence"):
        assert one[name] == pytest.approx(two[name], abs=3e-6)


# --- stored logits ---------------------------------------------------------------------------------------------------


def test_all_tokens_but_one_stored_are_the_whole_distribution(small: Small, teacher: Artifact, tmp_path: Path) -> None:
    """The bucket of all other tokens then is the last token; what is left is the rounding to half precision."""
    top = len(AutoModelForCausalLM.from_pretrained(teacher.path).lm_head.weight) - 1
    for direction in ("forward", "reverse"):
        fields = {"temperature": 2.0, "direction": direction, "global_batch": 40}
        saved = store(tmp_path / f"s {direction}", teacher, small.packed, top=top, temperature=2.0)
        one = curve(distilled(small, tmp_path / f"a {direction}", {"teacher": teacher}, **fields))
        two = curve(distilled(small, tmp_path / f"b {direction}", {"logits": saved}, **fields))
        assert two["divergence"] == pytest.approx(one["divergence"], rel=2e-3)
        assert two["label"] == pytest.approx(one["label"], abs=1e-4)


def test_stored_logits_are_the_teachers(small: Small, teacher: Artifact, tmp_path: Path) -> None:
    saved = StoredLogits(store(tmp_path, teacher, small.packed, top=5).path)
    ids = load_from_disk(str(small.packed.path / "data"))["train"]["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(teacher.path).double()
    for number in (0, 7, 39):
        top, log_probs = saved.row(number)
        with torch.no_grad():
            p = model(torch.tensor([ids[number]])).logits[0, :-1].softmax(-1)
        best = p.topk(5)
        assert top.tolist() == best.indices.tolist() and top.shape == (15, 5)
        assert np.exp(log_probs[:, :5].astype(float)) == pytest.approx(best.values.numpy(), rel=4e-3)
        assert np.exp(log_probs[:, 5].astype(float)) == pytest.approx(1 - best.values.sum(-1).numpy(), rel=4e-3)


def test_storing_goes_on_after_a_kill(
    small: Small, teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "SHARD_BYTES", 6 * 16 * 6 * 8)  # 8 rows a shard
    whole = store(tmp_path / "whole", teacher, small.packed, top=5)
    folder = tmp_path / "killed"
    ctx = Deadly(state=context(folder).state, step=20)
    ctx.resources = context(tmp_path / "r", micro_batch=4).resources
    pid = os.fork()
    if pid == 0:
        try:
            store(folder, teacher, small.packed, ctx, top=5)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert len(list((folder / "state" / "logits").glob("shard-*.parquet"))) == 2
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "state" / "logits").glob("shard-*")}
    made = store(again(folder), teacher, small.packed, top=5)
    for name, time in times.items():
        assert (folder / "state" / "logits" / name).stat().st_mtime_ns == time
    ours, theirs = StoredLogits(made.path), StoredLogits(whole.path)
    for number in range(40):
        for one, other in zip(ours.row(number), theirs.row(number), strict=True):
            assert one == pytest.approx(other, rel=1e-2)  # batches of another size round otherwise


# --- ranks and kills -------------------------------------------------------------------------------------------------


def test_two_ranks_under_zero2_compute_what_one_process_computes(
    small: Small, teacher: Artifact, tmp_path: Path
) -> None:
    fields = {"hidden": "relation", "temperature": 2.0}
    one = distilled(small, tmp_path / "one", {"teacher": teacher}, **fields)
    ctx = context(tmp_path / "two", processes=2, zero=2, micro_batch=2)
    two = distilled(small, tmp_path / "two", {"teacher": teacher}, ctx, **fields)
    for name in ("loss", "label", "divergence", "hidden"):
        assert curve(two)[name] == pytest.approx(curve(one)[name], abs=5e-6)
    for name, tensor in weights(two).items():
        torch.testing.assert_close(tensor, weights(one)[name], rtol=0, atol=5e-5)


def test_killed_it_ends_with_the_same_bytes(
    small: Small, teacher: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = store(tmp_path / "s", teacher, small.packed, top=9)
    fields = {"steps": 8, "keep_steps": [3]}
    whole = distilled(small, tmp_path / "whole", {"logits": saved}, **fields)
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "0")
    folder = tmp_path / "killed"
    for step in (2, 6):
        pid = os.fork()
        if pid == 0:
            try:
                ctx = Deadly(state=context(folder).state, step=step)
                distilled(small, folder, {"logits": saved}, ctx, **fields)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        again(folder)
    same(whole, distilled(small, folder, {"logits": saved}, **fields))


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0}, "lr is 0.0: a learning rate must be above 0"),
        ({"label_weight": 1.5}, "label_weight is 1.5: it is a share"),
        ({"label_weight": 1}, "nothing of the teacher is learned; use pretrain"),
        ({"temperature": 0}, "temperature is 0.0: it must be above 0"),
        ({"hidden": "cosine"}, "hidden states have 32 numbers and the teacher's 48"),
        ({"hidden": "cosine", "teacher_block": 1}, "teacher_block is 1 and hidden is cosine"),
        ({"hidden": "relation", "teacher_block": 3}, "teacher_block is 3 and the teacher has blocks 0 to 2"),
        ({"hidden": "relation", "relation_heads": 5}, "relation_heads 5 does not divide the 48 numbers"),
        ({"direction": "backward"}, "unknown value of 'direction' 'backward'"),
    ],
)
def test_refused(small: Small, teacher: Artifact, tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distilled(small, tmp_path, {"teacher": teacher}, **fields)


def test_refused_inputs(small: Small, teacher: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="either the input 'teacher' .* or the input 'logits'"):
        distilled(small, tmp_path / "none", {})
    saved = store(tmp_path / "s", teacher, small.packed, top=9)
    with pytest.raises(ValueError, match="either the input 'teacher' .* or the input 'logits'"):
        distilled(small, tmp_path / "both", {"teacher": teacher, "logits": saved})
    with pytest.raises(ValueError, match="temperature is 2.0 and the logits .* were stored at 1.0"):
        distilled(small, tmp_path / "t", {"logits": saved}, temperature=2.0)
    with pytest.raises(ValueError, match="stored logits have no inner states"):
        distilled(small, tmp_path / "h", {"logits": saved}, hidden="cosine")
    other = packed(tmp_path / "other", rows=39)
    with pytest.raises(ValueError, match="are not of the rows of split 'train': they were stored of 40 rows"):
        distilled(small, tmp_path / "d", {"logits": saved, "data": other})
    with pytest.raises(ValueError, match="holds no stored logits"):
        distilled(small, tmp_path / "l", {"logits": small.packed})
    with pytest.raises(ValueError, match="top is 300 and the model has 280 tokens"):
        store(tmp_path / "k", teacher, small.packed, top=300)


def test_a_teacher_with_another_tokenizer(small: Small, tmp_path: Path) -> None:
    tokens = Artifact(path=tokenizer(tmp_path / "tokens", extra=("<x>",)))
    other = Artifact(path=small.pretrain(tmp_path / "t", steps=1, inputs={"tokenizer": tokens}))
    message = r"teacher in .* has another tokenizer than the model .* \d+ tokens have other ids, such as"
    with pytest.raises(ValueError, match=message + ".*, or say `alignment: uld` in the spec"):
        distilled(small, tmp_path / "a", {"teacher": other})
    with pytest.raises(ValueError, match=message):
        distilled(small, tmp_path / "b", {"logits": store(tmp_path / "s", other, small.packed, top=9)})


@pytest.fixture(scope="module")
def foreign(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A teacher that reads bytes one by one, where the student has learned words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("foreign")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*alphabet, "<end>"])}
    bytes_ = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bytes_.pre_tokenizer, bytes_.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<end>").save_pretrained(folder / "tokenizer")
    tokens = Artifact(path=folder / "tokenizer")
    words = {**SIZES, "model_type": "llama", "hidden_size": 48, "max_position_embeddings": 128}
    return Artifact(path=small.pretrain(folder / "t", steps=6, architecture=words, inputs={"tokenizer": tokens}))


def test_a_tokenizer_and_another_meet_where_they_have_read_the_same(small: Small, foreign: Artifact) -> None:
    """Two documents, a character of two bytes whose tokens are apart, and one that the row ends within."""
    tok = AutoTokenizer.from_pretrained(small.tokenizer.path)
    first, second = tok("Anna was bé")["input_ids"], tok("Rome")["input_ids"]
    ids = [*first, 0, *second, tok("é")["input_ids"][0]]
    read = Alignment(small.tokenizer.path, foreign.path, 128).read(
        ids, [i in (0, len(first) + 1) for i in range(len(ids))]
    )
    theirs = AutoTokenizer.from_pretrained(foreign.path)
    assert theirs.decode(read.ids) == "Anna was bé<end>Rome" and len(read.ids) == 12 + 1 + 4
    assert read.positions == [*range(13), *range(4)]
    for number, at in enumerate(read.at[: len(first)]):
        text = tok.decode(ids[: number + 1])
        assert at == (NONE if "\ufffd" in text else len(text.encode()) - 1)
    assert NONE in read.at[: len(first)] and read.at[len(first)] == 12 and read.at[-1] == NONE
    assert read.at[-2] == len(read.ids) - 1
    with pytest.raises(ValueError, match="17 as the teacher reads it, and the teacher has 16 positions"):
        Alignment(small.tokenizer.path, foreign.path, 16).read(ids, [i == 0 for i in range(len(ids))])


def test_the_distance_of_sorted_probabilities_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    p, q = ([softmax(row) for row in rng.normal(size=(4, size)) * 3] for size in (9, 6))
    found = distances.by_rank(torch.tensor(np.array(p)), torch.tensor(np.array(q)))
    for i in range(4):
        one, other = sorted(p[i], reverse=True), [*sorted(q[i], reverse=True), 0, 0, 0]
        expected = math.fsum(abs(a - b) for a, b in zip(one, other, strict=True))
        assert found[i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("apart", [False, True], ids=["open", "kept apart"])
def test_a_teacher_with_another_tokenizer_and_an_alignment(
    small: Small, foreign: Artifact, tmp_path: Path, apart: bool
) -> None:
    """The first loss by hand in float64, one row at a time and without padding; and where nothing else counts, the
    student comes nearer."""
    share = 0.0 if apart else 0.25
    tok = AutoTokenizer.from_pretrained(small.tokenizer.path)
    texts = [f"Ann{'é' * (n % 3)} {n} was born. Otto lives in Rome." for n in range(16)]
    rows = [tok(text)["input_ids"][:19] for text in texts]
    rows = [[*row[:12], 0, *row[12:19]][:20] for row in rows]
    columns: dict[str, list[Any]] = {"input_ids": rows}
    if apart:
        columns["position_ids"] = [[*range(13), *range(7)] for _ in rows]
    data = dataset(tmp_path / "d", columns)
    fields = {"alignment": "uld", "global_batch": 16, "temperature": 2.0, "label_weight": share, "steps": 12}
    ctx = context(tmp_path / "r", micro_batch=4)
    found = curve(distilled(small, tmp_path / "r", {"teacher": foreign, "data": data}, ctx, **fields))
    s, t = (AutoModelForCausalLM.from_pretrained(x.path).double().eval() for x in (small.model, foreign))
    total, aligned, targets = 0.0, 0, 0
    for row in rows:
        starts = [i == 0 or (apart and i == 13) for i in range(20)]
        read = Alignment(small.tokenizer.path, foreign.path, None).read(row, starts)
        cuts = [0, 13, 20] if apart else [0, 20]
        ends = [0, read.at[12] + 1, len(read.ids)] if apart else [0, len(read.ids)]
        with torch.no_grad():
            ours = torch.cat([s(torch.tensor([row[a:b]])).logits[0] for a, b in zip(cuts, cuts[1:])]) / 2
            theirs = torch.cat([t(torch.tensor([read.ids[a:b]])).logits[0] for a, b in zip(ends, ends[1:])]) / 2
        wanted = [i for i in range(19) if not starts[i + 1]]
        targets += len(wanted)
        for i in wanted:
            if read.at[i] != NONE:
                aligned += 1
                total += distances.by_rank(theirs[read.at[i]].softmax(-1), ours[i].softmax(-1)).item()
    assert found["divergence"][0] == pytest.approx(total / targets, abs=3e-6)
    assert found["aligned"][0] == pytest.approx(aligned / targets, abs=1e-6) and 0.8 < aligned / targets < 1
    total = share * found["label"][0] + (1 - share) * found["divergence"][0]
    assert found["loss"][0] == pytest.approx(total, abs=3e-6)
    assert share or found["divergence"][-1] < found["divergence"][0]


def test_an_alignment_is_refused_where_it_means_nothing(small: Small, teacher: Artifact, tmp_path: Path) -> None:
    for more in ({"direction": "reverse"}, {"hidden": "cosine"}):
        with pytest.raises(ValueError, match="alignment is uld, .* leave both out"):
            distilled(small, tmp_path / "a", {"teacher": teacher}, alignment="uld", **more)
    saved = store(tmp_path / "s", teacher, small.packed, top=9)
    with pytest.raises(ValueError, match="alignment is uld: stored logits are of the student's own tokens"):
        distilled(small, tmp_path / "b", {"logits": saved}, alignment="uld")


def test_losses_are_those_of_pretraining_where_only_labels_count(
    small: Small, teacher: Artifact, tmp_path: Path
) -> None:
    """label_weight close to 1: the label loss, the order of rows and the optimizer are pre-training's."""
    plain = small.pretrain(tmp_path / "p", inputs={"model": small.model}, lr=1e-2)
    near = distilled(small, tmp_path / "d", {"teacher": teacher}, label_weight=1 - 1e-9)
    assert curve(near)["label"] == pytest.approx(losses(plain), abs=5e-6)
