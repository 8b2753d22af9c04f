"""The Trainer of distillation: a student, and beside it a frozen teacher or what was stored of one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from toolkit.checkpoints.check import read_config
from toolkit.generation.stored_logits import StoredLogits
from toolkit.training import distances
from toolkit.training.alignment import NONE, Alignment
from toolkit.training.engine import load as load_model
from toolkit.training.exact import Exact
from toolkit.training.turns import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset as Rows

    from toolkit.training.engine import Build, Load
    from toolkit.training.methods.distill import Spec

FORWARD = ("input_ids", "attention_mask", "position_ids")
SEPARATE, FUSED = ("q_proj", "k_proj", "v_proj"), "query_key_value"


def student(
    spec: "Spec", rows: "Rows", vocab: int, source: Path, teacher: Path | None, stored: StoredLogits | None
) -> "Build":
    """What builds the Trainer of `spec`, for the engine; exactly one of teacher and stored is given."""
    from toolkit.training.methods.pretrain import collator

    collate, alignment = collator(vocab), None
    if spec.alignment != "none":
        assert teacher is not None
        limit = getattr(read_config(teacher).get_text_config(), "max_position_embeddings", None)
        alignment = Alignment(source, teacher, limit)

    def with_logits(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        made: dict[str, torch.Tensor] = collate(batch)
        if "top" in batch[0]:
            made["top"] = torch.stack([row["top"] for row in batch])
            made["top_log_probs"] = torch.stack([row["top_log_probs"] for row in batch])
        return made if alignment is None else made | _as_the_teacher_reads(alignment, made)

    def build(arguments: dict[str, Any], load: "Load") -> Exact:
        # Before there are TrainingArguments: those of ZeRO-3 would shard the teacher, and nothing gathers it again.
        frozen = None if teacher is None else load_model(teacher).eval().requires_grad_(False)
        args = TrainingArguments(**arguments, remove_unused_columns=False)
        model: Any = load()
        model.config.use_cache = False
        data: Any = rows if stored is None else _Joined(rows, stored)
        trainer = Student(model=model, args=args, train_dataset=data, data_collator=with_logits)
        trainer.set(spec, None if frozen is None else frozen.to(args.device))  # type: ignore[arg-type]
        return trainer

    return build


def _as_the_teacher_reads(alignment: Alignment, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`teacher_at` (B, L), which the student's tokens are aligned to, and what the teacher is given (B, L')."""
    kept_apart = "position_ids" in batch
    first = batch["position_ids"] == 0 if kept_apart else torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    first[:, 0] = True
    read = [alignment.read(*row) for row in zip(batch["input_ids"].tolist(), first.tolist(), strict=True)]
    longest = max(len(row.ids) for row in read)
    ids, mask, positions = (torch.zeros(len(read), longest, dtype=torch.long) for _ in range(3))
    for at, row in enumerate(read):
        size = len(row.ids)
        ids[at, :size], mask[at, :size] = torch.tensor(row.ids), 1
        positions[at] = torch.arange(longest)  # what fills up is seen by nothing before it
        positions[at, :size] = torch.tensor(row.positions)
    given = {"teacher_position_ids": positions} if kept_apart else {"teacher_attention_mask": mask}
    return {"teacher_at": torch.tensor([row.at for row in read]), "teacher_input_ids": ids, **given}


class _Joined(Dataset[dict[str, Any]]):
    """Rows of token ids, each with what was stored of the teacher."""

    def __init__(self, rows: "Rows", stored: StoredLogits) -> None:
        self.rows, self.stored = rows, stored

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        top, log_probs = self.stored.row(number)
        return {**self.rows[number], "top": torch.tensor(top), "top_log_probs": torch.tensor(log_probs)}


class Student(Exact):
    """Exact with the loss of `toolkit.training.methods.distill`; what it is made of is logged beside it."""

    loss_is_scaled_for_ga = True  # by the target tokens of the global batch

    def set(self, spec: "Spec", teacher: PreTrainedModel | None) -> None:
        """Once, after construction."""
        self.spec, self.teacher = spec, teacher
        self.parts: dict[str, torch.Tensor] = {}
        if spec.hidden == "cosine":
            assert teacher is not None
            ours, theirs = (int(m.config.get_text_config().hidden_size) for m in (self.model, teacher))
            if ours != theirs:
                raise ValueError(
                    f"hidden is cosine, the student's hidden states have {ours} numbers and the teacher's {theirs}:"
                    " only equal widths have an angle between them; hidden: relation compares any"
                )
        if spec.hidden == "relation":
            assert teacher is not None
            self.ours = _projections(self.model, None)
            self.theirs = _projections(teacher, spec.teacher_block)
            text = self.model.config.get_text_config()
            self.heads = spec.relation_heads or int(getattr(text, "num_key_value_heads", text.num_attention_heads))

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss of one micro-batch, such that those of all micro-batches and ranks add up to the global batch's."""
        spec, labels = self.spec, inputs["labels"][:, 1:]
        given = {name: inputs[name] for name in FORWARD if name in inputs} | {"use_cache": False}
        if spec.hidden == "cosine":
            given["output_hidden_states"] = True
        ours: list[torch.Tensor] = []
        with _captured(self.ours if spec.hidden == "relation" else [], ours):
            output = model(**given)
        logits = output.logits[:, :-1].float()
        keep = labels != IGNORED
        scale = 1 / num_items_in_batch
        parts = {"label": F.cross_entropy(logits[keep], labels[keep], reduction="sum") * scale}
        if self.teacher is None:
            theirs = inputs["top_log_probs"].float().log_softmax(-1)  # stored in half precision: they add up to 1 again
            near = distances.bucketed(logits / spec.temperature, inputs["top"])
            apart = distances.divergence(theirs, near, spec.direction)
        elif spec.alignment != "none":
            told = {name: inputs[f"teacher_{name}"] for name in FORWARD if f"teacher_{name}" in inputs}
            seen, _ = self._ask(told | {"use_cache": False})
            at = inputs["teacher_at"][:, :-1]
            both = keep & (at != NONE)
            parts["aligned"] = both.sum() * scale
            p, q = (
                x.float().div(spec.temperature).softmax(-1)
                for x in (seen.logits[both.nonzero()[:, 0], at[both]], logits[both])
            )
            apart = torch.zeros_like(keep, dtype=q.dtype).masked_scatter(both, distances.by_rank(p, q))
        else:
            seen, states = self._ask(given)
            size = min(seen.logits.shape[-1], logits.shape[-1])  # beyond both there are rows that pad an embedding
            p, q = (x[..., :size] / spec.temperature for x in (seen.logits[:, :-1].float(), logits))
            apart = distances.divergence(p.log_softmax(-1), q.log_softmax(-1), spec.direction)
            if spec.hidden != "none":
                inner = self._inner(inputs, output, seen, ours, states)
                parts["hidden"] = inner[:, :-1][keep].sum() * scale
        power = 2 if spec.alignment == "none" else 0
        parts["divergence"] = apart[keep].sum() * scale * spec.temperature**power
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, torch.zeros_like(value)) + value.detach()
        loss = spec.label_weight * parts["label"] + (1 - spec.label_weight) * parts["divergence"]
        if "hidden" in parts:
            loss = loss + spec.hidden_weight * parts["hidden"]
        return loss * self.args.world_size  # ranks' gradients are averaged, and num_items_in_batch counts all of them

    def _ask(self, given: dict[str, Any]) -> tuple[Any, list[torch.Tensor]]:
        """The teacher's output for the same tokens, and its projections if their relations are compared."""
        assert self.teacher is not None
        states: list[torch.Tensor] = []
        bf16 = self.spec.precision == "bf16"  # said here: not every layout of the student would say it
        with torch.no_grad(), torch.autocast(self.args.device.type, torch.bfloat16, enabled=bf16):
            with _captured(self.theirs if self.spec.hidden == "relation" else [], states):
                return self.teacher(**given), states

    def _inner(
        self, inputs: Any, output: Any, seen: Any, ours: list[torch.Tensor], theirs: list[torch.Tensor]
    ) -> torch.Tensor:
        """(B, L): how far inner states are apart."""
        if self.spec.hidden == "cosine":
            return distances.cosine(seen.hidden_states[-1].float(), output.hidden_states[-1].float())
        visible = _visible(inputs)
        width = _split(theirs, self.teacher), _split(ours, self.model)
        for vectors in (*width[0], *width[1]):
            if vectors.shape[-1] % self.heads:
                raise ValueError(
                    f"relation_heads {self.heads} does not divide the {vectors.shape[-1]} numbers of a projection"
                )
        pairs = zip(*width, strict=True)
        each = [distances.relation(t.float(), s.float(), self.heads, visible) for t, s in pairs]
        return torch.stack(each).sum(0)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the parts of the step's loss, of all ranks."""
        if "loss" in logs:
            for name in sorted(self.parts):
                value = self.accelerator.reduce(self.parts[name], reduction="sum")
                logs[name] = float(value)
            self.parts = {}
        super().log(logs, *args, **kwargs)


def _visible(inputs: Any) -> torch.Tensor:
    """(B, L, L): what each position sees, itself included: no later one and no other document."""
    length = inputs["input_ids"].shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=inputs["input_ids"].device).tril()
    if "position_ids" not in inputs:
        return causal.expand(inputs["input_ids"].shape[0], -1, -1)
    document = (inputs["position_ids"] == 0).cumsum(1)
    return causal & (document[:, :, None] == document[:, None, :])


def _projections(model: Any, block: int | None) -> list[torch.nn.Module]:
    """The modules that make queries, keys and values in one block (None: the last), one by one or all in one."""
    blocks = int(model.config.get_text_config().num_hidden_layers)
    if block is not None and block >= blocks:
        raise ValueError(f"teacher_block is {block} and the teacher has blocks 0 to {blocks - 1}")
    number = blocks - 1 if block is None else block
    found = {
        name.rsplit(".", 1)[1]: module for name, module in model.named_modules() if f".layers.{number}." in f".{name}"
    }
    if all(name in found for name in SEPARATE):
        return [found[name] for name in SEPARATE]
    if FUSED in found:
        return [found[FUSED]]
    raise ValueError(
        f"hidden is relation, and a {model.config.model_type} has neither {', '.join(SEPARATE)} nor {FUSED} in its"
        " blocks: use hidden: cosine, or none"
    )


def _split(states: list[torch.Tensor], model: Any) -> list[torch.Tensor]:
    """Queries, keys and values (B, L, width); a fused projection holds them head by head."""
    if len(states) > 1:
        return states
    heads = int(model.config.get_text_config().num_attention_heads)
    batch, length, _ = states[0].shape
    fused = states[0].view(batch, length, heads, 3, -1)
    return [fused[:, :, :, i].reshape(batch, length, -1) for i in range(3)]


@contextmanager
def _captured(modules: list[torch.nn.Module], into: list[torch.Tensor]) -> Iterator[None]:
    """Within, what the modules put out is appended to `into`, in their order of call."""
    hook: Callable[..., None] = lambda module, given, output: into.append(output)  # noqa: E731
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
