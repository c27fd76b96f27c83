"""Hidden units of the feed-forward layers of any transformer leave; the layers are found by their sizes.

The forward of a model of `transformers` knows how wide its residual stream and its heads are, and not how many hidden
units a feed-forward layer has. Depends on layers; independent of data and training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.huggingface import HuggingFace
from shoal.models.layer_sizes import is_transposed_linear, resize


@dataclass(frozen=True)
class HiddenUnits:
    """The hidden units of one block.

    Attributes:
        writers: names of the layers whose outputs they are; two where one is a gate.
        reader: name of the layer that takes them.
        count: how many there are.
    """

    writers: tuple[str, ...]
    reader: str
    count: int


def find_hidden_units(model: nn.Module) -> list[HiddenUnits]:
    """Return the hidden units of each block of a `HuggingFace`.

    Raises:
        ModelError: a block has not exactly one feed-forward layer.
    """
    blocks = model.blocks if isinstance(model, HuggingFace) else None
    if blocks is None:
        raise ModelError("it has no list of blocks")
    prefix = next((name for name, module in model.named_modules() if module is blocks), "")
    return [_find_in(block, f"{prefix}.{number}") for number, block in enumerate(blocks)]


def _find_in(block: nn.Module, prefix: str) -> HiddenUnits:
    sizes = {f"{prefix}.{name}": _sizes(layer) for name, layer in block.named_modules() if _is_linear(layer)}
    found = [
        HiddenUnits(writers, reader, inputs)
        for reader, (inputs, outputs) in sizes.items()
        if inputs > outputs
        and (writers := tuple(name for name, size in sizes.items() if size == (outputs, inputs)))
    ]
    if len(found) != 1:
        raise ModelError(
            f"its block '{prefix}' has {len(found)} pairs of linear layers into hidden units and back, and not one"
        )
    return found[0]


def prune_hidden_units(model: HuggingFace, kept_of: Callable[[int], int], unpruned: nn.Module) -> None:
    """Remove the hidden units of the least importance of each block, in place.

    The importance of a unit is the L2 norm of all weights that leave with it.

    Args:
        kept_of: how many of so many units stay.
        unpruned: the model before any pruning.

    Raises:
        ModelError: the model has no such layers.
    """
    before, tensors = find_hidden_units(unpruned), model.state_dict()
    changed: dict[str, Tensor] = {}
    for units, all_units in zip(find_hidden_units(model), before, strict=True):
        count = min(units.count, kept_of(all_units.count))
        parts = _parts(model, units, tensors)
        weights = [tensor.movedim(dim, 0).reshape(units.count, -1) for tensor, dim in parts.values()]
        scores = torch.cat(weights, dim=1).square().sum(dim=1)
        kept = scores.argsort(descending=True)[:count].sort().values
        changed |= {name: tensor.index_select(dim, kept) for name, (tensor, dim) in parts.items()}
    resize(model, {name: tuple(tensor.shape) for name, tensor in changed.items()})
    model.load_state_dict(tensors | changed)


def _parts(model: nn.Module, units: HiddenUnits, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Return the tensors that a unit has a part in, by name, each with the dimension that counts units."""
    found = {}
    for name in units.writers:
        is_transposed = is_transposed_linear(model.get_submodule(name))
        found[f"{name}.weight"] = tensors[f"{name}.weight"], int(is_transposed)
        if f"{name}.bias" in tensors:
            found[f"{name}.bias"] = tensors[f"{name}.bias"], 0
    is_transposed = is_transposed_linear(model.get_submodule(units.reader))
    found[f"{units.reader}.weight"] = tensors[f"{units.reader}.weight"], int(not is_transposed)
    return found


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or is_transposed_linear(layer)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Return the inputs and outputs of a linear layer."""
    first, second = layer.weight.shape  # type: ignore[union-attr,misc]
    return (first, second) if is_transposed_linear(layer) else (second, first)
