"""Parameters that are not trained, by patterns of their names.

A normalization layer that is frozen keeps its running statistics too: it normalizes by them, in training as well.
Depends on modules and names; independent of what is trained.
"""

from collections.abc import Sequence
from types import MethodType

from torch import nn

from shoal.distributed.sync_batchnorm import STAYS_IN_EVAL
from shoal.errors import ModelError, nearest
from shoal.models.patterns import matches


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Have the parameters that a pattern matches not be trained, in place; dropout goes on.

    Layers with running statistics stay in eval mode where a pattern matches their name or all of their parameters are
    frozen.

    Raises:
        ModelError: a pattern matches no parameter.
    """
    for pattern in patterns:
        names = dict(model.named_parameters(remove_duplicate=False))
        matched = [parameter for name, parameter in names.items() if matches(name, pattern)]
        if not matched:
            modules = [name for name, _ in model.named_modules() if name]
            shown = ", ".join(list(names)[:5]) + (", ..." if len(names) > 5 else "")
            raise ModelError(
                f"model.freeze names '{pattern}', which matches no parameter{nearest(pattern, [*modules, *names])}: "
                f"the model has {shown}"
            )
        for parameter in matched:
            parameter.requires_grad_(False)
    for name, module in model.named_modules() if patterns else ():
        own = list(module.parameters(recurse=False))
        is_frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        has_statistics = getattr(module, "running_mean", None) is not None
        if has_statistics and (is_frozen or any(matches(name, pattern) for pattern in patterns)):
            _keep_in_eval(module)


def _keep_in_eval(module: nn.Module) -> None:
    module.eval()
    setattr(module, STAYS_IN_EVAL, True)
    # Of the instance, so that `model.train()` of whoever trains it does not undo it.
    module.train = MethodType(_ignore_mode, module)  # type: ignore[method-assign]


def _ignore_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
