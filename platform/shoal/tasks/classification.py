"""One class out of several: cross entropy, accuracy, confusion counts."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.base import RowTerms, Task, View
from shoal.tasks.measures import Kind
from shoal.tasks.outputs import logits_of

# With more classes a confusion matrix cannot be read as a picture, and its square is too large to all-reduce.
MAX_CONFUSION = 1000


def soft_divergence(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the losses [n] of logits [n, classes] beside a teacher's, as `Task.soft_losses` says."""
    found, expected = ((logits / temperature).log_softmax(dim=1) for logits in (outputs, teacher))
    losses = F.kl_div(found, expected, reduction="none", log_target=True).sum(dim=1)
    return losses * temperature**2


class Classification(Task):
    """One class for each row."""

    name = "classification"
    metric_names = ("loss", "accuracy")
    is_classification = True
    metric_kind = "multiclass"

    def __init__(self, classes: int, view: View | None = None) -> None:
        self.classes, self.view = classes, view
        self._cells = classes**2 if classes <= MAX_CONFUSION else 0
        self.sums_size = 3 + self._cells

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.outputs)

    @property
    def kind(self) -> Kind:
        name = "binary" if self.classes == 2 else "multiclass"
        return Kind(name, {"num_classes": self.classes})

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._cross_entropy(outputs, batch, "sum")

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._cross_entropy(outputs, batch, "none")

    def _cross_entropy(self, outputs: Tensor, batch: Batch, reduction: str) -> Tensor:
        targets = only_tensor(batch.targets)
        if outputs.shape != (len(targets), self.classes):
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {len(targets)} samples of {self.classes} "
                f"classes: it must return {(len(targets), self.classes)}; its builder receives `outputs`"
            )
        # In float64: near p = 1 the float32 logarithm cancels, and its noise would differ between worker counts.
        return F.cross_entropy(outputs.double(), targets, reduction=reduction)

    def soft_losses(self, outputs: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        return soft_divergence(outputs.double(), teacher.double(), temperature)

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        loss = self.own_total(outputs, batch)
        predicted, targets = outputs.argmax(dim=1), only_tensor(batch.targets)
        head = torch.stack(
            [
                torch.tensor(float(len(targets)), dtype=torch.float64, device=outputs.device),
                loss.double(),
                (predicted == targets).sum().double(),
            ]
        )
        if not self._cells:
            return head
        cells = torch.bincount(targets * self.classes + predicted, minlength=self._cells)
        return torch.cat([head, cells.double()])

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        self.own_total(outputs, batch)  # checks the shape
        return {"accuracy": RowTerms.mean(outputs.argmax(dim=1) == only_tensor(batch.targets))}

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        count, loss, correct = sums[:3].tolist()
        return {"loss": loss / count, "accuracy": correct / count}

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the probability of each class [n, classes], of the second of two classes [n]; and the classes."""
        probabilities = logits_of(outputs).double().softmax(dim=1)
        return probabilities[:, 1] if self.classes == 2 else probabilities, only_tensor(batch.targets)

    def confusion(self, sums: Tensor) -> Tensor | None:
        """Return [true class, predicted class] counts; None if there are more than `MAX_CONFUSION` classes, or none."""
        if not self._cells or bool(sums[1].isnan()):
            return None
        return sums[3:].view(self.classes, self.classes).long()
