"""What a loss of the user's own makes of it: targets are the label's own numbers, and the loss alone is reported."""

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import clone, first_tensor, map_tensors, row_count
from shoal.tasks.base import Task


class Custom(Task):
    """A task that `train.loss` defines."""

    name = "custom"
    metric_names = ("loss",)
    keeps_targets = True
    takes_labels = True
    may_have_no_label = True
    needs_own_loss = True
    sums_size = 2

    def __init__(self, has_label: bool = True) -> None:
        """Set whether there are targets; else they are the inputs themselves, which a model is to return."""
        self.view = as_numbers if has_label else inputs_as_targets

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.has_label)

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError("a custom task has no loss of its own")

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError("a custom task has no loss of its own")

    def sums(self, outputs: Any, batch: Batch) -> Tensor:
        """Return the number of rows; what is measured of them is the loss, and `train.metrics`."""
        device = first_tensor(batch.inputs).device
        return torch.tensor([row_count(batch.inputs), torch.nan], dtype=torch.float64, device=device)

    own_sums = sums

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        return {}


def as_numbers(batch: Batch, epoch: int | None) -> Batch:
    """Return the batch with targets as float32 or int64."""
    return replace(
        batch,
        targets=map_tensors(
            lambda one: one.float() if one.is_floating_point() else one.long(), batch.targets
        ),
    )


def inputs_as_targets(batch: Batch, epoch: int | None) -> Batch:
    """Return the batch with its inputs as targets: a copy, since a model may write on its inputs."""
    return replace(batch, targets=clone(batch.inputs))
