"""An optimizer's state by the numbers of its parameters: the same however they are grouped and divided among workers.

Independent of which optimizer it is: state may be tensors, numbers and texts, of a parameter or of a group.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shoal.errors import ConfigError
from shoal.training.checkpoint.plain import REMEDY, why_not_plain
from shoal.training.optimizer import OptimConfig, build_optimizer

# Of a group: what the config and this attempt decide, besides the options that its "configured" names.
OF_THIS_ATTEMPT = ("params", "numbers", "configured", "lr", "lr_scale", "fused", "foreach", "capturable")

SIDE = 64  # of the weight on which a step shows what an optimizer keeps


@dataclass(frozen=True)
class StateSize:
    """What an optimizer keeps: numbers for each weight, and bytes for each tensor besides, such as a count of steps."""

    per_weight: float
    bytes_per_tensor: float


def state_by_number(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict whose parameters have the same numbers whether all of them decay or not."""
    state_dict, numbers = optimizer.state_dict(), _numbers(optimizer)
    return state_dict | {"state": {numbers[place]: state for place, state in state_dict["state"].items()}}


def load_state_by_number(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load what `state_by_number` returned; options of a group that the config sets stay as they are.

    The others are state: some optimizers count steps there, or estimate their learning rate.
    """
    places = {number: place for place, number in enumerate(_numbers(optimizer))}
    by_place = {places[number]: values for number, values in saved["state"].items()}
    former = {number: group for group in saved.get("param_groups", ()) for number in group.get("numbers", ())}
    groups = optimizer.state_dict()["param_groups"]
    for group in groups:
        first = next(iter(group.get("numbers", ())), None)
        own = {*OF_THIS_ATTEMPT, *group.get("configured", ())}
        group |= {key: value for key, value in former.get(first, {}).items() if key not in own}
    optimizer.load_state_dict({**saved, "state": by_place, "param_groups": groups})


def check_state(optimizer: Optimizer, fresh: Optimizer, name: str) -> None:
    """Refuse an optimizer that goes on otherwise after a checkpoint: its state must survive one to the bit.

    Args:
        optimizer: that has made a step.
        fresh: the same that has not, which is changed.
        name: `optim.name`.

    Raises:
        ConfigError: it does not.
    """
    saved = state_by_number(optimizer)
    problem = why_not_plain(saved)
    if problem:
        raise ConfigError(f"optim.name='{name}': of its state_dict(), {problem}: {REMEDY}")
    try:
        load_state_by_number(fresh, copy.deepcopy(saved))
    except Exception as error:
        raise ConfigError(
            f"optim.name='{name}' does not load its own state_dict() ({type(error).__name__}: {error}): fix its "
            "load_state_dict"
        ) from error
    if not equal_trees(saved, state_by_number(fresh)):
        raise ConfigError(
            f"optim.name='{name}' has another state after load_state_dict(state_dict()) than before: keep all of it "
            "in self.state and param_groups"
        )


def equal_trees(one: Any, other: Any) -> bool:
    """Whether two trees hold the same: tensors to the bit, of the same type."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            equal_trees(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal_trees, one, other))
    return bool(one == other)


def without_tensors(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `state_by_number` returned without the tensors of parameters."""
    return {**saved, "state": {number: _plain(values) for number, values in saved["state"].items()}}


def parameters_by_number(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters in the order of their numbers, the same for every division among workers."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = sorted(zip(_numbers(optimizer), parameters, strict=True), key=lambda pair: pair[0])
    return [parameter for _, parameter in numbered]


def measure_state(config: OptimConfig) -> StateSize:
    """Make a step on a small weight and count what the optimizer keeps of it."""
    model = nn.Linear(SIDE, SIDE, bias=False)
    optimizer = build_optimizer(model, config.replace({"groups": {}}))
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    (state,) = optimizer.state.values() or [{}]
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    large = [tensor for tensor in tensors if tensor.numel() >= SIDE]
    return StateSize(
        per_weight=sum(tensor.nbytes for tensor in large) / model.weight.nbytes,
        bytes_per_tensor=sum(tensor.nbytes for tensor in tensors if tensor.numel() < SIDE),
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not isinstance(value, Tensor)}


def _numbers(optimizer: Optimizer) -> list[int]:
    """Return the number of each parameter, in the order of the groups."""
    numbers = [number for group in optimizer.param_groups for number in group.get("numbers", ())]
    return numbers or list(range(sum(len(group["params"]) for group in optimizer.param_groups)))
