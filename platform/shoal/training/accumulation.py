"""Gradient accumulation: a batch is split into micro-batches, so that a step fits into memory.

It knows how memory runs out and how gradients are reduced; it does not know what an optimizer step is.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from shoal.data.loader import Batch
from shoal.data.tree import clone, first_tensor, row_count, select_rows
from shoal.devices import empty_cache
from shoal.distributed.process_group import Collective
from shoal.errors import TrainingError
from shoal.training.checkpoint.contents import random_state, set_random_state
from shoal.training.device_memory import is_out_of_memory

logger = logging.getLogger(__name__)

MicroBatchSize = int | Literal["auto"] | None

# Forward and backward of a micro-batch; returns its sum of losses, detached.
Backward = Callable[[Batch], Tensor]


class Accumulation(Protocol):
    """How the gradient of a worker's part of a batch comes about."""

    size: int | None  # samples in a micro-batch, where there is a limit

    def run(self, batch: Batch, backward: Backward) -> Tensor:
        """Leave the batch's gradient in the model's parameters; return this worker's sum of losses."""
        ...


class FullBatch:
    """One forward and backward over a worker's part of a batch."""

    size: int | None = None

    def run(self, batch: Batch, backward: Backward) -> Tensor:
        return backward(batch)


class MicroBatches:
    """Micro-batches of a fixed size; gradients are reduced over the workers in the backward of the last one.

    Every worker runs as many as the largest part needs, so that all reach the last one together.
    """

    def __init__(self, size: int | None, forward: nn.Module, collective: Collective, workers: int) -> None:
        """Take a size in samples.

        Args:
            size: samples in a micro-batch; None for a worker's whole part.
            forward: the module whose backward reduces gradients over the workers.
            collective: of the workers.
            workers: number of workers that a global batch is divided among.
        """
        self.size, self._forward, self._collective, self._workers = size, forward, collective, workers

    def run(self, batch: Batch, backward: Backward) -> Tensor:
        *others, last = self._split(batch)
        if not others:
            return backward(last)
        with self._collective.no_sync(self._forward):
            losses = [backward(micro_batch) for micro_batch in others]
        return torch.stack([*losses, backward(last)]).sum()

    def _split(self, batch: Batch) -> list[Batch]:
        largest = self._largest(batch)
        size = min(self.size or largest, largest)
        return split_batch(batch, size, count=-(-largest // size))

    def _largest(self, batch: Batch) -> int:
        """Samples in the largest part that any worker has of this batch."""
        return -(-batch.count // self._workers)


class AutoMicroBatches(MicroBatches):
    """Micro-batches whose size is halved on all workers whenever one of them runs out of memory.

    Gradients are reduced after all workers have theirs, not in backward: a worker out of memory would keep the
    others waiting in an all-reduce. So it runs the model itself, not the module that `Collective.wrap` returns.
    """

    def __init__(self, model: nn.Module, collective: Collective, workers: int) -> None:
        super().__init__(None, model, collective, workers)

    def run(self, batch: Batch, backward: Backward) -> Tensor:
        """Do as `Accumulation.run` says.

        Raises:
            TrainingError: memory does not hold a single sample's step.
        """
        while True:
            random, buffers = random_state(), [buffer.clone() for buffer in self._forward.buffers()]
            loss = self._attempt(batch, backward)
            if not self._is_short(batch, loss):
                assert loss is not None
                self._collective.all_reduce_gradients(self._forward)
                return loss
            self._undo(buffers)
            set_random_state(random)
            self._halve(batch)

    def _attempt(self, batch: Batch, backward: Backward) -> Tensor | None:
        """Return the sum of losses, or None where memory ran out."""
        try:
            # A model may write on its inputs, and another attempt begins with the rows as they were.
            copied = replace(batch, inputs=clone(batch.inputs))
            return torch.stack([backward(micro_batch) for micro_batch in self._split(copied)]).sum()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None  # outside the except block, since the error's traceback holds the activations

    def _is_short(self, batch: Batch, loss: Tensor | None) -> bool:
        """Whether any worker ran out of memory."""
        mine = torch.tensor([float(loss is None)], device=first_tensor(batch.inputs).device)
        return self._collective.all_reduce(mine).item() > 0

    def _undo(self, buffers: list[Tensor]) -> None:
        """Drop gradients and restore buffers, as they were before the attempt."""
        for parameter in self._forward.parameters():
            parameter.grad = None
        for buffer, value in zip(self._forward.buffers(), buffers, strict=True):
            buffer.copy_(value)
        empty_cache()

    def _halve(self, batch: Batch) -> None:
        size = min(self.size or self._largest(batch), self._largest(batch))
        if size == 1:
            raise TrainingError(
                "train.micro_batch_size=auto: out of memory with one sample at a time: set "
                "train.activation_checkpointing=true or a lower train.precision, or take a smaller model"
            )
        self.size = size // 2
        if self._collective.rank == 0:
            logger.warning("out of memory with %d samples at a time; going on with %d", size, self.size)


def make_accumulation(
    size: MicroBatchSize, model: nn.Module, forward: nn.Module, collective: Collective, workers: int
) -> Accumulation:
    """Make what `train.micro_batch_size` asks for; the arguments are those of `MicroBatches`."""
    if size == "auto":
        return AutoMicroBatches(model, collective, workers)
    return FullBatch() if size is None else MicroBatches(size, forward, collective, workers)


def split_batch(batch: Batch, size: int, count: int) -> list[Batch]:
    """Split a worker's part of a batch into `count` micro-batches of up to `size` samples.

    Where the samples do not suffice, fillers make up the number.
    """
    parts = [
        replace(_rows(batch, slice(first, first + size)), first=first)
        for first in range(0, row_count(batch.inputs), size)
    ]
    return parts + [filler_of(batch)] * (count - len(parts))


def filler_of(batch: Batch) -> Batch:
    """Return a batch's first row, which does not count."""
    return replace(_rows(batch, slice(0, 1)), is_filler=True)


def _rows(batch: Batch, rows: slice) -> Batch:
    inputs, targets = select_rows(batch.inputs, rows), select_rows(batch.targets, rows)
    return replace(
        batch, inputs=inputs, targets=targets, weights=None if batch.weights is None else batch.weights[rows]
    )
