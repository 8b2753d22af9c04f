"""The state of a run in one file that no layout has a say in: whole tensors under the model's names, one at a time.

`state.safetensors` holds what is trained and AdamW's two moments of it. Ranks gather a tensor, the first one writes it,
and it is gone before the next: memory is that of the largest tensor. What one layout wrote any other goes on from:
more ranks or fewer, another ZeRO stage, or none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.checkpoints.tensors import CHUNK, FLOATS, TORCH, Tensor, chunks, read_header, write_file, write_folder

if TYPE_CHECKING:
    import torch

    from toolkit.training.exact import Exact

STATE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


def entries(model: "torch.nn.Module") -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (safetensors' word, shape) of all that a save of the model holds."""
    import torch

    words = {getattr(torch, name): word for word, name in TORCH.items()}
    kept = {name: (words[p.dtype], shape_of(p)) for name, p in weights(model).items()}
    moments = {f"{m}:{name}": kept[name] for name, p in trained(model).items() for m in MOMENTS}
    return kept | moments


def trained(model: "torch.nn.Module") -> "dict[str, torch.nn.Parameter]":
    """The parameters that the optimizer changes; shared ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def weights(model: "torch.nn.Module") -> "dict[str, torch.Tensor]":
    """What is trained, and buffers that training may change."""
    lasting = model.state_dict().keys()
    return {**trained(model), **{name: b for name, b in model.named_buffers() if name in lasting}}


def shape_of(tensor: "torch.Tensor") -> tuple[int, ...]:
    """The whole tensor's shape: ZeRO-3 leaves an empty one where it was, four bits are packed two in a byte."""
    packed = getattr(tensor, "quant_state", None)
    return tuple(packed.shape if packed is not None else getattr(tensor, "ds_shape", tensor.shape))


def write(trainer: "Exact", path: Path, check: "Callable[[dict[str, torch.Tensor]], None]") -> None:
    """Write the state; every rank must call it, the first one writes. check: sees every tensor before it is written.

    Source: no more is needed to go on than AdamW's state (arXiv 1711.05101, algorithm 2); its step is the run's.
    """
    known, plan = weights(trainer.model), entries(trainer.model)
    _link(_zero(trainer))

    def parts(name: str) -> "Iterator[torch.Tensor | Tensor]":
        moment, _, owner = name.rpartition(":")
        tensor = whole(trainer, known[owner], moment)
        check({name: tensor})
        yield from _chunked(tensor)

    if trainer.args.should_save:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, plan, parts)
    else:
        for name in plan:
            list(parts(name))


def whole(trainer: "Exact", tensor: "torch.Tensor", moment: str = "") -> "torch.Tensor":
    """A weight or a moment of it, gathered from all ranks, which must all call this."""
    import torch

    if not moment:
        with _gathered(tensor):
            return tensor.detach().to("cpu", copy=True)
    if _zero_holds(tensor):
        from deepspeed.utils import safe_get_full_optimizer_state

        found: torch.Tensor = safe_get_full_optimizer_state(tensor, moment)
        return found.detach().cpu()
    state = _adam(trainer).state.get(tensor)
    if not state:  # it has never had a gradient
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    own: torch.Tensor = state[moment].detach().cpu()
    return own


def read_weights(model: "torch.nn.Module", path: Path) -> None:
    """Put the weights of a save into a model, before an optimizer is made of it.

    Raises:
        ValueError: the save holds other tensors than the model.
    """
    import torch

    found, plan = read_header(path), entries(model)
    if found.keys() != plan.keys():
        raise ValueError(
            f"{path} holds the state of another model: {sorted(found.keys() ^ plan.keys())[:3]} are in one of the two"
            " only; remove the folder of saves to begin anew"
        )
    for name, tensor in weights(model).items():
        with _gathered(tensor, changed=True), torch.no_grad():
            if not hasattr(tensor, "ds_id") or torch.distributed.get_rank() == 0:  # which gives it to the others
                tensor.copy_(_read(found[name]))


def read_moments(trainer: "Exact", path: Path, step: int) -> None:
    """Give AdamW its state after `step` steps, once DeepSpeed has cut it into pieces (or has not)."""
    import torch

    adam, found = _adam(trainer), read_header(path)
    ours = trained(trainer.model)
    zero = _zero(trainer)
    for number, tensor in enumerate(_pieces(zero) if zero is not None else ours.values()):
        # A step of its own for each: one that is shared would be counted up once for each tensor.
        on = tensor.device if adam.defaults.get("fused") else torch.device("cpu")
        with _read_in(zero, number):
            adam.state[tensor] = {"step": torch.tensor(float(step), device=on)} | {
                moment: torch.zeros_like(tensor, memory_format=torch.preserve_format).detach() for moment in MOMENTS
            }
    _link(zero)
    for name, parameter in ours.items():
        for moment in MOMENTS:
            _put(adam, parameter, moment, _read(found[f"{moment}:{name}"]))


def write_like(trainer: "Exact", source: Path, out: Path, check: "Callable[[dict[str, torch.Tensor]], None]") -> bool:
    """Write the weights in fp32 to `out` in files as those of `source`, tensor by tensor; every rank must call it.

    check: sees every tensor before it is written. Returns False, and writes nothing, where the model's tensors are not
    those of `source`.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings

    from toolkit.checkpoints.tensors import read_folder

    like = read_folder(source)
    ours: dict[str, torch.Tensor] = dict(trainer.model.named_parameters(remove_duplicate=False))
    newer = [change for change in get_model_conversion_mapping(trainer.model) if isinstance(change, WeightRenaming)]
    names = {name: name if name in ours else apply_renamings(name, newer) for name in like}
    lacking = ours.keys() - set(names.values())
    tied = {id(ours[name]) for name in names.values() if name in ours}
    if any(id(ours[name]) not in tied for name in lacking):
        return False

    def parts(name: str) -> "Iterator[torch.Tensor | Tensor]":
        if names[name] in ours:
            tensor = whole(trainer, ours[names[name]]).float()
            check({name: tensor})
            yield from _chunked(tensor)
        elif like[name].dtype in FLOATS:
            yield from (part.float() for part in chunks(like[name]))
        else:
            yield like[name]

    if trainer.args.should_save:
        write_folder(out, like, "F32", parts)
    else:  # in the order of the first rank: file by file
        for file in dict.fromkeys(tensor.file for tensor in like.values()):
            for name in (name for name, tensor in like.items() if tensor.file == file and names[name] in ours):
                whole(trainer, ours[names[name]])
    return True


def _chunked(tensor: "torch.Tensor") -> "Iterator[torch.Tensor]":
    yield from tensor.contiguous().flatten().split(CHUNK)


def _read(tensor: Tensor) -> "torch.Tensor":
    import torch

    found = torch.empty(tensor.shape, dtype=getattr(torch, TORCH[tensor.dtype]))
    flat, at = found.view(-1), 0
    for part in chunks(tensor):
        flat[at : at + part.numel()] = part
        at += part.numel()
    return found


def _put(adam: Any, parameter: Any, moment: str, value: "torch.Tensor") -> None:
    import torch

    if not _zero_holds(parameter):
        adam.state[parameter][moment].copy_(value)
    elif hasattr(parameter, "ds_id"):
        # Each rank's share of a ZeRO-3 tensor is as long as the first one's: the last is filled up.
        from deepspeed.utils import safe_set_local_optimizer_state

        share = parameter.ds_tensor.numel()
        rank = parameter._z3_optimizer._get_param_partition_rank(parameter)
        mine = value.flatten()[rank * share : (rank + 1) * share]
        filled = torch.cat([mine, mine.new_zeros(share - mine.numel())])
        safe_set_local_optimizer_state(parameter, filled, moment)
    else:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, value, moment)


def _gathered(tensor: "torch.Tensor", changed: bool = False) -> Any:
    from contextlib import nullcontext

    if not hasattr(tensor, "ds_id"):
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters([tensor], modifier_rank=0 if changed else None)


@contextmanager
def _read_in(zero: Any, number: int) -> Iterator[None]:
    """A piece of ZeRO 3 that waits on a disk is in memory within, and written back after it."""
    waits = getattr(zero, "swap_optimizer", False) and zero._swappable_optimizer_subgroup(number)
    if waits:
        zero._optimizer_states_and_gradient_swap_in(number)
    yield
    if waits:
        zero._optimizer_states_and_gradient_swap_out(number)


def _link(zero: Any) -> None:
    """Let ZeRO 1 and 2 find the moments of every parameter: by itself it looks for them after the first step of the
    first group, when the other groups have none yet, and not again."""
    if hasattr(zero, "_hp_optimizer_states_linked"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _zero_holds(tensor: "torch.Tensor") -> bool:
    return hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping")


def _zero(trainer: "Exact") -> Any:
    """DeepSpeed's own optimizer around torch's, of ZeRO 1 to 3."""
    outer: Any = trainer.optimizer
    while hasattr(outer, "optimizer"):
        if hasattr(outer, "fp32_partitioned_groups_flat") or hasattr(outer, "single_partition_of_fp32_groups"):
            return outer
        outer = outer.optimizer
    return None


def _adam(trainer: "Exact") -> Any:
    inner: Any = trainer.optimizer
    while hasattr(inner, "optimizer"):
        inner = inner.optimizer
    return inner


def _pieces(zero: Any) -> "list[torch.Tensor]":
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return list(zero.fp32_partitioned_groups_flat)
    return list(zero.single_partition_of_fp32_groups)
