"""Run lm-eval tasks on a model, all in one process or spread over several, with the seeds of its command line.

lm-eval asks for all answers of a kind at once. `Harness` is its own model class (HFLM), with three things changed: the
batches are known beforehand (`batches`), so that they can be shared out among processes; what was answered before is
not computed again (`answers`); and a batch for which memory runs out is halved. How a batch is computed is lm-eval's.
"""

import dataclasses
import gc
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, set_torch_seed

from toolkit.checkpoints.folders import load_tokenizer
from toolkit.evaluation.answers import Answers, generation_key, likelihood_key, within
from toolkit.evaluation.batches import Batch, of_generations, of_likelihoods, of_windows
from toolkit.evaluation.memory import Room, fitting, room
from toolkit.evaluation.tasks import Loaded
from toolkit.failures import Failure, classify
from toolkit.generation import models
from toolkit.stage import Interrupted, Resources
from toolkit.training.adapters import BESIDE
from toolkit.training.ranks import StopFlag, run_ranks

if TYPE_CHECKING:
    from lm_eval.api.task import Task

RANDOM_SEED, NUMPY_SEED, TORCH_SEED = 0, 1234, 1234  # the defaults of `lm_eval run --seed`


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model folder and how it is read. max_length: tokens of context, the model's own if None."""

    folder: Path
    precision: models.Precision = "auto"
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class Watch:
    """report: told (finished, all) requests. stop: asked after every batch; if it says so, `Interrupted` is raised."""

    report: Callable[[int, int], None]
    stop: Callable[[], bool]


def evaluate(
    model: Model,
    loaded: Loaded,
    answers: Answers,
    resources: Resources,
    watch: Watch,
    *,
    limit: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """What `lm_eval.evaluator.evaluate` returns: `results`, `samples`, `n-samples` and more; and `truncated`: by task,
    the requests that were longer than the context, of which lm-eval drops the first tokens.

    limit: the first rows of each task. chat: prompts as chat turns, demonstrations as earlier ones.

    Raises:
        Interrupted: `watch.stop`; what was answered is kept.
        ValueError: a model or tokenizer that cannot be used.
        RankFailed: a process of several died.
    """
    lm = _here(model, answers, resources) if resources.processes == 1 else _planning(model, answers, resources)
    lm.watch, lm.tasks = watch, tuple(loaded.tasks.values())
    results = evaluator.evaluate(
        lm=lm,
        task_dict={"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)},
        limit=limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
    )
    assert results is not None, "only rank 0 runs this"
    answers.share(unless=lm.sampled)
    return {**results, "truncated": _truncated(lm, loaded.tasks.items())}


def _here(model: Model, answers: Answers, resources: Resources) -> "Harness":
    """The model on this process' device."""
    _seed()
    weights, tokenizer = models.load(model.folder, model.precision, resources.threads)
    return Harness(weights, tokenizer, model, answers, resources)


def _planning(model: Model, answers: Answers, resources: Resources) -> "Harness":
    """All but the weights: this process sends the batches to others, and may not use a GPU before it forks them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    _seed()
    if not (model.folder / "config.json").is_file():
        raise ValueError(f"{model.folder} holds no model: there is no config.json; give a model artifact")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model.folder, local_files_only=True))
    return Harness(empty, load_tokenizer(model.folder), model, answers, resources)


def _seed() -> None:
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    set_torch_seed(TORCH_SEED)


class Harness(HFLM):
    """lm-eval's model class, with batches that are planned, answered elsewhere or before, and halved.

    sampled: keys of answers that were drawn, and are no other cell's.
    """

    watch: Watch
    tasks: "Sequence[Task]"

    def __init__(self, weights: Any, tokenizer: Any, model: Model, answers: Answers, resources: Resources) -> None:
        super().__init__(pretrained=weights, tokenizer=tokenizer, batch_size=1, max_length=model.max_length)
        self.source, self.answers, self.resources = model, answers, resources
        alone = (model.folder / BESIDE).is_dir()  # what lies before the text must not be padded away from it
        self.room: Room = room(dataclasses.replace(resources, micro_batch=1) if alone else resources)
        self.fits: int | None = None  # tokens of a batch, as far as is known
        self.sampled: set[bytes] = set()
        self.finished = 0

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        return self._likelihoods(requests, of_likelihoods(requests, self.room))

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """As lm-eval's: the sum over windows that do not overlap in what they score."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        sums = [0.0] * len(requests)
        found = self._likelihoods(windows, of_windows(windows, self.room))
        for owner, (likelihood, _) in zip(owners, found, strict=True):
            sums[owner] += likelihood
        return sums

    def _likelihoods(self, requests: Sequence[Any], batches: Sequence[Batch]) -> list[Any]:
        keys = [likelihood_key(context, continuation) for _, context, continuation in requests]

        def compute(numbers: list[int]) -> list[Any]:
            return HFLM._loglikelihood_tokens(self, [requests[i] for i in numbers], disable_tqdm=True)

        return self._answered(keys, batches, compute)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """As lm-eval's, which stops at the settings' `until` and at the end of a text."""
        asked = [request.args for request in requests]
        for request in requests:
            if (new := request.args[1].get("max_gen_toks", self.max_gen_toks)) >= self.max_length:
                raise ValueError(
                    f"task {request.task_name!r} may write {new} tokens, and the context has only {self.max_length}: no"
                    " prompt fits; leave the task out, or evaluate a model with a longer context"
                )
        lengths = [len(self.tok_encode(prompt)) for prompt, _ in asked]
        batches = of_generations(asked, lengths, self.room, self.max_gen_toks)
        drawn = {number for batch in batches if batch.sampled for number in batch.requests()}
        keys = [generation_key(prompt, how, i if i in drawn else 0) for i, (prompt, how) in enumerate(asked)]

        def compute(numbers: list[int]) -> list[Any]:
            return list(HFLM.generate_until(self, [requests[i] for i in numbers], disable_tqdm=True))

        return self._answered(keys, batches, compute)

    def _answered(
        self, keys: Sequence[bytes], batches: Sequence[Batch], compute: Callable[[list[int]], list[Any]]
    ) -> list[Any]:
        """The answers to all requests, in their order; batches that lack one are computed."""
        keys = within(keys, [batch.rows for batch in batches])
        self.sampled |= {keys[number] for batch in batches if batch.sampled for number in batch.requests()}
        todo = [batch for batch in batches if any(keys[number] not in self.answers for number in batch.requests())]
        lacking = sum(len(batch.requests()) for batch in todo)
        self.finished += len(keys) - lacking
        if self.model.device.type != "meta":
            for batch in todo:
                self._put(batch, keys, compute)
                self._told(len(batch.requests()))
                if self.watch.stop():
                    self.answers.flush()
                    raise Interrupted
        elif todo:
            self._spread(todo, keys, compute)
            self.finished += lacking
        self.answers.flush()
        return [self.answers[key] for key in keys]

    def _told(self, requests: int) -> None:
        self.finished += requests
        self.watch.report(self.finished, max(self.finished, sum(i.repeats for t in self.tasks for i in t.instances)))

    def _spread(self, todo: Sequence[Batch], keys: Sequence[bytes], compute: Callable[[list[int]], list[Any]]) -> None:
        """Fork processes, each with a model of its own, that compute every so-manieth batch and leave the answers."""
        count = min(self.resources.processes, len(todo))
        flag = StopFlag()

        def work(rank: int) -> None:
            if torch.cuda.is_available():
                torch.cuda.set_device(rank % torch.cuda.device_count())
            _seed()
            weights, _ = models.load(self.source.folder, self.source.precision, self.resources.threads)
            self._model, self._device = weights, weights.device
            mine = [batch for i, batch in enumerate(todo) if (0 if batch.sampled else i % count) == rank]
            for batch in mine:  # what is drawn comes from one sequence of random numbers, as in one process
                self._put(batch, keys, compute)
                if rank == 0:
                    self._told(len(batch.requests()) * count)
                if flag:
                    break
            self.answers.flush()

        run_ranks(count, work, self.watch.stop, flag)
        if flag:
            raise Interrupted
        self.answers.read(self.answers.folder)

    def _put(self, batch: Batch, keys: Sequence[bytes], compute: Callable[[list[int]], list[Any]]) -> None:
        """Compute a batch and keep its answers; where memory runs out, this batch and others as large are halved."""
        if self.resources.micro_batch is None and self.fits is None:
            self.fits = fitting(self.model, self.resources.processes)
        for piece in batch.pieces(len(batch.rows) if self.fits is None else max(1, self.fits // batch.longest)):
            numbers, size = piece.requests(), len(piece.rows)
            self.batch_size_per_gpu = size
            try:
                found = compute(numbers)
            except Exception as error:
                if classify(error) is not Failure.OOM or size == 1:
                    raise
                self.fits = size // 2 * piece.longest
            else:
                self.answers.put([keys[number] for number in numbers], found)
                continue
            _free()
            print(f"memory ran out at {size} sequences of {piece.longest} tokens: going on with {size // 2}")
            self._put(piece, keys, compute)


def _free() -> None:
    """After the handler of the error, whose traceback holds the tensors of the batch."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _truncated(lm: Harness, tasks: "Iterable[tuple[str, Task]]") -> dict[str, int]:
    counts = {}
    for name, task in tasks:
        found = sum(_loses_tokens(lm, request) for request in task.instances)
        if found:
            counts[name] = found
    return counts


def _loses_tokens(lm: Harness, request: Any) -> bool:
    if request.request_type == "loglikelihood":
        text, room = "".join(request.args[:2]), lm.max_length + 1  # the last token is only predicted, never read
    elif request.request_type == "generate_until":
        text, room = request.args[0], lm.max_length - request.args[1].get("max_gen_toks", lm.max_gen_toks)
    else:
        return False  # rolling windows lose nothing
    # No tokenizer makes more tokens than there are bytes (and a BOS and EOS): most texts need no second encoding.
    return len(text.encode()) + 2 > room and len(lm.tok_encode(text)) > room
