"""One number: squared error on standardised targets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.loader import Batch
from shoal.errors import ModelError
from shoal.tasks.base import MAX_ROWS


class Regression:
    """One number: squared error on standardised targets, errors reported in the label's own unit."""

    name = "regression"
    sums_size = 5
    view = None
    held_out_rows = MAX_ROWS

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
