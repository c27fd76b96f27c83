"""What is learnt: the loss of a batch, and the sums from which metrics are made.

A task works on sums over samples, so that workers' sums add up to the whole.
"""

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.shard import Batch
from shoal.errors import ModelError

TaskName = Literal["classification", "regression"]

# Beyond this many classes a confusion matrix is no picture any more, and its square is too large to reduce.
MAX_CONFUSION = 1000


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


class Classification:
    """One class out of several: cross entropy, accuracy, confusion counts."""

    name = "classification"

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._cells = classes**2 if classes <= MAX_CONFUSION else 0

    @property
    def sums_size(self) -> int:
        return 3 + self._cells

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if outputs.shape != (len(batch.targets), self.classes):
            raise ModelError(
                f"the model put out {tuple(outputs.shape)} for {len(batch.targets)} samples of {self.classes} "
                f"classes: it must put out {(len(batch.targets), self.classes)}; its builder is given `outputs`"
            )
        # In float64: near p = 1 the float32 logarithm cancels, and its noise would tell worker counts apart.
        return F.cross_entropy(outputs.double(), batch.targets, reduction="sum")

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        predicted = outputs.argmax(dim=1)
        head = torch.stack(
            [
                torch.tensor(float(len(batch.targets)), dtype=torch.float64, device=outputs.device),
                self.loss(outputs, batch).double(),
                (predicted == batch.targets).sum().double(),
            ]
        )
        if not self._cells:
            return head
        cells = torch.bincount(batch.targets * self.classes + predicted, minlength=self._cells)
        return torch.cat([head, cells.double()])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        count, loss, correct = sums[:3].tolist()
        return {"loss": loss / count, "accuracy": correct / count}

    def confusion(self, sums: Tensor) -> Tensor | None:
        """Return [true class, predicted class] counts."""
        return sums[3:].view(self.classes, self.classes).long() if self._cells else None


class Regression:
    """One number: squared error on standardised targets, errors reported in the label's own unit."""

    name = "regression"
    sums_size = 5

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if outputs.numel() != len(batch.targets):
            raise ModelError(
                f"the model put out {tuple(outputs.shape)} for {len(batch.targets)} samples of one number: "
                f"it must put out {(len(batch.targets), 1)}; its builder is given `outputs`"
            )
        return F.mse_loss(outputs.reshape(-1).double(), batch.targets.double(), reduction="sum")

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = batch.targets.double()
        error = outputs.reshape(-1).double() - targets
        count = torch.tensor(float(len(targets)), dtype=torch.float64, device=outputs.device)
        return torch.stack([count, (error**2).sum(), error.abs().sum(), targets.sum(), (targets**2).sum()])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        count, squared, absolute, total, total_squared = sums.tolist()
        spread = total_squared - total**2 / count
        return {
            "loss": squared / count,
            "rmse": self.scale * (squared / count) ** 0.5,
            "mae": self.scale * absolute / count,
            "r2": 1.0 - squared / spread if spread > 0 else float("nan"),
        }


def make_task(name: TaskName, classes: int, label_std: float) -> Task:
    """Build the task a config names."""
    return Classification(classes) if name == "classification" else Regression(label_std)


def per_class(confusion: Tensor) -> Mapping[str, list[float]]:
    """Return precision, recall and support of each class; 0 where nothing was predicted or there."""
    counts = confusion.double()
    hit = counts.diagonal()
    support, predicted = counts.sum(dim=1), counts.sum(dim=0)
    return {
        "precision": (hit / predicted.clamp(min=1)).tolist(),
        "recall": (hit / support.clamp(min=1)).tolist(),
        "support": support.tolist(),
    }
