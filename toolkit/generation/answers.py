"""Answers of a model to rows of tokens, by the engine that the spec names.

`hf` is transformers' generate, in this environment. `vllm` is vLLM in an environment of its own, since it needs another
torch: `resources.vllm` (of the profile or the stage) names the python there. Which one is used is part of an
experiment: their kernels round differently, and a sampled answer is drawn in another way.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from toolkit.checkpoints.check import read_config
from toolkit.checkpoints.folders import load_tokenizer
from toolkit.generation import vllm_engine
from toolkit.generation.engine import Answer, Decoding, Engine
from toolkit.generation.models import Precision, context_length, end_tokens, load
from toolkit.generation.rows import Row
from toolkit.generation.spread import Part, Work, spread
from toolkit.stage import Context

EngineName = Literal["hf", "vllm"]


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who is asked: the model of a folder, its precision, and the engine that runs it."""

    model: Path
    precision: Precision
    engine: EngineName
    ctx: Context

    def __post_init__(self) -> None:
        if self.engine == "vllm":
            vllm_engine.check_python(self.ctx.resources.vllm)

    def ask(
        self, rows: Sequence[Row], how: Decoding, name: str, *, before: int = 0, total: int | None = None,
        unit: str = "row",
    ) -> list[Answer]:  # fmt: skip
        """The answers, sorted by id; kept in `state/<name>`. The model's own end tokens end them too.

        Raises:
            Interrupted: finished shards stay. ValueError: a model that cannot be used, no vLLM where it is asked for.
        """
        tokenizer = load_tokenizer(self.model)
        how = dataclasses.replace(how, ends=tuple(sorted({*how.ends, *end_tokens(self.model, tokenizer)})))
        resources = self.ctx.resources

        def hf(rank: int) -> Work[Answer]:
            return Engine(*load(self.model, self.precision, resources.threads, rank), how).answer

        def vllm(rank: int) -> Work[Answer]:
            words = vllm_engine.settings(self.model, self.precision, context_length(read_config(self.model)), how)
            return vllm_engine.Driver(resources, rank, words, tokenizer, how, self.ctx.state).answer

        part = Part(
            name=name, rows=rows, kind=Answer, build=vllm if self.engine == "vllm" else hf,
            budget=vllm_engine.BATCH_TOKENS if self.engine == "vllm" else resources.batch_tokens >> resources.halvings,
            new_tokens=how.max_new_tokens, whole=self.engine == "vllm", before=before, total=total, unit=unit,
        )  # fmt: skip
        return spread(part, self.ctx)
