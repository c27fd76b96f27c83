"""What makes a training fit into memory: batches in pieces, activations computed again instead of kept.

It knows how memory runs out and how much was used; it does not know what a step is.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from shoal.data.loader import Batch
from shoal.distributed.process_group import Collective
from shoal.errors import TrainingError
from shoal.training.checkpoint.contents import random_state, set_random_state
from shoal.training.device_memory import is_out_of_memory

logger = logging.getLogger(__name__)

MicroBatchSize = int | Literal["auto"] | None

# Forward and backward of a piece; returns its sum of losses, detached.
Backward = Callable[[Batch], Tensor]


class FullBatch:
    """A worker's part as it is."""

    size: int | None = None  # samples in a piece, where there is a limit

    def run(self, batch: Batch, backward: Backward) -> Tensor:
        """Leave in the model's parameters the batch's gradient; return this worker's sum of losses."""
        return backward(batch)


class MicroBatches(FullBatch):
    """Pieces of a fixed size, as many on every worker as the largest part takes: they meet in the last one."""

    def __init__(self, size: int | None, forward: nn.Module, collective: Collective, workers: int) -> None:
        """Take a size in samples.

        Args:
            size: samples in a piece; None is the whole part.
            forward: what the last piece's backward adds the gradients up in.
            collective: of the workers.
            workers: between how many a global batch is dealt.
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
    """Pieces whose size is halved whenever a worker runs out of memory, on all workers alike.

    Gradients are added up after all workers have theirs, not in backward: a worker without memory would keep the
    others waiting in a sum. So the model is run as it is, not as `Collective.wrap` makes it.
    """

    def __init__(self, model: nn.Module, collective: Collective, workers: int) -> None:
        super().__init__(None, model, collective, workers)

    def run(self, batch: Batch, backward: Backward) -> Tensor:
        """As `FullBatch.run`.

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
        try:
            return torch.stack([backward(micro_batch) for micro_batch in self._split(batch)]).sum()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None  # from here, since the error's traceback holds the activations

    def _is_short(self, batch: Batch, loss: Tensor | None) -> bool:
        """Whether any worker ran out of memory."""
        mine = torch.tensor([float(loss is None)], device=batch.targets.device)
        return self._collective.all_reduce(mine).item() > 0

    def _undo(self, buffers: list[Tensor]) -> None:
        for parameter in self._forward.parameters():
            parameter.grad = None
        for buffer, value in zip(self._forward.buffers(), buffers, strict=True):
            buffer.copy_(value)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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
) -> FullBatch:
    """Make what a `train.micro_batch_size` asks for; the arguments are those of `MicroBatches`."""
    if size == "auto":
        return AutoMicroBatches(model, collective, workers)
    return FullBatch() if size is None else MicroBatches(size, forward, collective, workers)


def split_batch(batch: Batch, size: int, count: int) -> list[Batch]:
    """Cut a worker's part of a batch into so many pieces of up to `size` samples; fillers make up the number."""
    inputs, targets = batch.inputs.split(size), batch.targets.split(size)
    parts = [replace(batch, inputs=x, targets=y) for x, y in zip(inputs, targets, strict=True)]
    filler = replace(batch, inputs=batch.inputs[:1], targets=batch.targets[:1], is_filler=True)
    return parts + [filler] * (count - len(parts))
