"""Optimizers by name, with the learning rates and weight decays of their parameter groups."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from shoal.config.schema import Section
from shoal.distributed.dtensor_io import is_dtensor
from shoal.distributed.torch_private import without_wrappers
from shoal.models.mup import WidthScaling, width_scalings
from shoal.models.weight_decay import without_decay

Schedule = Literal["constant", "linear", "cosine", "wsd"]


class OptimConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd is with Nesterov momentum 0.9")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 otherwise")
    decay: Literal["matrices", "all"] = Field(
        "matrices",
        description="what weight_decay is of; matrices: not of biases, norms and embeddings, tied ones included",
    )
    schedule: Schedule = Field("constant", description="of the learning rate; wsd is warmup-stable-decay")
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to lr")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Build the optimizer, fused: one kernel for all parameters of a group.

    A group holds the parameters that scale alike, all of them in the standard parametrization; where some of them do
    not decay, these have a group of their own. A group's "lr_scale" is what the scheduled learning rate is multiplied
    with.
    """
    groups = _groups(model, config)
    if config.name == "sgd":
        fused = not any(map(is_dtensor, model.parameters()))  # torch 2.13 has no such kernel for shards
        return without_wrappers(torch.optim.SGD)(groups, config.lr, momentum=0.9, nesterov=True, fused=fused)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return without_wrappers(kind)(groups, config.lr, fused=True)


def state_by_number(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict whose parameters have the same numbers whether all of them decay or not."""
    state_dict, numbers = optimizer.state_dict(), _numbers(optimizer)
    return state_dict | {"state": {numbers[place]: state for place, state in state_dict["state"].items()}}


def load_state_by_number(optimizer: Optimizer, state: Mapping[int, Any]) -> None:
    """Load the state of each parameter by its number; groups and hyperparameters stay as they are."""
    places = {number: place for place, number in enumerate(_numbers(optimizer))}
    groups = optimizer.state_dict()["param_groups"]
    by_place = {places[number]: values for number, values in state.items()}
    optimizer.load_state_dict({"state": by_place, "param_groups": groups})


def parameters_by_number(optimizer: Optimizer) -> list[nn.Parameter]:
    """Return the parameters in the order of their numbers, the same for every division among workers."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = sorted(zip(_numbers(optimizer), parameters, strict=True), key=lambda pair: pair[0])
    return [parameter for _, parameter in numbered]


def _numbers(optimizer: Optimizer) -> list[int]:
    """Return the number of each parameter, in the order of the groups."""
    numbers = [number for group in optimizer.param_groups for number in group.get("numbers", ())]
    return numbers or list(range(sum(len(group["params"]) for group in optimizer.param_groups)))


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    scaling_of = width_scalings(model, config.name)
    alike: dict[WidthScaling, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            alike[scaling_of.get(name, WidthScaling())].append((name, parameter))
    spared = without_decay(model) if config.weight_decay and config.decay == "matrices" else set[str]()
    groups: list[dict[str, Any]] = []
    numbers = count()
    for scaling, members in alike.items():
        parts: dict[bool, dict[str, Any]] = {}
        for name, parameter in members:
            decays = name not in spared
            part = parts.setdefault(decays, {"params": [], "numbers": [], **_rates(config, scaling, decays)})
            part["params"].append(parameter)
            part["numbers"].append(next(numbers))
        groups += parts.values()
    return groups


def _rates(config: OptimConfig, scaling: WidthScaling, decays: bool) -> dict[str, float]:
    return {
        "lr": config.lr * scaling.lr,
        "lr_scale": scaling.lr,
        "weight_decay": config.weight_decay * scaling.weight_decay if decays else 0.0,
    }
