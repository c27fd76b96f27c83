"""Optimisers by name, with the learning rates and weight decays of their parameter groups."""

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from shoal.config.schema import Section
from shoal.distributed.dtensor_io import is_dtensor
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
        return _bare(torch.optim.SGD)(groups, config.lr, momentum=0.9, nesterov=True, fused=fused)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return _bare(kind)(groups, config.lr, fused=True)


def _bare(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Return an optimiser's class whose methods skip torch's wrappers as long as there are no hooks to call.

    The wrappers mark a range for the profiler and call into torch._dynamo, whose import takes 1.2 s in each process
    and which has nothing to do: the optimiser is not compiled. Without them a step takes 90 us of a small model
    instead of 125. With a step hook registered, on the instance or globally, `step` is torch's wrapped one.
    """
    methods = {
        name: inspect.unwrap(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if hasattr(method, "__wrapped__")
    }
    bare = torch.no_grad()(methods["step"])
    hooked = Optimizer.profile_hook_step(bare)

    @functools.wraps(bare)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        has_hooks = (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return (hooked if has_hooks else bare)(self, *args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # torch's mark of a step that it need not wrap
    methods["step"] = step
    return type(kind.__name__, (kind,), methods)  # type: ignore[arg-type]


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
