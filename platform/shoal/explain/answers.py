"""What a model's outputs mean: their names, the loss of a row, what they are shown as; one class for each kind.

Depends on tasks and the transform; independent of attribution.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.config.loading import read
from shoal.data.labels import Label
from shoal.data.loader import Batch
from shoal.data.preprocessing import Column
from shoal.data.tree import Tree, only_tensor, row_count, select_rows, tensors
from shoal.errors import ConfigError, nearest
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.tasks.base import Task
from shoal.tasks.custom import Custom
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.outputs import logits_of, tensors_of

LISTED = 20  # names in an error


@dataclass(frozen=True, eq=False)
class Answers(ABC):
    """Outputs of one kind.

    Attributes:
        names: of the outputs.
        shown_as: what `shown` returns.
        called: what one output is, and several.
    """

    names: tuple[str, ...]
    shown_as: ClassVar[str] = "probability of what is explained"
    called: ClassVar[tuple[str, str]] = ("an output", "outputs")

    def outputs(self, returned: Any) -> Tensor:
        """Return what is explained [n, outputs] of what the model returned for n rows."""
        found = logits_of(returned)
        return found.reshape(len(found), -1)

    @abstractmethod
    def losses(self, returned: Any, labels: Tree, inputs: Tensor) -> Tensor:
        """Return the loss of each row [n], float64."""

    @abstractmethod
    def constant_loss(self, labels: Tree) -> float | None:
        """Return the mean loss of the best constant answer; None: nobody knows which one is the best."""

    @abstractmethod
    def predicted(self, outputs: Tensor) -> str:
        """Return what outputs [outputs] of a row mean."""

    @abstractmethod
    def label(self, labels: Tree, row: int) -> str:
        """Return the label of a row as text."""

    def shown(self, outputs: Tensor) -> Tensor:
        """Return what outputs [n, outputs] are shown as."""
        return outputs

    def targets(self, value: Any, outputs: Tensor) -> Tensor:
        """Return which output of each row is explained [n]: the one that `explain.target` names, or the likeliest.

        Raises:
            ConfigError: no output has this name.
        """
        if value is None:
            return outputs.argmax(dim=1)
        return torch.full((len(outputs),), self.place_of(value))

    def place_of(self, value: Any) -> int:
        """Return the place of an output by its name, or by what YAML reads its name as: `yes` is true."""
        found = [name for name in self.names if name == str(value)] or [
            name for name in self.names if read(None, [f"name={name}"])["name"] is value
        ]
        if not found:
            one, several = self.called
            raise ConfigError(
                f"explain.target={value} is not {one} of the model{nearest(str(value), self.names)}: the {several} "
                f"are {listed(self.names)}"
            )
        return self.names.index(found[0])


@dataclass(frozen=True, eq=False)
class OneOfClasses(Answers):
    """Logits of classes, of which one is right; labels are numbers of classes [n]."""

    of: Label
    called = ("a class", "classes")

    def losses(self, returned: Any, labels: Tree, inputs: Tensor) -> Tensor:
        return F.cross_entropy(self.outputs(returned).double(), only_tensor(labels), reduction="none")

    def constant_loss(self, labels: Tree) -> float:
        counts = torch.bincount(only_tensor(labels)).double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum())

    def predicted(self, outputs: Tensor) -> str:
        best = int(outputs.argmax())
        return f"{self.names[best]} ({float(outputs.softmax(dim=0)[best]):.1%})"

    def label(self, labels: Tree, row: int) -> str:
        return _text(self.of, only_tensor(labels)[row])

    def shown(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(dim=1)


@dataclass(frozen=True, eq=False)
class SeveralLabels(Answers):
    """Logits of labels, each of which a row has or not; labels are 1 and 0 [n, labels]."""

    called = ("a label", "labels")

    def losses(self, returned: Any, labels: Tree, inputs: Tensor) -> Tensor:
        found = F.binary_cross_entropy_with_logits(
            self.outputs(returned).double(), _flat(labels), reduction="none"
        )
        return found.mean(dim=1)

    def constant_loss(self, labels: Tree) -> float:
        shares = _flat(labels).mean(dim=0).clamp(1e-12, 1 - 1e-12)
        return float(F.binary_cross_entropy(shares, shares))

    def predicted(self, outputs: Tensor) -> str:
        return self._there(outputs > 0)

    def label(self, labels: Tree, row: int) -> str:
        return self._there(_flat(select_rows(labels, slice(row, row + 1)))[0] > 0)

    def _there(self, is_there: Tensor) -> str:
        found = [name for name, one in zip(self.names, is_there.tolist(), strict=True) if one]
        return ", ".join(found) or "none"

    def shown(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()


@dataclass(frozen=True, eq=False)
class Number(Answers):
    """A number in the unit of the label, less its mean; labels are standardized [n]."""

    of: Label
    shown_as = "output less the label's mean"

    def outputs(self, returned: Any) -> Tensor:
        return super().outputs(returned) * float(self.of.std)

    def losses(self, returned: Any, labels: Tree, inputs: Tensor) -> Tensor:
        return (self.outputs(returned)[:, 0].double() - only_tensor(labels).double() * self.of.std).square()

    def constant_loss(self, labels: Tree) -> float:
        return float((only_tensor(labels).double() * self.of.std).var(correction=0))

    def predicted(self, outputs: Tensor) -> str:
        return f"{float(outputs[0]) + float(self.of.mean):.4g}"

    def label(self, labels: Tree, row: int) -> str:
        return _text(self.of, only_tensor(labels)[row])

    def place_of(self, value: Any) -> int:
        raise ConfigError(
            f"explain.target={value}: the model predicts the number '{self.names[0]}', no classes: leave it out"
        )


@dataclass(frozen=True, eq=False)
class OfOwnLoss(Answers):
    """What a model of a custom task returned, number by number; only the user's loss knows what it means."""

    task: Task
    shown_as = "output that is explained"

    def outputs(self, returned: Any) -> Tensor:
        return torch.cat([values.flatten(1) for values in _by_name(returned).values()], dim=1)

    def losses(self, returned: Any, labels: Tree, inputs: Tensor) -> Tensor:
        found = self.task.sample_losses(returned, Batch(inputs, labels, count=len(inputs)))
        return torch.stack(list(found.values())).sum(dim=0).double()

    def constant_loss(self, labels: Tree) -> None:
        return None

    def predicted(self, outputs: Tensor) -> str:
        return _numbers(outputs)

    def label(self, labels: Tree, row: int) -> str:
        return _numbers(torch.cat([one[row].double().reshape(-1) for one in tensors(labels)]))

    def targets(self, value: Any, outputs: Tensor) -> Tensor:
        """Return the output that is named; there is no likeliest one.

        Raises:
            ConfigError: no output has this name or number, or there are several and none is named.
        """
        if value is None and len(self.names) > 1:
            raise ConfigError(
                f"a model of task=custom with {len(self.names)} outputs: name the one to explain by explain.target: "
                f"{listed(self.names)}"
            )
        return super().targets(self.names[0] if value is None else value, outputs)

    def place_of(self, value: Any) -> int:
        is_number = type(value) is int and 0 <= value < len(self.names)
        return int(value) if is_number else super().place_of(value)


def answers_of(predictor: Predictor, rows: Tensor) -> Answers:
    """Return what the outputs of a model are.

    Args:
        rows: of features, at least one.

    Raises:
        ModelError: the loss of a custom task is code that may not be run, or its model returns no tensor with rows.
    """
    transform, label = predictor.transform, predictor.transform.label
    if predictor.task.name == Custom.name:
        predictor.accumulator()  # which gives the task the user's loss
        with torch.no_grad():
            found = _by_name(call_model(predictor.model, rows[:1].clone()))
        named = [name for key, values in found.items() for name in _places(key, tuple(values.shape[1:]))]
        return OfOwnLoss(tuple(named), predictor.task)
    if predictor.task.name == MultilabelClassification.name:
        return SeveralLabels(tuple(name for one in transform.target_columns for name in names_of(one)))
    if label.classes:
        return OneOfClasses(tuple(map(str, label.classes)), label)
    return Number((label.name,), label)


def names_of(column: Column) -> list[str]:
    """Return a name for each number of a column: its own, or with the place in an array."""
    return _places(column.name, column.shape)


def listed(names: Sequence[str]) -> str:
    """Return the first of many names."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _places(name: str, shape: tuple[int, ...]) -> list[str]:
    if not shape or shape == (1,):
        return [name]
    return [f"{name}[{', '.join(map(str, place))}]" for place in itertools.product(*map(range, shape))]


def _by_name(returned: Any) -> dict[str, Tensor]:
    """Return tensors of numbers, a row for each row of the inputs."""
    return {
        name: values if values.ndim > 1 else values[:, None] for name, values in tensors_of(returned).items()
    }


def _flat(labels: Tree) -> Tensor:
    """Return the numbers of all labels of each row [n, labels]."""
    return torch.cat([one.reshape(row_count(labels), -1) for one in tensors(labels)], dim=1).double()


def _numbers(values: Tensor) -> str:
    return listed([f"{value:.4g}" for value in values.flatten().tolist()])


def _text(of: Label, label: Tensor) -> str:
    found = of.values((label if of.classes else label.double()).reshape(1).numpy())[0]
    return f"{found:.4g}" if isinstance(found, float) else str(found)
