"""A worker's rows, batch by batch: the interface, and the shard that is kept in memory.

The shard that streams through Ray Data is in `shoal.cluster.streaming`; both yield the same batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from shoal.data.sampler import Lanes
from shoal.data.tree import Tree

# Gathering one small batch takes as long as gathering many: this much is gathered at a time.
GATHERED_BYTES = 1 << 20


@dataclass(frozen=True)
class Batch:
    """One worker's part of a global batch.

    Attributes:
        inputs: what the model takes: tensors [n, ...], n >= 1.
        targets: what the loss compares with; for the commonest tasks [n] class numbers (int64) or standardized
            values (float32).
        count: samples in the global batch, over all workers.
        is_filler: the worker has no row in this short batch; `inputs` holds one row, whose loss must not count.
        first: place of the first row in the worker's part, of which this may be a part itself.
        weights: [n] of the samples' losses, float64; None: all are 1.
        terms: that the loss of the global batch has, over all workers; None: a term for each sample.
    """

    inputs: Tree
    targets: Tree
    count: int
    is_filler: bool = False
    first: int = 0
    weights: Tensor | None = None
    terms: float | None = None

    @property
    def divisor(self) -> float:
        """What a sum of losses over the global batch is divided by."""
        return self.count if self.terms is None else self.terms


class Shard(Protocol):
    """What the loop asks of data."""

    lanes: Lanes

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the training batches of an epoch from batch number `start` on; equally many on every worker."""
        ...

    def some_batch(self) -> Batch:
        """Return a batch of training rows for a trial step, without putting an epoch in order."""
        ...

    def held_out(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Yield this worker's rows of the validation or test split, each once."""
        ...


@dataclass(frozen=True)
class Rows:
    """Rows of one split as tensors: inputs [n, ...], targets [n]."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def of(cls, inputs: np.ndarray, targets: np.ndarray, device: torch.device) -> "Rows":
        """Wrap arrays as they are (shared memory stays shared) or copy them to an accelerator."""
        return cls(_tensor(inputs).to(device), _tensor(targets).to(device))


def _tensor(array: np.ndarray) -> Tensor:
    if array.flags.writeable:
        return torch.from_numpy(array)
    # The object store returns read-only pages. Nothing here writes to them, and a copy would double the memory of the
    # shard: torch's warning is suppressed instead.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


class ViewedShard:
    """Another shard's rows as a task views them."""

    def __init__(self, shard: Shard, view: Callable[[Batch, int | None], Batch]) -> None:
        self._shard, self._view, self.lanes = shard, view, shard.lanes

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        return (self._view(batch, epoch) for batch in self._shard.batches(epoch, start))

    def some_batch(self) -> Batch:
        return self._view(self._shard.some_batch(), 0)

    def held_out(self, split: str, batch_size: int) -> Iterator[Batch]:
        return (self._view(batch, None) for batch in self._shard.held_out(split, batch_size))


class ResidentShard:
    """A shard that is kept in memory, on the worker's device or in RAM."""

    def __init__(
        self, lanes: Lanes, train: Rows, held_out: dict[str, Rows], device: torch.device | None = None
    ) -> None:
        """Take the rows.

        Args:
            device: that batches are moved to; None: they are where the rows are.
        """
        self.lanes = lanes
        self._train = train
        self._held_out = held_out
        self._device = device

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        lanes, rows = self.lanes, self._train
        order = torch.from_numpy(lanes.epoch(epoch)).to(rows.targets.device)
        step = self._gathered_batches
        for first in range(start - start % step, lanes.steps, step):
            index = order[first * lanes.width : (first + step) * lanes.width]
            inputs, targets = (
                self._moved(part.index_select(0, index)) for part in (rows.inputs, rows.targets)
            )
            for number in range(max(first, start), min(first + step, lanes.steps)):
                count, mine = lanes.global_count(number), (number - first) * lanes.width
                if mine < len(index):
                    part = slice(mine, mine + lanes.width)
                    yield Batch(inputs[part], targets[part], count)
                else:
                    filler = self._moved(rows.inputs[:1]), self._moved(rows.targets[:1])
                    yield Batch(*filler, count, is_filler=True)

    def some_batch(self) -> Batch:
        return next(self.batches(epoch=0, start=0))

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor if self._device is None else tensor.to(self._device)

    @property
    def _gathered_batches(self) -> int:
        """How many batches are gathered at a time; always the same ones, so that memory alignment is reproducible."""
        row = self._train.inputs[:1]
        return max(1, GATHERED_BYTES // max(1, row.element_size() * row.numel() * self.lanes.width))

    def held_out(self, split: str, batch_size: int) -> Iterator[Batch]:
        rows = self._held_out[split]
        for first in range(0, len(rows), batch_size):
            part = slice(first, first + batch_size)
            inputs, targets = self._moved(rows.inputs[part]), self._moved(rows.targets[part])
            yield Batch(inputs, targets, count=len(targets))
