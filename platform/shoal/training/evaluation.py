"""Evaluation: every sample of a split once, over all workers; what was added up is reduced, and means come last."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import nn

from shoal.data.loader import Batch, Shard
from shoal.data.tree import clone, row_count
from shoal.devices import empty_cache
from shoal.distributed.process_group import Collective
from shoal.errors import TrainingError
from shoal.models.call import call_model
from shoal.tasks.accumulator import Accumulator, Part
from shoal.tasks.base import Task
from shoal.training.accumulation import filler_of, split_batch
from shoal.training.device_memory import is_out_of_memory
from shoal.training.mixed_precision import Precision, autocast

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class RowLimit:
    """The most rows that memory holds at a time, without gradients; halved when it runs out, and kept then."""

    def __init__(self) -> None:
        self.rows: int | None = None  # None: it has not run out

    def run(self, batch: Batch, measure: Callable[[Batch], Result]) -> list[Result]:
        """Return what `measure` returns for the parts of a batch, in their order; it is one part if memory suffices.

        Raises:
            TrainingError: memory does not hold a single row.
        """
        count = row_count(batch.inputs)
        while True:
            rows = min(self.rows or count, count)
            try:
                return [measure(part) for part in split_batch(batch, rows, count=1)]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, since the error's traceback holds the activations.
            if rows == 1:
                raise TrainingError(
                    "out of memory evaluating one row at a time: set train.evaluate_precision=bf16, or take a "
                    "smaller model"
                )
            self.rows = rows // 2
            empty_cache()
            logger.warning("out of memory evaluating %d rows at a time; going on with %d", rows, self.rows)


def evaluate(
    model: nn.Module,
    task: Task,
    shard: Shard,
    split: str,
    collective: Collective,
    most_rows: int | None = None,
    limit: RowLimit | None = None,
    precision: Precision = "fp32",
    first: int | None = None,
) -> Accumulator:
    """Return what was accumulated over all workers' samples of a split, evaluated with the same model on each.

    Args:
        model: in eval mode meanwhile.
        task: also limits the rows at a time.
        shard: this worker's rows.
        split: validation or test.
        collective: of the workers.
        most_rows: number of rows at a time, if less than the task's most.
        limit: of memory, known from earlier evaluations.
        precision: of the forward pass.
        first: evaluate on so many of the split's first rows, over all workers; None: on all.
    """
    collective.sync_buffers(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    added = Accumulator(task, device)
    limit = limit or RowLimit()
    rows = min(most_rows or task.held_out_rows.most, task.held_out_rows.most)
    was_training = model.training
    model.eval()

    def measure(batch: Batch) -> Part | None:
        with autocast(precision, device.type):
            # A model may write on its inputs, and these are the stored rows.
            outputs = call_model(model, clone(batch.inputs))
        return None if batch.is_filler else added.part(outputs, batch)

    with torch.no_grad():
        for batch in _batches(shard, split, min(rows, limit.rows or rows), collective, first):
            # The workers of a sharded model compute together: one that tried again would leave the others waiting.
            found = [measure(batch)] if collective.is_sharded else limit.run(batch, measure)
            for part in found:
                if part is not None:
                    added.add(part)
    model.train(was_training)
    added.reduce(collective)
    return added


def _batches(
    shard: Shard, split: str, rows: int, collective: Collective, first: int | None
) -> Iterator[Batch]:
    batches = shard.held_out(split, rows)
    if first is not None:  # held-out rows go to the workers in turn
        batches = _first_rows(batches, len(range(collective.data_rank, first, collective.data_size)))
    return _in_step(batches, shard, collective) if collective.is_sharded else batches


def _first_rows(batches: Iterator[Batch], most: int) -> Iterator[Batch]:
    """Yield so many of the rows."""
    while most:
        batch = next(batches, None)
        if batch is None:
            return
        [part, *_] = split_batch(batch, min(most, row_count(batch.inputs)), count=1)
        most -= row_count(part.inputs)
        yield part


def _in_step(batches: Iterator[Batch], shard: Shard, collective: Collective) -> Iterator[Batch]:
    """Yield equally many batches on every worker, fillers after its last: a sharded model computes on all at once."""
    last: Batch | None = None
    while True:
        batch = next(batches, None)
        if not any(collective.gather(batch is not None)):
            return
        last = batch or last or next(shard.batches(epoch=0, start=0))
        yield batch or filler_of(last)
