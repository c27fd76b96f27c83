"""A loss of the user's own: a function or module by its import path, which returns a loss for each sample."""

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shoal.data.tree import Tree, first_tensor, only_tensor, row_count
from shoal.errors import ConfigError

LOSS = "loss"  # what a single loss is called in records


class SampleLosses(Protocol):
    """What a task minimizes instead of its own loss.

    Attributes:
        key: of the config, and what it names, for errors.
    """

    key: str

    def __call__(self, outputs: Any, targets: Tree, inputs: Tree) -> dict[str, Tensor]:
        """Return named losses [n] of the samples; their sum is minimized."""
        ...


class OwnLoss:
    """What `train.loss` names, called `loss(outputs, targets)`.

    A parameter `reduction` of a function, or of a class's __init__, is set to "none"; a parameter `inputs` receives
    the model's inputs. What is torch's own gets outputs [n, 1] in the shape of targets [n], since these would broadcast
    to [n, n].
    """

    def __init__(self, path: str, found: Callable[..., Any]) -> None:
        """Take what `path` names.

        Raises:
            ConfigError: it is no function or module.
        """
        self.key = f"train.loss='{path}'"
        self._call = _per_sample(found, self.key)
        self._takes_inputs = "inputs" in _parameters(self._call)
        self._is_torchs = _module_of(found).partition(".")[0] == "torch"

    def __call__(self, outputs: Any, targets: Tree, inputs: Tree) -> dict[str, Tensor]:
        """Return the named losses [n] of the samples; their sum is what is minimized.

        Args:
            outputs: what the model returned; numbers of half precision are widened to float32.
            targets: as the task makes them.
            inputs: what the model took.

        Raises:
            ConfigError: it returns something other than a loss for each sample.
        """
        outputs = _widened(outputs)
        if self._is_torchs and are_one_number(outputs, targets):
            outputs = outputs.reshape(only_tensor(targets).shape)
        if isinstance(self._call, nn.Module):
            self._call.to(first_tensor(inputs).device)
        named = {"inputs": inputs} if self._takes_inputs else {}
        found = self._call(outputs, targets, **named)
        losses = dict(found) if isinstance(found, Mapping) else {LOSS: found}
        if not losses or (LOSS in losses and len(losses) > 1):
            raise ConfigError(
                f"{self.key} returned a dict of {', '.join(map(repr, losses)) or 'nothing'}: return a loss [n] by each "
                f"name; '{LOSS}' is what their sum is called"
            )
        return {str(name): self._checked(str(name), loss, row_count(inputs)) for name, loss in losses.items()}

    def _checked(self, name: str, loss: object, rows: int) -> Tensor:
        what = f"{self.key} returned" + ("" if name == LOSS else f" for '{name}'")
        if not isinstance(loss, Tensor):
            raise ConfigError(
                f"{what} a {type(loss).__name__}: return a tensor [{rows}], a loss for each sample"
            )
        if loss.ndim == 0:
            raise ConfigError(
                f"{what} one number for {rows} samples: return a tensor [{rows}], a loss for each sample, e.g. with "
                "reduction='none' or .mean(dim=1)"
            )
        if len(loss) != rows or loss.numel() == 0:
            raise ConfigError(
                f"{what} a tensor of shape {tuple(loss.shape)} for {rows} samples: return [{rows}], a loss for each"
            )
        if not loss.is_floating_point():
            raise ConfigError(f"{what} numbers of type {loss.dtype}: return floating-point losses")
        return loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss


def are_one_number(outputs: Any, targets: Tree) -> bool:
    """Whether outputs [n, 1] and targets [n] are one number for each of several samples, in shapes that broadcast."""
    return (
        isinstance(outputs, Tensor)
        and isinstance(targets, Tensor)
        and outputs.shape == (*targets.shape, 1)
        and targets.ndim == 1
        and targets.is_floating_point()
    )


def _module_of(found: object) -> str:
    kind = type(found) if isinstance(found, nn.Module) else found
    return getattr(kind, "__module__", None) or ""


def _per_sample(found: Callable[..., Any], key: str) -> Callable[..., Any]:
    """Return what `train.loss` names, ready to be called, with losses that are not averaged."""
    if inspect.isclass(found):
        if not issubclass(found, nn.Module):
            raise ConfigError(
                f"{key} is the class {found.__name__}, which is no torch.nn.Module: name a function or a module"
            )
        without = {"reduction": "none"} if "reduction" in inspect.signature(found).parameters else {}
        try:
            found = found(**without)
        except TypeError as error:
            raise ConfigError(
                f"{key} is a class that is built without arguments, and {error}: name an instance, or a function"
            ) from None
    elif isinstance(found, nn.Module):
        found = copy.deepcopy(found)
        if hasattr(found, "reduction"):
            setattr(found, "reduction", "none")  # noqa: B010  # mypy: a module's attributes are tensors or modules
    elif "reduction" in _parameters(found):
        return partial(found, reduction="none")
    if isinstance(found, nn.Module) and any(True for _ in found.parameters()):
        raise ConfigError(
            f"{key} has parameters of its own, which no optimizer would train: make them part of the model"
        )
    return found


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        called = function.forward if isinstance(function, nn.Module) else function
        return inspect.signature(called).parameters
    except ValueError:  # built in
        return {}


def _widened(outputs: Any) -> Any:
    """Return a model's outputs with numbers of half precision as float32; what is no tensor stays."""
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
    if isinstance(outputs, Mapping):
        changed = {name: _widened(value) for name, value in outputs.items()}
        return outputs if all(changed[name] is outputs[name] for name in changed) else changed
    if type(outputs) in (tuple, list):
        return type(outputs)(map(_widened, outputs))
    return outputs
