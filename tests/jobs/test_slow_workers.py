"""A worker that is slower than the others is named, and training goes on."""

import pytest

from running import Place

pytestmark = pytest.mark.long

# A user's model, whose last worker takes four times as long as the others.
MODULE = """
import time

import torch.distributed as dist
from torch import nn


class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training and dist.is_initialized():
            time.sleep(0.06 if dist.get_rank() == dist.get_world_size() - 1 else 0.015)
        return self.layer(x)
"""


def test_a_slow_worker_is_named_once(shared: Place) -> None:
    shared.add_module("slowly", MODULE)
    done = shared.run(
        "train",
        "model.name=slowly:Net",
        "train.epochs=1000",
        "train.max_steps=700",
        "train.evaluate_every_steps=700",
        "scale.num_workers=2",
        "scale.cpus_per_worker=0.5",
    )
    assert done.code == 0, done.out + done.err
    [line] = [line for line in done.err.splitlines() if "for its own work of a step" in line]
    assert "worker 1 on" in line
    assert "times as long as worker 0 on" in line
