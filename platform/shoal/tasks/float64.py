"""Outputs and rows where float64 is: losses and sums are computed in it, and some devices have none.

Depends on what a device can; independent of the task.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shoal.data.loader import Batch
from shoal.data.tree import first_tensor, map_tensors, to_device
from shoal.devices import has_float64

View = Callable[[Batch, int | None], Batch]


def where_float64_is(outputs: Any, batch: Batch) -> tuple[Any, Batch]:
    """Return a model's outputs and their batch as they are, or on the host where their device has no float64."""
    if has_float64(first_tensor(batch.inputs).device):
        return outputs, batch
    return map_tensors(Tensor.cpu, outputs), with_float64(batch)


def view_with_float64(view: View, device: torch.device) -> View:
    """Return a task's view of rows of a device; where that has no float64, it is made on the host."""
    if has_float64(device):
        return view

    def on_host(batch: Batch, epoch: int | None) -> Batch:
        found = view(with_float64(batch), epoch)
        return replace(
            found, inputs=to_device(found.inputs, device), targets=to_device(found.targets, device)
        )

    return on_host


def with_float64(batch: Batch) -> Batch:
    """Return a batch as it is, or on the host."""
    if has_float64(first_tensor(batch.inputs).device):
        return batch
    return replace(
        batch,
        inputs=map_tensors(Tensor.cpu, batch.inputs),
        targets=map_tensors(Tensor.cpu, batch.targets),
        weights=None if batch.weights is None else batch.weights.cpu(),
    )
