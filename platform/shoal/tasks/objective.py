"""What is minimized and measured besides what a task does by itself: the user's loss, weights and metrics."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from shoal.config import import_path
from shoal.config.schema import Section
from shoal.data.labels import Label
from shoal.errors import ConfigError, nearest
from shoal.tasks import measures
from shoal.tasks.base import Task
from shoal.tasks.own_loss import OwnLoss

# From an import path and the key that names it to what is there.
Find = Callable[[str, str], Callable[..., Any]]


def _named_by_text(value: object) -> object:
    """Return a mapping with keys as text: YAML reads the class 1 as a number."""
    return {str(key): weight for key, weight in value.items()} if isinstance(value, Mapping) else value


class ObjectiveConfig(Section):
    """The part of the `train` section that says what is minimized and measured."""

    loss: str | None = Field(
        None,
        description="a function (outputs, targets) -> losses [n], or a dict of named ones, or a torch.nn.Module: "
        "package.module:name, torch.nn.functional:huber_loss; null: the task's own",
    )
    class_weight: (
        Literal["balanced"]
        | Annotated[dict[str, Annotated[float, Field(ge=0)]], BeforeValidator(_named_by_text)]
        | None
    ) = Field(
        None,
        description="of the loss: balanced, or {class: weight}; scaled to a mean of 1 over the training rows",
    )
    metrics: tuple[str, ...] = Field(
        (),
        description="more of them: torchmetrics' by name (auroc, f1, ...), a function (outputs, targets) -> values [n] "
        "or a torchmetrics.Metric, package.module:name",
    )

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the metrics are called in records."""
        return tuple(map(measures.metric_name, self.metrics))

    @property
    def is_own(self) -> bool:
        """Whether the loss is not the task's own, or weighted by class."""
        return self.loss is not None or self.class_weight is not None


def use_objective(
    task: Task, objective: ObjectiveConfig, label: Label, is_weighted: bool, find: Find = import_path.find
) -> None:
    """Have a task minimize and measure what a config says.

    Args:
        label: with the classes and how often each occurs in training.
        is_weighted: whether samples have weights.
        find: finds the user's functions and classes.

    Raises:
        UserError: there is no such loss or metric, or no such class.
    """
    if objective.loss is not None:
        task.own_loss = OwnLoss(objective.loss, find(objective.loss, "train.loss"))
    if objective.class_weight is not None:
        task.class_weights = _class_weights(objective.class_weight, label)
    own = [measures.make_measure(spelled, task.kind, task.predictions, find) for spelled in objective.metrics]
    if objective.is_own or is_weighted:
        own.insert(0, measures.SampleMeans("", task.weighted_losses))
    task.measures = (*own, *task.measures)
    task.directions = {**task.directions, **directions(objective, task.metric_kind)}


def _class_weights(given: Literal["balanced"] | Mapping[str, float], label: Label) -> Tensor:
    """Return the weight of each class [classes], with a mean of 1 over the training rows.

    balanced: rows / (classes * rows of the class), as scikit-learn has it.
    """
    counts = torch.tensor(label.counts, dtype=torch.float64)
    if given == "balanced":
        weights = 1 / counts.clamp(min=1)
    else:
        names = [str(name) for name in label.classes]
        unknown = next((name for name in given if name not in names), None)
        if unknown is not None:
            raise ConfigError(
                f"train.class_weight names the class '{unknown}'{nearest(unknown, names)}: the classes of "
                f"'{label.name}' are {', '.join(names[:10])}"
            )
        weights = torch.tensor([given.get(name, 1.0) for name in names], dtype=torch.float64)
    total = (weights * counts).sum()
    if total == 0:
        raise ConfigError("train.class_weight gives every training row the weight 0: give some class more")
    return weights * counts.sum() / total


def directions(objective: ObjectiveConfig, kind: str | None) -> dict[str, bool]:
    """Return whether a higher value is better, by name, of the metrics that say so themselves.

    Args:
        kind: `Task.metric_kind`.

    Raises:
        UserError: an import path leads nowhere.
    """
    said = {
        measures.metric_name(spelled): measures.is_higher_better(spelled, kind)
        for spelled in objective.metrics
    }
    return {name: bool(better) for name, better in said.items() if better is not None}
