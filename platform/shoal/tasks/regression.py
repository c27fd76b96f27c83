"""One number for each row: squared error on standardized targets."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.base import Task


class Regression(Task):
    """One number for each row; rmse and mae are in the label's own unit."""

    name = "regression"
    metric_names = ("loss", "rmse", "mae", "r2")
    compared_by = "rmse"  # the loss is of targets that each run standardizes by its own training rows
    sums_size = 5

    def __init__(self, scale: float) -> None:
        """Set the label's standard deviation, by which its values were divided."""
        self.scale = scale

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.label.std)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = only_tensor(batch.targets)
        if outputs.numel() != len(targets):
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {len(targets)} samples of one number: "
                f"it must return {(len(targets), 1)}; its builder receives `outputs`"
            )
        return F.mse_loss(outputs.reshape(-1).double(), targets.double(), reduction="sum")

    def sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = only_tensor(batch.targets).double()
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
