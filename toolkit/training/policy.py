"""Reinforcement learning of a policy from rewards: what `rloo` and `grpo` share. TRL generates and computes the losses.

A step takes prompts, samples several answers to each, rewards them and moves the policy once (num_iterations 1, so that
answers are always its own). Rewards are a reward model's (several are averaged) or a checker's. The reference is the
model that training begins with.

Resumption: saves hold weights, optimizer, schedule, the random state of every rank and the place in the order of the
prompts, and are made between steps; answers are sampled anew from the restored state. On one process, and on as many
ranks as before, a resumed run is the undisturbed one to the bit on a CPU; on another number of ranks it goes on, with
other answers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.generation.rows import Template
from toolkit.stage import Artifact, Context
from toolkit.training.recipe import Schedule, Stepped

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from toolkit.training.engine import Load
    from toolkit.training.exact import Exact
    from toolkit.training.rewards import Judge

    Reward = Callable[..., list[float]]

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Spec(Stepped):
    """global_batch: answers a step, of `answers` to each prompt. beta: weight of the KL to the reference (0: none).

    max_new_tokens, temperature: of the answers. max_prompt: tokens; longer prompts are dropped and counted.
    checker: rewards 1 or 0 instead of a reward model: `exact` compares an answer with `gold` up to the space around
    it, `number` the last number in each.
    """

    max_new_tokens: int
    answers: int = 4
    beta: float = 0.05
    temperature: float = 1.0
    max_prompt: int = 512
    template: Template = "plain"
    checker: Literal["none", "exact", "number"] = "none"
    schedule: Schedule = "constant"
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answers < 2:
            raise ValueError(
                f"answers is {self.answers}: an answer is judged against others to the same prompt: 2 at least"
            )
        if self.global_batch % self.answers:
            raise ValueError(
                f"global_batch is {self.global_batch} answers a step, {self.answers} to each prompt: it must be a"
                f" multiple of {self.answers}"
            )
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta!r}: it must not be negative (0.05 is usual, 0 leaves the KL out)")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}: answers are sampled, so it must be above 0")
        for name in ("max_new_tokens", "max_prompt"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """model: the policy. data: rows with `prompt` (and `gold` or `completion`, for a checker). reward: models."""

    model: Artifact
    data: Artifact
    reward: dict[str, Artifact] = field(default_factory=dict)


def improve(spec: Spec, inputs: Inputs, out: Path, ctx: Context, kind: Literal["RLOO", "GRPO"]) -> dict[str, Any]:
    """Fill `out` with the policy, `steps/<N>/` and `loss.parquet` (with `kl`, `reward`, `length`, `entropy` a step).

    Raises:
        ValueError: a reward model and a checker both or neither, what is no reward model, no prompt that fits, and
            what the engine says.
    """
    from toolkit.checkpoints.check import check_model
    from toolkit.checkpoints.folders import load_tokenizer
    from toolkit.training.engine import Run, settle, train

    if bool(inputs.reward) == (spec.checker != "none"):
        raise ValueError(
            f"{spec.method} needs either the input 'reward' (one reward model, or several as reward.NAME) or a checker"
        )
    settle()
    source = inputs.model.path
    check_model(source)
    tokenizer = load_tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token (eos_token): answers could not end; set one")
    judges = [artifact.path for _, artifact in sorted(inputs.reward.items())]
    rows, counts = _prompts(spec, inputs.data.path, source, tokenizer)
    names = {"reward": "reward", "length": "completions/mean_length", "entropy": "entropy"}
    plan = Run(
        recipe=spec.recipe(),
        source=source,
        tokenizer=source,
        rows=rows,
        tokens_a_row=counts["longest"] + spec.max_new_tokens,
        build=lambda arguments, load: _trainer(spec, arguments, load, rows, tokenizer, judges, kind),
        diverges=False,  # its size says nothing: it is about 0 where answers are as good as their baseline
        traced=names | ({"kl": "kl"} if spec.beta else {}),
    )
    return train(plan, out, ctx) | counts


def _prompts(
    spec: Spec, data: Path, source: Path, tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[Dataset, dict[str, int]]":
    """Rows of `prompt` and, for a checker, `gold`; those that are too long are left out."""
    from toolkit.checkpoints.check import read_config
    from toolkit.data.splits import open_split
    from toolkit.generation.rows import gold_column, tokenize

    rows = open_split(data, spec.split, ["prompt"])
    lengths = [len(row.tokens) for row in tokenize(tokenizer, rows["prompt"][:], spec.template)]
    limit = getattr(read_config(source).get_text_config(), "max_position_embeddings", None)
    most = spec.max_prompt if limit is None else min(spec.max_prompt, limit - spec.max_new_tokens)
    kept = [i for i, length in enumerate(lengths) if length <= most]
    if not kept:
        raise ValueError(
            f"all {len(rows)} prompts are longer than {most} tokens: raise max_prompt, or shorten the data"
        )
    columns = {"prompt": "prompt"} | ({"gold": gold_column(rows)} if spec.checker != "none" else {})
    taken = rows.select(kept, keep_in_memory=True).select_columns(sorted(set(columns.values())))
    taken = taken.rename_columns({old: new for new, old in columns.items() if new != old})
    return taken, {"rows": len(kept), "dropped": len(rows) - len(kept), "longest": max(lengths[i] for i in kept)}


def checked(checker: str, answer: str, gold: str) -> float:
    """1.0 for a right answer, 0.0 for a wrong one."""
    if checker == "exact":
        return float(answer.strip() == gold.strip())
    ours, theirs = (NUMBER.findall(text) for text in (answer, gold))
    if not theirs:
        raise ValueError(f"checker is number and there is none in the gold answer {gold!r}: use exact")
    return float(bool(ours) and float(ours[-1].replace(",", "")) == float(theirs[-1].replace(",", "")))


def rewards_of(spec: Spec, judges: "list[Judge]") -> "Reward":
    """The function that TRL calls with prompts, answers and the columns of the rows."""
    from toolkit.training.turns import renderer

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **more: Any) -> list[float]:
        if spec.checker != "none":
            return [checked(spec.checker, a, gold) for a, gold in zip(completions, more["gold"], strict=True)]
        totals = [0.0] * len(prompts)
        for judge in judges:
            eos = judge.tokenizer.eos_token_id
            pairs = renderer(judge.tokenizer, spec.template)({"prompt": prompts, "completion": completions})
            rows = []
            for (prompt, answer), ids in zip(pairs, completion_ids, strict=True):
                full = prompt + (answer or [eos])
                cut = len(ids) == spec.max_new_tokens and eos not in ids  # it did not end: no end is made up for it
                rows.append(full[:-1] if cut and full[-1] == eos else full)
            for i, score in enumerate(judge.scores(rows, 1 << 14)):
                totals[i] += score / len(judges)
        return totals

    return reward


def _trainer(
    spec: Spec,
    arguments: dict[str, Any],
    load: "Load",
    rows: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    judges: list[Path],
    kind: str,
) -> "Exact":
    import trl

    from toolkit.generation.rows import tokenize
    from toolkit.training.exact import Exact
    from toolkit.training.order import Groups
    from toolkit.training.rewards import judge

    base: Any = getattr(trl, f"{kind}Trainer")

    class Tuner(Exact, base):  # type: ignore[misc]
        """TRL's answers and loss, the engine's order and saves, prompts with the ids that evaluation gives them."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return Groups(self.order, spec.answers, spec.global_batch, self.args.gradient_accumulation_steps)

        def _tokenize_prompts(self, prompts: list[str]) -> Any:
            return [list(row.tokens) for row in tokenize(tokenizer, prompts, spec.template)], None, {}

    more: Mapping[str, Any] = {"loss_type": "dapo", "scale_rewards": "group"} if kind == "GRPO" else {}
    asked = [judge(folder, "cpu") for folder in judges]  # before the arguments: those of ZeRO-3 would shard them
    args = getattr(trl, f"{kind}Config")(
        **arguments,
        **more,
        num_generations=spec.answers,
        max_completion_length=spec.max_new_tokens,
        temperature=spec.temperature,
        beta=spec.beta,
        num_iterations=1,
        gradient_checkpointing=False,
        disable_dropout=True,
        remove_unused_columns=False,
    )
    for member in asked:
        member.model.to(args.device)
    given: dict[str, Any] = {"reward_funcs": rewards_of(spec, asked), "processing_class": tokenizer}
    return Tuner(model=load(), args=args, train_dataset=rows, **given)
