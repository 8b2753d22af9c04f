"""Bottleneck adapters: a layer's output h becomes h + up(act(down(h))) (Houlsby et al. 2019, arXiv 1902.00751, fig. 2).

`up` begins at zero, so that the model begins as it was. The two small layers are put beside the layer that they follow,
under the name `bottleneck`, and run in a forward hook: every name of the model stays what it is.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "bottleneck"


def insert(model: Any, size: int, targets: tuple[str, ...], activation: str) -> None:
    """Put an adapter of width `size` after every layer whose name ends in one of `targets`.

    Raises:
        ValueError: no layer has such a name.
    """
    import torch

    from toolkit.training.adapters import linear_names

    layers = [m for n, m in model.named_modules() if n.split(".")[-1] in targets and isinstance(m, torch.nn.Linear)]
    if not layers:
        names = ", ".join(linear_names(model))
        raise ValueError(f"no layer of a {model.config.model_type} is called {' or '.join(targets)}; there are {names}")
    for layer in layers:
        layer.add_module(NAME, _adapter(layer, size, activation))
        layer.register_forward_hook(_after)


def _adapter(layer: Any, size: int, activation: str) -> "torch.nn.Module":
    import torch

    kinds: dict[str, type[torch.nn.Module]] = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU}
    place = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    down = torch.nn.Linear(layer.out_features, size, **place)
    up = torch.nn.Linear(size, layer.out_features, **place)
    torch.nn.init.normal_(down.weight, std=1e-2)  # the paper's: near identity
    for tensor in (down.bias, up.weight, up.bias):
        torch.nn.init.zeros_(tensor)
    return torch.nn.Sequential(down, kinds[activation](), up)


def _after(layer: Any, _given: Any, output: "torch.Tensor") -> "torch.Tensor":
    added: torch.Tensor = getattr(layer, NAME)(output)
    return output + added
