"""Evaluation: every sample of a split once, over all workers; sums reduced, then divided."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from shoal.data.shard import Shard
from shoal.tasks import Task

BATCH_SIZE = 1024


def evaluate(
    model: nn.Module, task: Task, shard: Shard, split: str, add_up: Callable[[Tensor], Tensor]
) -> Tensor:
    """Return the task's sums over all workers' samples of a split.

    Args:
        add_up: adds a float64 vector over the workers.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    sums = torch.zeros(task.sums_size, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in shard.held_out(split, BATCH_SIZE):
            sums += task.sums(model(batch.inputs), batch)
    model.train(was_training)
    return add_up(sums)
