"""Optimisers by name, and learning-rate schedules as pure functions of the step."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from shoal.config import Section

Schedule = Literal["constant", "linear", "cosine", "wsd"]

# Warmup-stable-decay spends the last fifth of the steps on the decay (Hu et al. 2024, MiniCPM, use 10 to 20%).
WSD_DECAY_SHARE = 0.2


class OptimConfig(Section):
    name: Literal["adam", "adamw", "sgd"] = Field("adam", description="sgd is with Nesterov momentum 0.9")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0, description="decoupled for adamw, L2 otherwise")
    schedule: Schedule = Field("constant", description="of the learning rate; wsd is warmup-stable-decay")
    warmup_steps: int = Field(0, ge=0, description="steps of linear rise to lr")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the whole gradient")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser, fused: one kernel for all parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            trained, config.lr, momentum=0.9, nesterov=True, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(trained, config.lr, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of optimiser step `step` (from 0) of `total_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, total_steps - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
        case "wsd":
            share = min(1.0, (1.0 - done) / WSD_DECAY_SHARE)
    return config.lr * share
