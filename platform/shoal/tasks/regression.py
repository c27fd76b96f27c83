"""One or several numbers for each row: squared error on standardized targets."""

from collections.abc import Sequence
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
from shoal.tasks.outputs import logits_of


class Regression(Task):
    """One number for each row, or several; rmse and mae are in the label's own unit, and by its name of several."""

    name = "regression"
    metric_names = ("loss", "rmse", "mae", "r2")
    compared_by = "rmse"  # the loss is of targets that each run standardizes by its own training rows
    metric_kind = "regression"
    takes_labels = True

    def __init__(
        self,
        scale: float | Sequence[float],
        mean: float | Sequence[float] = 0.0,
        names: Sequence[str] = ("",),
    ) -> None:
        """Set the labels' standard deviations and means, by which their values were standardized.

        Args:
            names: of the labels; one without a name is the only one.
        """
        self.scale, self.mean = (
            torch.atleast_1d(torch.tensor(x, dtype=torch.float64)) for x in (scale, mean)
        )
        self.names, self.sums_size = tuple(names), 1 + 4 * len(names)
        self.directions = self.directions_of(self.names)
        if self.names != ("",):
            self.view = self._standardized

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        columns = transform.target_columns
        if not columns:
            return cls(transform.label.std, transform.label.mean)
        return cls([c.std for c in columns], [c.mean for c in columns], [c.name for c in columns])  # type: ignore[misc]

    @classmethod
    def names_of_metrics(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(labels) < 2:
            return cls.metric_names
        return ("loss", *(f"{metric}_{name}" for metric in cls.metric_names[1:] for name in labels))

    def _standardized(self, batch: Batch, epoch: int | None) -> Batch:
        """Return the batch with targets [n, labels], float32."""
        raw = torch.stack([column.reshape(-1).double() for column in tensors(batch.targets)], dim=1)
        targets = (raw - self.mean.to(raw.device)) / self.scale.to(raw.device)
        return replace(batch, targets=targets.float())

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(*self._compared(outputs, batch), reduction="sum") / len(self.names)

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(*self._compared(outputs, batch), reduction="none").mean(dim=1)

    def soft_losses(self, outputs: Tensor, teacher: Tensor, batch: Batch, temperature: float) -> Tensor:
        """Return the squared errors beside the teacher's numbers, which have no temperature."""
        return self.own_losses(outputs, replace(batch, targets=teacher))

    def _compared(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return outputs and targets [n, labels], float64."""
        targets, labels = only_tensor(batch.targets), len(self.names)
        if outputs.numel() != targets.numel() or (labels > 1 and outputs.shape != targets.shape):
            what = "one number" if labels == 1 else f"{labels} numbers"
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {len(targets)} samples of {what}: "
                f"it must return {(len(targets), labels)}; its builder receives `outputs`"
            )
        return outputs.reshape(-1, labels).double(), targets.reshape(-1, labels).double()

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return rows; then of each label squared and absolute errors, targets and their squares."""
        values, targets = self._compared(outputs, batch)
        error = values - targets
        found = [(error**2).sum(0), error.abs().sum(0), targets.sum(0), (targets**2).sum(0)]
        return torch.cat([targets.new_tensor([float(len(targets))]), *found])

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        values, targets = self._compared(outputs, batch)
        errors = (values - targets) * self.scale.to(values.device)
        found = {}
        for name, error in zip(self.names, errors.T, strict=True):
            end = f"_{name}" if name else ""
            found[f"rmse{end}"] = RowTerms.mean(error**2, exponent=0.5)
            found[f"mae{end}"] = RowTerms.mean(error.abs())
        return found

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        count = sums[0].item()
        of_labels = sums[1:].view(4, -1).T.tolist()
        metrics = {"loss": sum(squared for squared, *_ in of_labels) / count / len(of_labels)}
        for name, scale, (squared, absolute, total, total_squared) in zip(
            self.names, self.scale.tolist(), of_labels, strict=True
        ):
            spread = total_squared - total**2 / count
            end = f"_{name}" if name else ""
            metrics |= {
                f"rmse{end}": scale * (squared / count) ** 0.5,
                f"mae{end}": scale * absolute / count,
                f"r2{end}": 1.0 - squared / spread if spread > 0 else float("nan"),
            }
        return metrics

    def predictions(self, outputs: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return values and targets [n], or [n, labels], in the labels' own units."""
        values, targets = self._compared(logits_of(outputs), batch)
        scale, mean = self.scale.to(values.device), self.mean.to(values.device)
        found, expected = values * scale + mean, targets * scale + mean
        return (found[:, 0], expected[:, 0]) if len(self.names) == 1 else (found, expected)
