"""One number for each row: squared error on standardized targets."""

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.base import Task
from shoal.tasks.outputs import logits_of


class Regression(Task):
    """One number for each row; rmse and mae are in the label's own unit."""

    name = "regression"
    metric_names = ("loss", "rmse", "mae", "r2")
    compared_by = "rmse"  # the loss is of targets that each run standardizes by its own training rows
    metric_kind = "regression"
    sums_size = 5

    def __init__(self, scale: float, mean: float = 0.0) -> None:
        """Set the label's standard deviation and mean, by which its values were standardized."""
        self.scale, self.mean = scale, mean

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.label.std, transform.label.mean)

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._squared_error(outputs, batch, "sum")

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._squared_error(outputs, batch, "none")

    def _squared_error(self, outputs: Tensor, batch: Batch, reduction: str) -> Tensor:
        targets = only_tensor(batch.targets)
        if outputs.numel() != len(targets):
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {len(targets)} samples of one number: "
                f"it must return {(len(targets), 1)}; its builder receives `outputs`"
            )
        return F.mse_loss(outputs.reshape(-1).double(), targets.double(), reduction=reduction)

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        squared, targets = self.own_total(outputs, batch), only_tensor(batch.targets).double()
        error = outputs.reshape(-1).double() - targets
        count = torch.tensor(float(len(targets)), dtype=torch.float64, device=outputs.device)
        return torch.stack([count, squared, error.abs().sum(), targets.sum(), (targets**2).sum()])

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        count, squared, absolute, total, total_squared = sums.tolist()
        spread = total_squared - total**2 / count
        return {
            "loss": squared / count,
            "rmse": self.scale * (squared / count) ** 0.5,
            "mae": self.scale * absolute / count,
            "r2": 1.0 - squared / spread if spread > 0 else float("nan"),
        }

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return values and targets [n] in the label's own unit."""
        values, targets = logits_of(outputs).reshape(-1).double(), only_tensor(batch.targets).double()
        return values * self.scale + self.mean, targets * self.scale + self.mean
