"""Evaluation: every sample of a split once, over all workers; sums reduced, then divided."""

import torch
from torch import Tensor, nn

from shoal.collective import Collective
from shoal.data.shard import Shard
from shoal.tasks import Task


def evaluate(model: nn.Module, task: Task, shard: Shard, split: str, collective: Collective) -> Tensor:
    """Return the task's sums over all workers' samples of a split, measured with the same model on each."""
    collective.align(model)
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    sums = torch.zeros(task.sums_size, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in shard.held_out(split, task.held_out_rows):
            sums += task.sums(model(batch.inputs), batch)
    model.train(was_training)
    return collective.add_up(sums)
