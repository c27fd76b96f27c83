"""Batches that know how many terms the loss of the global batch has, over all workers.

Depends on a task's count of its own rows and on the workers' collective; independent of the model and of the loop,
which divides by `Batch.divisor` whatever it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from shoal.data.loader import Batch, Shard
from shoal.distributed.process_group import Collective
from shoal.tasks.float64 import with_float64


class CountedShard:
    """Another shard's batches, with the sum of their terms over the workers."""

    def __init__(self, shard: Shard, terms: Callable[[Batch], Tensor], collective: Collective) -> None:
        self._shard, self._terms, self._collective, self.lanes = shard, terms, collective, shard.lanes

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        return (self._counted(batch) for batch in self._shard.batches(epoch, start))

    def _counted(self, batch: Batch) -> Batch:
        """Return the batch with its terms, at least 1: where there are none, the loss is a sum."""
        mine = self._terms(with_float64(batch)).reshape(1)
        total = self._collective.all_reduce(torch.zeros_like(mine) if batch.is_filler else mine)
        return replace(batch, terms=max(1.0, total.item()))

    def some_batch(self) -> Batch:
        return self._shard.some_batch()

    def held_out(self, split: str, batch_size: int) -> Iterator[Batch]:
        return self._shard.held_out(split, batch_size)
