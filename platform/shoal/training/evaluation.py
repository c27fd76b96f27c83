"""Evaluation: every sample of a split once, over all workers; sums reduced, then divided."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from shoal.data.loader import Batch, Shard
from shoal.distributed.process_group import Collective
from shoal.tasks.base import Task


def evaluate(
    model: nn.Module,
    task: Task,
    shard: Shard,
    split: str,
    collective: Collective,
    most_rows: int | None = None,
) -> Tensor:
    """Return the task's sums over all workers' samples of a split, evaluated with the same model on each.

    Args:
        model: in eval mode meanwhile.
        task: also limits the rows at a time.
        shard: this worker's rows.
        split: validation or test.
        collective: of the workers.
        most_rows: largest number of rows at a time, if less than the task's.
    """
    collective.sync_buffers(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    sums = torch.zeros(task.sums_size, dtype=torch.float64, device=device)
    rows = min(task.held_out_rows, most_rows or task.held_out_rows)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in _batches(shard, split, rows, collective):
            outputs = model(batch.inputs)
            if not batch.is_filler:
                sums += task.sums(outputs, batch)
    model.train(was_training)
    return collective.all_reduce(sums)


def _batches(shard: Shard, split: str, rows: int, collective: Collective) -> Iterator[Batch]:
    batches = shard.held_out(split, rows)
    return _in_step(batches, shard, collective) if collective.is_sharded else batches


def _in_step(batches: Iterator[Batch], shard: Shard, collective: Collective) -> Iterator[Batch]:
    """Yield equally many batches on every worker, fillers after its last: a sharded model computes on all at once."""
    last: Batch | None = None
    while True:
        batch = next(batches, None)
        if not any(collective.gather(batch is not None)):
            return
        last = batch or last or next(shard.batches(epoch=0, start=0))
        yield batch or replace(last, inputs=last.inputs[:1], targets=last.targets[:1], is_filler=True)
