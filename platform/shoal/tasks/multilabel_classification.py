"""Several labels for each row, of which each is 0 or 1: binary cross entropy, averaged over the labels."""

from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import only_tensor, tensors
from shoal.errors import ModelError
from shoal.tasks.base import RowTerms, Task
from shoal.tasks.measures import Kind
from shoal.tasks.outputs import logits_of


class MultilabelClassification(Task):
    """0 or 1 for each of the columns of `data.label`."""

    name = "multilabel_classification"
    metric_names = ("loss", "accuracy", "f1_macro")
    metric_kind = "multilabel"
    keeps_targets = True
    takes_labels = True

    def __init__(self, labels: int) -> None:
        self.labels = labels
        self.sums_size = 3 + 3 * labels

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.outputs)

    @property
    def kind(self) -> Kind:
        return Kind("multilabel", {"num_labels": self.labels})

    def view(self, batch: Batch, epoch: int | None) -> Batch:
        """Return the batch with targets [n, labels], float32."""
        columns = [column.reshape(len(column), -1) for column in tensors(batch.targets)]
        return replace(batch, targets=torch.cat(columns, dim=1).float())

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.own_losses(outputs, batch).sum()

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = only_tensor(batch.targets)
        if outputs.shape != targets.shape:
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {len(targets)} samples of {self.labels} labels: it "
                f"must return {tuple(targets.shape)}; its builder receives `outputs`"
            )
        return F.binary_cross_entropy_with_logits(outputs.double(), targets.double(), reduction="none").mean(
            dim=1
        )

    def soft_losses(self, outputs: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        logits, expected = outputs.double() / temperature, (teacher.double() / temperature).sigmoid()
        losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
        least = F.binary_cross_entropy(expected, expected, reduction="none")
        return (losses - least).mean(dim=1) * temperature**2

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return rows, loss, labels predicted correctly; then of each label the hits, those predicted, those true."""
        loss, targets = self.own_total(outputs, batch), only_tensor(batch.targets).double()
        predicted = (outputs > 0).double()
        head = torch.stack(
            [loss.new_tensor(float(len(targets))), loss, (predicted == targets).double().sum()]
        )
        return torch.cat([head, (predicted * targets).sum(0), predicted.sum(0), targets.sum(0)])

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        self.own_losses(outputs, batch)  # checks the shape
        is_right = (outputs > 0) == (only_tensor(batch.targets) > 0.5)
        return {"accuracy": RowTerms.mean(is_right.double().mean(dim=1))}

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        """Return metrics: accuracy is of single labels, f1_macro the mean of the labels' F1, 0 where none is there."""
        count, loss, correct = sums[:3].tolist()
        hits, predicted, true = sums[3:].view(3, self.labels)
        f1 = 2 * hits / (predicted + true).clamp(min=1)
        return {
            "loss": loss / count,
            "accuracy": correct / (count * self.labels),
            "f1_macro": float(f1.mean()),
        }

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the probability of each label [n, labels], and the labels."""
        return logits_of(outputs).double().sigmoid(), only_tensor(batch.targets).long()
