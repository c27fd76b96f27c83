"""How inputs reach a model's forward: one tensor as it is, several by name or by place."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from shoal.data.tree import Tree

Parameters = tuple[inspect.Parameter, ...]

_KNOWN: WeakKeyDictionary[nn.Module, Parameters] = WeakKeyDictionary()
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def call_model(forward: Callable[..., Any], inputs: Tree, model: nn.Module | None = None) -> Any:
    """Return what a model returns for inputs, as `are_keywords` and `are_positional` say.

    Args:
        forward: the model, or what wraps it.
        model: whose forward says what it takes, where `forward` wraps it.
    """
    if isinstance(inputs, Tensor):
        return forward(inputs)
    parameters = forward_parameters(model or forward)  # type: ignore[arg-type]
    if isinstance(inputs, Mapping):
        return forward(**inputs) if are_keywords(inputs, parameters) else forward(inputs)
    return forward(*inputs) if are_positional(inputs, parameters) else forward(inputs)


def forward_parameters(model: nn.Module) -> Parameters:
    """Return the parameters of a model's forward, without `self`."""
    known = _KNOWN.get(model)
    if known is None:
        known = _KNOWN[model] = tuple(inspect.signature(model.forward).parameters.values())
    return known


def are_keywords(inputs: Mapping[str, Any], parameters: Parameters) -> bool:
    """Whether a dict is spread: all its keys are parameters, or `**kwargs` takes those that are not."""
    named = {parameter.name for parameter in parameters if parameter.kind in _BY_NAME}
    if inputs.keys() <= named:
        return True
    required = {p.name for p in parameters if p.kind in (*_BY_PLACE, *_BY_NAME) and p.default is p.empty}
    return any(p.kind is p.VAR_KEYWORD for p in parameters) and required <= inputs.keys()


def are_positional(inputs: Sequence[Any], parameters: Parameters) -> bool:
    """Whether a tuple is spread: forward takes at least as many positional arguments."""
    places = sum(parameter.kind in _BY_PLACE for parameter in parameters)
    return places >= len(inputs) or any(p.kind is p.VAR_POSITIONAL for p in parameters)
