"""Run lm-eval tasks on a loaded model, all in one process, with the seeds that its command line uses by default."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RANDOM_SEED, NUMPY_SEED, TORCH_SEED = 0, 1234, 1234  # the defaults of `lm_eval run --seed`


class _Count:
    """Stands where lm-eval hands every finished request to its cache, and counts them."""

    def __init__(self, tasks: Iterable["Task"], report: Callable[[int, int], None]) -> None:
        self.tasks, self.report, self.done = tuple(tasks), report, 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.done += 1
        self.report(self.done, sum(i.repeats for task in self.tasks for i in task.instances))


def evaluate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Mapping[str, "Task"],
    *,
    batch: int,
    max_length: int | None = None,
    limit: int | None = None,
    chat: bool = False,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """What `lm_eval.evaluator.evaluate` returns: `results`, `samples`, `n-samples` and more, by task; and `truncated`,
    the count of requests that were longer than the context, of which lm-eval drops the first tokens.

    batch: sequences at once. limit: the first rows of each task. chat: prompts as chat turns, demonstrations
    as earlier ones. report: told (finished, all) requests.

    The same calls as `simple_evaluate`, which in addition starts several programs to describe the machine.
    """
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import set_torch_seed

    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    set_torch_seed(TORCH_SEED)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=max_length)
    lm.set_cache_hook(_Count(tasks.values(), report))
    results = evaluator.evaluate(
        lm=lm, task_dict={"tasks": dict(tasks)}, limit=limit, apply_chat_template=chat, fewshot_as_multiturn=chat
    )
    assert results is not None, "only rank 0 runs this"
    return {**results, "truncated": _truncated(lm, tasks.values())}


def _truncated(lm: Any, tasks: Iterable["Task"]) -> int:
    count = 0
    for request in (request for task in tasks for request in task.instances):
        if request.request_type == "loglikelihood":
            text, room = "".join(request.args[:2]), lm.max_length + 1  # the last token is only predicted, never read
        elif request.request_type == "generate_until":
            text, room = request.args[0], lm.max_length - request.args[1].get("max_gen_toks", lm.max_gen_toks)
        else:
            continue  # rolling windows lose nothing
        # No tokenizer makes more tokens than there are bytes (and a BOS and EOS): most texts need no second encoding.
        if len(text.encode()) + 2 > room and len(lm.tok_encode(text)) > room:
            count += 1
    return count
