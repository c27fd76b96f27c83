"""One class out of several: cross entropy, accuracy, confusion counts."""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.base import Task, View

# With more classes a confusion matrix cannot be read as a picture, and its square is too large to all-reduce.
MAX_CONFUSION = 1000


class Classification(Task):
    """One class for each row."""

    name = "classification"
    metric_names = ("loss", "accuracy")
    is_classification = True

    def __init__(self, classes: int, view: View | None = None) -> None:
        self.classes, self.view = classes, view
        self._cells = classes**2 if classes <= MAX_CONFUSION else 0
        self.sums_size = 3 + self._cells

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.outputs)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = only_tensor(batch.targets)
        if outputs.shape != (len(targets), self.classes):
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {len(targets)} samples of {self.classes} "
                f"classes: it must return {(len(targets), self.classes)}; its builder receives `outputs`"
            )
        # In float64: near p = 1 the float32 logarithm cancels, and its noise would differ between worker counts.
        return F.cross_entropy(outputs.double(), targets, reduction="sum")

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        predicted, targets = outputs.argmax(dim=1), only_tensor(batch.targets)
        head = torch.stack(
            [
                torch.tensor(float(len(targets)), dtype=torch.float64, device=outputs.device),
                self.loss(outputs, batch).double(),
                (predicted == targets).sum().double(),
            ]
        )
        if not self._cells:
            return head
        cells = torch.bincount(targets * self.classes + predicted, minlength=self._cells)
        return torch.cat([head, cells.double()])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        count, loss, correct = sums[:3].tolist()
        return {"loss": loss / count, "accuracy": correct / count}

    def confusion(self, sums: Tensor) -> Tensor | None:
        """Return [true class, predicted class] counts; None if there are more than `MAX_CONFUSION` classes."""
        return sums[3:].view(self.classes, self.classes).long() if self._cells else None


def per_class(confusion: Tensor) -> Mapping[str, list[float]]:
    """Return precision, recall and support of each class; 0 for a class that was never predicted or never true.

    Args:
        confusion: [true class, predicted class] counts.
    """
    counts = confusion.double()
    hit = counts.diagonal()
    support, predicted = counts.sum(dim=1), counts.sum(dim=0)
    return {
        "precision": (hit / predicted.clamp(min=1)).tolist(),
        "recall": (hit / support.clamp(min=1)).tolist(),
        "support": support.tolist(),
    }
