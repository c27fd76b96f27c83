"""What `train.metrics` names: metrics over all samples of a split, each once, whichever worker holds it."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from shoal.config import import_path, objects
from shoal.config.import_path import is_path
from shoal.data.loader import Batch
from shoal.data.tree import row_count
from shoal.errors import ConfigError
from shoal.tasks import torch_metrics

if TYPE_CHECKING:
    from torchmetrics import Metric

# From a model's outputs and a batch to (predictions, targets) as torchmetrics takes them.
Predictions = Callable[[Any, Batch], tuple[Any, Any]]
# To numbers [n] of the samples by name, and the samples' weights [n]; None: all are 1.
ValuesOfSamples = Callable[[Any, Batch], tuple[dict[str, Tensor], Tensor | None]]


class Kind(NamedTuple):
    """What a task predicts, for torchmetrics.

    Attributes:
        name: binary, multiclass, multilabel or regression.
        sizes: num_classes or num_labels, where the kind has it.
    """

    name: str
    sizes: Mapping[str, int] = {}


class Measure(Protocol):
    """One or several metrics of the rows that were added.

    Attributes:
        name: as `train.metrics` has it; empty for the loss.
    """

    name: str

    def fresh(self, device: torch.device) -> Self:
        """Return the same without rows."""
        ...

    def add(self, outputs: Any, batch: Batch) -> None:
        """Add a batch's rows, of which each has its outputs."""
        ...

    def state(self) -> Any:
        """Return what other processes need of the rows added, picklable; None: there are none."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the rows added by those of all processes: states of at least one, in the same order everywhere."""
        ...

    def results(self) -> dict[str, float]: ...


class SampleMeans:
    """Means over samples, of numbers by name that a function returns for each sample [n], weighted."""

    def __init__(self, name: str, values: ValuesOfSamples) -> None:
        self.name, self._values = name, values
        self._sums: dict[str, float] = {}
        self._weight = 0.0

    def fresh(self, device: torch.device) -> "SampleMeans":
        return SampleMeans(self.name, self._values)

    def add(self, outputs: Any, batch: Batch) -> None:
        values, weights = self._values(outputs, batch)
        for name, found in values.items():
            weighted = found.double() if weights is None else found.double() * weights
            self._sums[name] = self._sums.get(name, 0.0) + weighted.sum().item()
        self._weight += row_count(batch.inputs) if weights is None else weights.double().sum().item()

    def state(self) -> tuple[dict[str, float], float] | None:
        return (self._sums, self._weight) if self._sums else None

    def merge(self, states: Sequence[tuple[dict[str, float], float]]) -> None:
        self._sums = {name: sum(sums.get(name, 0.0) for sums, _ in states) for name in states[0][0]}
        self._weight = sum(weight for _, weight in states)

    def results(self) -> dict[str, float]:
        return {
            name: total / self._weight if self._weight else float("nan") for name, total in self._sums.items()
        }


class TorchMetric:
    """A metric of torchmetrics, or one of the user's own that is built like these."""

    def __init__(self, name: str, metric: "Metric", predictions: Predictions) -> None:
        self.name, self._metric, self._predictions = name, metric, predictions
        self._has_rows = False

    def fresh(self, device: torch.device) -> "TorchMetric":
        return TorchMetric(self.name, torch_metrics.ready(self._metric, device), self._predictions)

    def add(self, outputs: Any, batch: Batch) -> None:
        predictions, targets = self._predictions(outputs, batch)
        with torch_metrics.quiet():
            self._metric.update(predictions, targets)
        self._has_rows = True

    def state(self) -> list[torch_metrics.State] | None:
        return torch_metrics.states_of(self._metric) if self._has_rows else None

    def merge(self, states: Sequence[list[torch_metrics.State]]) -> None:
        torch_metrics.merge(self._metric, states)

    def results(self) -> dict[str, float]:
        """Return the metric, or those of a dict of metrics.

        Raises:
            ConfigError: it is no number, or cannot be computed of these rows.
        """
        try:
            with torch_metrics.quiet():
                found = self._metric.compute()
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"train.metrics '{self.name}' cannot be computed of these rows ({' '.join(str(error).split())}): hold "
                "out more rows, or leave it out"
            ) from error
        if isinstance(found, Mapping):
            return {f"{self.name}_{key}": self._number(value) for key, value in found.items()}
        return {self.name: self._number(found)}

    def _number(self, value: Any) -> float:
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value)
        if isinstance(value, int | float):
            return float(value)
        what = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        raise ConfigError(
            f"train.metrics '{self.name}' is {what}: a metric is one number, or a dict of numbers"
        )


def metric_name(spelled: str) -> str:
    """Return what a metric of `train.metrics` is called in records: the last part of an import path."""
    return objects.plain_name(spelled).rpartition(":")[2]


def make_measure(
    spelled: str, kind: Kind | None, predictions: Predictions, find: Callable[[str, str], Callable[..., Any]]
) -> Measure:
    """Return what an entry of `train.metrics` measures.

    Args:
        spelled: a name of torchmetrics, or an import path.
        kind: what the task predicts; None: only its own loss knows.
        predictions: of the task, which metrics of torchmetrics take; a function takes outputs and targets themselves.
        find: finds what an import path names.

    Raises:
        UserError: there is no such metric, or it cannot be built.
    """
    name = metric_name(spelled)
    if not is_path(spelled):
        if kind is None:
            raise ConfigError(
                f"train.metrics names '{spelled}', and task=custom does not say what its outputs are: name a function "
                "(outputs, targets) -> values [n], or a torchmetrics.Metric of your own, package.module:name"
            )
        return TorchMetric(name, torch_metrics.find_metric(spelled, *kind), predictions)
    found = find(spelled, "train.metrics")
    if _is_metric(type(found)):
        return TorchMetric(name, copy.deepcopy(found), predictions)  # type: ignore[arg-type]
    if inspect.isclass(found):
        if not _is_metric(found):
            raise ConfigError(
                f"train.metrics '{spelled}' is the class {found.__name__}, which is no torchmetrics.Metric: name one, "
                "or a function (outputs, targets) -> values [n]"
            )
        offered = {"task": kind.name, **kind.sizes} if kind else {}
        built = torch_metrics.build_metric(found, f"train.metrics '{spelled}'", offered)
        return TorchMetric(name, built, predictions)
    return SampleMeans(
        name, lambda outputs, batch: ({name: _values_of(found, spelled, outputs, batch)}, None)
    )


def _is_metric(kind: type) -> bool:
    """Whether a class is a torchmetrics.Metric, without importing the library."""
    return any(f"{base.__module__}.{base.__name__}" == "torchmetrics.metric.Metric" for base in kind.__mro__)


def _values_of(function: Callable[..., Any], spelled: str, outputs: Any, batch: Batch) -> Tensor:
    """Return a user's metric of each sample [n].

    Raises:
        ConfigError: it returns something else.
    """
    rows = row_count(batch.inputs)
    values = function(outputs, batch.targets)
    if not isinstance(values, Tensor) or values.shape != (rows,):
        shape = (
            f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"type {type(values).__name__}"
        )
        raise ConfigError(
            f"train.metrics '{spelled}' returned {shape} for {rows} samples: return a tensor [{rows}], a value for "
            "each sample; name a torchmetrics.Metric for what is no mean over samples"
        )
    return values


def is_higher_better(spelled: str, kind: str | None) -> bool | None:
    """Return in which direction an entry of `train.metrics` says that it is better; None: it does not say.

    Raises:
        UserError: an import path that leads nowhere.
    """
    if is_path(spelled):
        return getattr(import_path.find(spelled, "train.metrics"), "higher_is_better", None)
    return torch_metrics.higher_is_better(spelled, kind) if kind else None
