"""Rows that are kept in their source's own type become what a model takes, batch by batch.

An image of bytes takes a quarter of the memory of its float32 numbers. These are the numbers of `Transform.features`,
to the bit: both are computed in float64 and rounded once.
"""

from dataclasses import replace

import torch
from torch import Tensor

from shoal.data.loader import Batch
from shoal.data.preprocessing import Column, Transform


class Widen:
    """A view of batches whose inputs are as `Transform.stored` keeps them; it is the same for every epoch."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        self._fitted: dict[torch.device, tuple[Tensor, Tensor]] = {}  # mean and std, on each device

    def __call__(self, batch: Batch, epoch: int | None) -> Batch:
        column, inputs = self._transform.narrow, batch.inputs
        if column is None or not isinstance(inputs, Tensor) or str(inputs.dtype) != f"torch.{column.dtype}":
            return batch
        if column.kind == "ready":
            is_signed = inputs.dtype in (torch.int8, torch.int16)
            return replace(batch, inputs=inputs.to(torch.int64 if is_signed else torch.float32))
        mean, std = self._on(column, inputs.device)
        rows = inputs.view(len(inputs), *column.shape).double()
        return replace(batch, inputs=((rows - mean) / std).float().view(inputs.shape))

    def _on(self, column: Column, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._fitted:
            mean, std = (
                torch.tensor(value, dtype=torch.float64, device=device) for value in (column.mean, column.std)
            )
            self._fitted[device] = mean, std
        return self._fitted[device]
