"""What the training loop asks of a task, and what each task declares of itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import prod
from typing import ClassVar, NamedTuple, Self

from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform

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


class Task(ABC):
    """What is learnt. A subclass declares what its data are, and computes losses and metrics.

    Attributes:
        name: as a config spells it.
        metric_names: what it reports of a split; the first is minimized.
        compared_by: the metric that is the same for models that see the same rows in another form.
        is_classification: the label is one of several classes.
        has_label: there is a column to predict; else the target is made from the row itself.
        takes_text: rows are tokens of text.
        decodes_images: encoded images among the columns are decoded.
        sums_size: length of what `sums` returns.
        held_out_rows: how many rows are evaluated at a time; `make_task` sets it by `evaluation_rows`.
        view: makes what the model receives of a stored batch; None: the batch as it is.
    """

    name: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    compared_by: ClassVar[str] = "loss"
    is_classification: ClassVar[bool] = False
    has_label: ClassVar[bool] = True
    takes_text: ClassVar[bool] = False
    decodes_images: ClassVar[bool] = False

    sums_size: int
    held_out_rows: EvaluationRows = EvaluationRows(1, MAX_ROWS)
    view: View | None = None

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

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the samples' losses, float32 or better."""

    @abstractmethod
    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return a float64 vector [sums_size] of sums over the batch's samples; element 0 counts them."""

    @abstractmethod
    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all samples into named means."""
