"""Optimisers by name, with the learning rates and weight decays of their parameter groups."""

from collections import defaultdict
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer

from shoal.config.schema import Section
from shoal.distributed.dtensor_io import is_dtensor
from shoal.distributed.torch_private import without_wrappers
from shoal.models.mup import WidthScaling, width_scalings

Schedule = Literal["constant", "linear", "cosine", "wsd"]


class OptimConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd is with Nesterov momentum 0.9")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 otherwise")
    schedule: Schedule = Field("constant", description="of the learning rate; wsd is warmup-stable-decay")
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to lr")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient")


def build_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Build the optimiser, fused: one kernel for all parameters of a group.

    A group holds the parameters that scale alike, all of them in the standard parametrisation. Its "lr_scale" is
    what the scheduled learning rate is multiplied with.
    """
    groups = _groups(model, config)
    if config.name == "sgd":
        fused = not any(map(is_dtensor, model.parameters()))  # torch 2.13 has no such kernel for shards
        return without_wrappers(torch.optim.SGD)(groups, config.lr, momentum=0.9, nesterov=True, fused=fused)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return without_wrappers(kind)(groups, config.lr, fused=True)


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    scaling_of = width_scalings(model, config.name)
    alike: dict[WidthScaling, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            alike[scaling_of.get(name, WidthScaling())].append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.lr * scaling.lr,
            "lr_scale": scaling.lr,
            "weight_decay": config.weight_decay * scaling.weight_decay,
        }
        for scaling, parameters in alike.items()
    ]
