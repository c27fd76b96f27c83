"""What the training loop asks of a task, and what each task declares of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import first_tensor, only_tensor, row_count
from shoal.errors import ModelError
from shoal.tasks.libraries import Library
from shoal.tasks.measures import Kind, Measure
from shoal.tasks.metrics import BY_NAME, Directions, is_higher_better
from shoal.tasks.outputs import logits_of
from shoal.tasks.own_loss import LOSS, SampleLosses

# The limit of samples evaluated at a time: by numbers of inputs, and by rows.
MAX_INPUTS, MAX_ROWS = 1 << 24, 1024
# So many numbers, or tokens, are evaluated at a time whatever the training's batch: in fewer, time goes into calls.
FEW_INPUTS, FEW_TOKENS = 1 << 16, 1 << 13

# From a stored batch, and the epoch that it is trained in or None where it is held out, to what the model receives.
View = Callable[[Batch, int | None], Batch]


class EvaluationRows(NamedTuple):
    """How many rows are evaluated at a time: what training runs at a time, but at least `few` and at most `most`."""

    few: int
    most: int

    def at_a_time(self, trained: int) -> int:
        """Return the number of rows.

        Args:
            trained: samples that training runs at a time.
        """
        return min(self.most, max(self.few, trained))


class RowTerms(NamedTuple):
    """What each row adds to a metric that is (sum of `above` / sum of `below`) ** `exponent`; both are float64 [n]."""

    above: Tensor
    below: Tensor
    exponent: float = 1.0

    @classmethod
    def mean(cls, values: Tensor, exponent: float = 1.0) -> Self:
        """Return the terms of a mean over rows."""
        return cls(values.double(), torch.ones(len(values), dtype=torch.float64), exponent)


class Task(ABC):
    """What is learnt. A subclass declares what its data are, and computes losses and metrics.

    Attributes:
        name: as a config spells it.
        metric_names: what it reports of a split; the first is minimized.
        compared_by: the metric that is the same for models that see the same rows in another form.
        is_classification: the label is one of several classes.
        keeps_targets: targets are what the source has as the label, an array or a tree of several, in its own numbers.
        takes_labels: there may be several columns to predict.
        may_have_no_label: `data.label` may be null.
        needs_own_loss: it has no loss of its own.
        has_label: there is a column to predict; else the target is made from the row itself.
        takes_text: rows are tokens of text.
        metric_kind: the kind of torchmetrics' metrics for its predictions; None: it does not say what they are.
        decodes_images: encoded images among the columns are decoded.
        takes_recordings: rows are recordings with their texts.
        takes_boxes: rows are images with boxes of objects.
        libraries: that it needs besides those that all tasks do.
        counts_terms: a loss is divided by the `terms` of a global batch, not by its rows.
        sums_size: length of what `sums` returns.
        held_out_rows: how many rows are evaluated at a time; `make_task` sets it by `evaluation_rows`.
        view: makes what the model receives of a stored batch; None: the batch as it is.
        own_loss: the user's, or that of a student, which is minimized instead of the task's.
        class_weights: [classes] of the loss; None: all are 1.
        measures: the metrics of `train.metrics`, and the loss where it is weighted or the user's.
        directions: in which metrics are better, of those whose names do not say it.
    """

    name: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    compared_by: ClassVar[str] = "loss"
    is_classification: ClassVar[bool] = False
    keeps_targets: ClassVar[bool] = False
    takes_labels: ClassVar[bool] = False
    may_have_no_label: ClassVar[bool] = False
    needs_own_loss: ClassVar[bool] = False
    has_label: ClassVar[bool] = True
    takes_text: ClassVar[bool] = False
    decodes_images: ClassVar[bool] = False
    takes_recordings: ClassVar[bool] = False
    takes_boxes: ClassVar[bool] = False
    libraries: ClassVar[tuple[Library, ...]] = ()
    counts_terms: ClassVar[bool] = False
    metric_kind: ClassVar[str | None] = None

    sums_size: int
    held_out_rows: EvaluationRows = EvaluationRows(1, MAX_ROWS)
    view: View | None = None
    own_loss: SampleLosses | None = None
    class_weights: Tensor | None = None
    measures: tuple[Measure, ...] = ()
    directions: Directions = BY_NAME

    @classmethod
    @abstractmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        """Build the task for the rows that a transform makes."""

    @classmethod
    def evaluation_rows(cls, sample: tuple[int, ...], outputs: int) -> EvaluationRows:
        """Return how many rows of a shape are evaluated at a time; `outputs` are the numbers of a sample or token."""
        size = prod(sample)
        few = (FEW_TOKENS if cls.takes_text else FEW_INPUTS) // size
        return EvaluationRows(max(1, few), max(1, min(MAX_ROWS, MAX_INPUTS // size)))

    @classmethod
    def check_installed(cls) -> None:
        """Refuse to start without a library that the task needs besides those that all have.

        Raises:
            ConfigError: it cannot be imported; with the command that installs it.
        """
        for library in cls.libraries:
            library.check(f"task={cls.name}")

    @property
    def kind(self) -> Kind | None:
        """What torchmetrics calls its predictions."""
        return Kind(self.metric_kind) if self.metric_kind else None

    def compile(self) -> None:  # noqa: B027  # most have nothing to compile
        """Have what is costly in the loss compiled, as the model is."""

    def loss(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the weighted sum of the samples' losses, float32 or better, of what a model returned."""
        weights = self.weights(batch)
        if self.own_loss is None and weights is None:
            return self.own_total(logits_of(outputs), batch)
        total = torch.stack(list(self.sample_losses(outputs, batch).values())).sum(dim=0)
        return (total if weights is None else total * weights).sum()

    def terms(self, batch: Batch) -> Tensor:
        """Return how many terms the loss of a batch's rows has, a float64 scalar."""
        return torch.tensor(float(row_count(batch.inputs)), dtype=torch.float64)

    def sample_losses(self, outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """Return named losses [n] of the samples, without weights; their sum is minimized."""
        if self.own_loss is None:
            return {LOSS: self.own_losses(logits_of(outputs), batch)}
        found = self.own_loss(outputs, batch.targets, batch.inputs)
        return {name: loss.double() for name, loss in found.items()}

    def weights(self, batch: Batch) -> Tensor | None:
        """Return the weights [n] of the samples' losses; None: all are 1."""
        if self.class_weights is None:
            return batch.weights
        targets = only_tensor(batch.targets)
        of_class = self.class_weights.to(targets.device)[targets]
        return of_class if batch.weights is None else of_class * batch.weights

    def weighted_losses(self, outputs: Any, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the total and the named losses [n] of the samples, and their weights [n]."""
        losses = self.sample_losses(outputs, batch)
        return {LOSS: torch.stack(list(losses.values())).sum(dim=0)} | losses, self.weights(batch)

    def soft_losses(self, outputs: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Return the losses [n] of the samples compared with what a teacher returned for them, float32 or better.

        Of classes it is the cross entropy with the teacher's probabilities, both at a temperature T, times T^2, so that
        the size of its gradients does not depend on T (Hinton et al. 2015, "Distilling the Knowledge in a Neural
        Network", section 2.1), less the teacher's own entropy, so that it is 0 where both answer the same.

        Args:
            outputs: raw ones, in the shape that the task needs.
            teacher: in the same shape.

        Raises:
            ModelError: the task does not say what its outputs mean.
        """
        raise ModelError(f"task={self.name} has no loss by which a student could be taught")

    def sums(self, outputs: Any, batch: Batch) -> Tensor:
        """Return a float64 vector [sums_size] of sums over the batch's samples; element 0 counts them.

        The others are NaN where a loss of the user's own takes outputs that the task's own metrics do not.
        """
        if self.own_loss is None:
            return self.own_sums(logits_of(outputs), batch)
        try:
            return self.own_sums(logits_of(outputs), batch)
        except ModelError:
            device = first_tensor(batch.inputs).device
            sums = torch.full((self.sums_size,), torch.nan, dtype=torch.float64, device=device)
            sums[0] = row_count(batch.inputs)
            return sums

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all samples into named means."""
        return {} if self.own_loss is not None and bool(sums[1].isnan()) else self.own_metrics(sums)

    def row_terms(self, outputs: Any, batch: Batch) -> dict[str, RowTerms]:
        """Return what each row adds to the metrics by which two models are compared on the same rows."""
        losses, weights = self.weighted_losses(outputs, batch)
        loss = losses[LOSS].double()
        below = torch.ones_like(loss) if weights is None else weights.double()
        weighted = {LOSS: RowTerms(loss * below, below)}
        if self.own_loss is None:
            own = self.own_row_terms(logits_of(outputs), batch)
            return weighted | own if weights is None else own | weighted
        try:
            return self.own_row_terms(logits_of(outputs), batch) | weighted
        except ModelError:  # the user's loss takes outputs that the task's own metrics do not
            return weighted

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        """Return what each row adds to the task's own metrics; it raises as `own_total`."""
        return {}

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Any, Any]:
        """Return predictions and targets as metrics of torchmetrics take them."""
        return outputs, batch.targets

    @classmethod
    def names_of_metrics(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return `metric_names`, or what they are for several columns to predict."""
        return cls.metric_names

    @classmethod
    def directions_of(cls, labels: tuple[str, ...]) -> Directions:
        """Return in which direction metrics are better whose names end with the column's that they are of."""
        return {
            name: is_higher_better(metric)
            for metric in cls.metric_names
            for name in cls.names_of_metrics(labels)
            if name.startswith(f"{metric}_")
        }

    @abstractmethod
    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the samples' losses.

        Raises:
            ModelError: the outputs do not have the shape that the task needs.
        """

    @abstractmethod
    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the samples' losses [n], of which `own_total` is the sum; it raises the same."""

    @abstractmethod
    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return what `sums` returns; it raises as `own_total`."""

    @abstractmethod
    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all samples into named means."""
