"""Metrics of the library torchmetrics: found by name, and their states merged over workers.

The library is imported when a config names one of its metrics: that takes seconds.
"""

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shoal.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torchmetrics import Metric

# States of a metric's parts by name: tensors that are reduced, or lists of tensors of rows.
State = dict[str, "Tensor | list[Tensor]"]

PREFIXES = {"binary": "Binary", "multiclass": "Multiclass", "multilabel": "Multilabel"}


def find_metric(name: str, kind: str, sizes: Mapping[str, int]) -> "Metric":
    """Return torchmetrics' metric of a name, e.g. `auroc` or `f1`, ready for a kind of predictions.

    Args:
        name: the class's in snake case; a last `_score` may be left out.
        kind: binary, multiclass, multilabel or regression.
        sizes: arguments that the metric may take: num_classes, num_labels.

    Raises:
        ConfigError: there is none, or it needs arguments.
    """
    known = _classes(kind)
    found = known.get(_plain(name))
    if found is None:
        raise ConfigError(
            f"train.metrics names '{name}', which is no metric of torchmetrics for a {kind} task"
            f"{nearest(name, [_snake(metric.__name__, kind) for metric in known.values()])}: name one, or a function "
            "or class of your own, package.module:name"
        )
    return build_metric(found, f"train.metrics '{name}'", sizes)


def build_metric(found: Callable[..., Any], what: str, sizes: Mapping[str, Any]) -> "Metric":
    """Build a metric's class with those arguments that it takes.

    Raises:
        ConfigError: it needs others.
    """
    # What a signature takes as **kwargs, torchmetrics refuses.
    parameters = inspect.signature(found).parameters
    try:
        return found(**{name: size for name, size in sizes.items() if name in parameters})  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{what} cannot be built without arguments ({' '.join(str(error).split())}): name a metric of your own, "
            "package.module:name, that sets them"
        ) from None


def higher_is_better(name: str, kind: str) -> bool | None:
    """Return torchmetrics' own word on whether a metric is better when it is higher; None where it has none."""
    found = _classes(kind).get(_plain(name))
    return None if found is None else found.higher_is_better


@cache
def _classes(kind: str) -> dict[str, "type[Metric]"]:
    """Return the metrics for a kind of predictions, by plain name."""
    from torchmetrics import Metric, classification, regression

    module = classification if kind in PREFIXES else regression
    found: dict[str, type[Metric]] = {}
    for name in module.__all__:
        metric, short = getattr(module, name), _snake(name, kind)
        if (
            name.startswith(PREFIXES.get(kind, ""))
            and isinstance(metric, type)
            and issubclass(metric, Metric)
        ):
            found |= {_plain(spelled): metric for spelled in (name, short, short.removesuffix("_score"))}
    return found


def _snake(name: str, kind: str) -> str:
    """Return a class's name as a config spells it: BinaryF1Score is f1_score."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removeprefix(PREFIXES.get(kind, ""))).lower()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def ready(metric: "Metric", device: torch.device) -> "Metric":
    """Return a copy without samples, on a device, that sums in float64 and waits for no other process."""
    copied = metric.clone()
    copied.reset()
    for part in _parts(copied):
        part.distributed_available_fn = lambda: False
    return copied.set_dtype(torch.float64).to(device)


def states_of(metric: "Metric") -> list[State]:
    """Return the states of a metric and its parts on the CPU, tensors of rows joined."""
    return [{name: _joined(state) for name, state in part.metric_state.items()} for part in _parts(metric)]


def _joined(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().cpu()
    rows = [torch.atleast_1d(tensor.detach().cpu()) for tensor in state]
    return [torch.cat(rows)] if rows else []


def merge(metric: "Metric", states: Sequence[list[State]]) -> None:
    """Give a metric without samples the states of several processes, reduced as each state says (dist_reduce_fx).

    Args:
        states: of at least one process, each with samples, in an order that is the same everywhere.
    """
    for number, part in enumerate(_parts(metric)):
        mine = [found[number] for found in states]
        if len(mine) > 1:
            mine = [_reduced(part, mine)]
        for name, state in mine[0].items():
            setattr(part, name, _on(state, part.device))


def _reduced(part: "Metric", states: Sequence[State]) -> State:
    """Return states as torchmetrics' own `sync` reduces them; what it would gather is at hand."""
    scratch = part.clone().cpu()
    for name, state in states[0].items():
        setattr(scratch, name, state)
    others = {}
    for name in states[0]:
        found = [state[name] for state in states]
        tensors = [
            one if isinstance(one, Tensor) else one[0] for one in found if isinstance(one, Tensor) or one
        ]
        if tensors:
            others[id(tensors[0])] = tensors
    with quiet():
        scratch.sync(
            dist_sync_fn=lambda tensor, group=None: others[id(tensor)], distributed_available=lambda: True
        )
    return dict(scratch.metric_state)


def _on(state: Any, device: torch.device) -> Any:
    return state.to(device) if isinstance(state, Tensor) else [tensor.to(device) for tensor in state]


def _parts(metric: "Metric") -> Iterator["Metric"]:
    """Yield a metric and the metrics that it wraps."""
    from torchmetrics import Metric

    return (module for module in metric.modules() if isinstance(module, Metric))


def quiet() -> warnings.catch_warnings:
    """Return a context in which torchmetrics warns of nothing: a split may well hold a single class."""
    return warnings.catch_warnings(action="ignore")
