"""Knowledge distillation: a student learns the distributions of a teacher (arXiv 1503.02531), and its inner states.

loss = label_weight x cross-entropy + (1 - label_weight) x temperature^2 x KL + hidden_weight x distance of inner
states, each a mean over the target tokens of the global batch. The teacher is a model that runs along, or what
`job: generate`, `recipe: logits` stored of one: its likeliest tokens and one bucket for all others.

Data rows are packed, as for `pretrain`. Teacher and student must share a tokenizer, because their distributions are
over tokens, unless the spec names an `alignment`. `uld` (universal logit distillation, arXiv 2402.12030) puts in the
place of temperature^2 x KL the distance of the sorted probabilities, wherever both have read the same text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toolkit.stage import Artifact, Context
from toolkit.training.recipe import Stepped

ALIGNMENT = ", or say `alignment: uld` in the spec, which compares distributions without their tokens"


@dataclass(frozen=True, kw_only=True)
class Spec(Stepped):
    """Fields of `Stepped`, as for `pretrain`. label_weight: share of the label loss, from 0 (the teacher only) up to 1.

    temperature: both distributions are softened by it. direction: `forward` is KL(teacher || student), `reverse`
    KL(student || teacher).
    hidden: `cosine` compares the last hidden states (DistilBERT; equal widths), `relation` how the queries, keys and
    values of a block relate (MiniLMv2; any widths): the student's last block and the teacher's `teacher_block` (from 0;
    its last by default), cut into `relation_heads` (by default the student's number of key-value heads).
    alignment: for a teacher with another tokenizer; see the module.
    """

    label_weight: float = 0.5
    temperature: float = 1.0
    direction: Literal["forward", "reverse"] = "forward"
    hidden: Literal["none", "cosine", "relation"] = "none"
    hidden_weight: float = 1.0
    teacher_block: int | None = None
    relation_heads: int | None = None
    final_lr_ratio: float = 0.0
    alignment: Literal["none", "uld"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alignment == "uld" and (self.direction != "forward" or self.hidden != "none"):
            raise ValueError(
                f"alignment is uld, direction {self.direction} and hidden {self.hidden}: the distance of sorted"
                " probabilities has no direction, and inner states stand at other positions; leave both out"
            )
        if not 0 <= self.label_weight <= 1:
            raise ValueError(f"label_weight is {self.label_weight!r}: it is a share, from 0 to 1")
        if self.label_weight == 1 and self.hidden == "none":
            raise ValueError("label_weight is 1 and hidden is none: nothing of the teacher is learned; use pretrain")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}: it must be above 0 (1 leaves distributions as is)")
        if not self.hidden_weight > 0:
            raise ValueError(f"hidden_weight is {self.hidden_weight!r}: it must be above 0; hidden: none leaves it out")
        for name, needs in (("teacher_block", 0), ("relation_heads", 1)):
            value = getattr(self, name)
            if value is not None and self.hidden != "relation":
                raise ValueError(f"{name} is {value} and hidden is {self.hidden}: it means something for relation only")
            if value is not None and value < needs:
                raise ValueError(f"{name} is {value}: it must be at least {needs}")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: the student, with its tokenizer. data: packed rows. teacher: a model, or logits: stored of one."""

    model: Artifact
    data: Artifact
    teacher: Artifact | None = None
    logits: Artifact | None = None


def run(spec: Spec, inputs: Inputs, out: Path, ctx: Context) -> dict[str, Any]:
    """Fill `out` with the student, `steps/<N>/` and `loss.parquet` (`label`, `divergence`, `hidden` or `aligned` too).

    Raises:
        ValueError: teacher and logits both or neither given, another tokenizer, logits of other rows or at another
            temperature, shapes that cannot be compared, and what the engine says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.data.splits import open_split
    from toolkit.training.engine import Run, settle, train
    from toolkit.training.methods.pretrain import row_length
    from toolkit.training.student import student

    if (inputs.teacher is None) == (inputs.logits is None):
        raise ValueError("distill needs either the input 'teacher' (a model) or the input 'logits' (stored of one)")
    settle()
    source = inputs.model.path
    summary = check_model(source)
    rows = open_split(inputs.data.path, spec.split, ["input_ids"])  # packed rows: prepare with `dataset: packed`
    length = row_length(rows, source)
    if inputs.teacher is not None:
        check_model(inputs.teacher.path)
        if spec.alignment == "none":
            same_tokens(source, inputs.teacher.path, remedy=ALIGNMENT)
            row_length(rows, inputs.teacher.path)
    stored = None if inputs.logits is None else _stored(spec, inputs.logits.path, source, rows)
    more = {"hidden": spec.hidden != "none", "aligned": spec.alignment != "none"}
    parts = ("label", "divergence", *(name for name, wanted in more.items() if wanted))
    plan = Run(
        recipe=spec.recipe(),
        source=source,
        tokenizer=source,
        rows=rows,
        tokens_a_row=length,
        build=student(spec, rows, summary.vocab_size, source, inputs.teacher.path if inputs.teacher else None, stored),
        traced={name: name for name in parts},
    )
    return train(plan, out, ctx) | {"parameters": summary.parameters, "rows": len(rows), "row_tokens": length}


def same_tokens(student: Path, teacher: Path, *, role: str = "teacher", remedy: str = "") -> None:
    """Refuse a teacher (or whatever its role is) whose tokens have other ids than the student's. remedy: beside taking
    another.

    Raises:
        ValueError: they have.
    """
    from toolkit.checkpoints.folders import vocabulary

    ours, theirs = vocabulary(student), vocabulary(teacher)
    different = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if different:
        raise ValueError(
            f"the {role} in {teacher} has another tokenizer than the model in {student} that is trained:"
            f" {len(different)} tokens have other ids, such as {different[0]!r}; its distributions are over other"
            f" tokens. Take a {role} with the same tokenizer{remedy}"
        )


def _stored(spec: Spec, logits: Path, student: Path, rows: Any) -> Any:
    from toolkit.generation.stored_logits import StoredLogits

    if spec.alignment != "none":
        raise ValueError(
            f"alignment is {spec.alignment}: stored logits are of the student's own tokens; give the teacher"
        )
    if spec.hidden != "none":
        raise ValueError(f"hidden is {spec.hidden}: stored logits have no inner states; give the teacher itself")
    stored = StoredLogits(logits)
    same_tokens(student, logits)
    if stored.temperature != spec.temperature:
        raise ValueError(
            f"temperature is {spec.temperature} and the logits in {logits} were stored at {stored.temperature}: what is"
            " in the bucket of all other tokens cannot be softened afterwards; store them at that temperature"
        )
    if stored.digest != rows._fingerprint or stored.rows != len(rows):
        raise ValueError(
            f"the logits in {logits} are not of the rows of split {spec.split!r}: they were stored of {stored.rows}"
            " rows with other content; store those of this data"
        )
    return stored
