"""What the training loop asks of a task, and what each task reports."""

from collections.abc import Callable
from typing import Literal, Protocol

from torch import Tensor

from shoal.data.loader import Batch

TaskName = Literal[
    "classification",
    "regression",
    "causal_lm",
    "masked_lm",
    "sequence_classification",
    "image_classification",
]

# Learnt from the text itself: there is no label.
LANGUAGE = ("causal_lm", "masked_lm")
ON_TEXT = (*LANGUAGE, "sequence_classification")

# What each task reports of the validation split; the first is what is minimised.
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("loss", "accuracy"),
    "regression": ("loss", "rmse", "mae", "r2"),
    "causal_lm": ("loss", "accuracy", "perplexity", "bits_per_byte"),
    "masked_lm": ("loss", "accuracy", "perplexity", "bits_per_byte"),
    "sequence_classification": ("loss", "accuracy"),
    "image_classification": ("loss", "accuracy"),
}

# Numbers of inputs that are evaluated at a time, and rows.
MAX_INPUTS, MAX_ROWS = 1 << 24, 1024


class Task(Protocol):
    """What the loop asks of a task."""

    name: str

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the samples' losses, float32 or better."""
        ...

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return a float64 vector of sums over the batch's samples; element 0 counts them."""
        ...

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Turn sums over all samples into named means."""
        ...

    @property
    def sums_size(self) -> int: ...

    @property
    def view(self) -> "View | None":
        """Makes what the model is given of a batch as it is stored; None: nothing is to be made."""
        ...

    @property
    def held_out_rows(self) -> int:
        """How many rows are evaluated at a time."""
        ...


# Of a batch and the epoch that it is trained in, or None where it is held out.
View = Callable[[Batch, int | None], Batch]
