"""Shoal's training loop in this process, on rows made here: no Ray, no workers, nothing else running."""

import time
from dataclasses import dataclass

import torch

from harness import BATCH_PER_WORKER, CLASSES, FEATURES
from shoal.data.loader import ResidentShard, Rows
from shoal.data.sampler import Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.models.mlp import MLP
from shoal.tasks.classification import Classification
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.clock import Clock
from shoal.training.loop import Callbacks, MetricLogger, TrainConfig, train
from shoal.training.optimizer import OptimConfig


@dataclass(frozen=True)
class Spent:
    """Wall seconds of a loop: from begin to end, and the share that it says went into tracking."""

    since_s: float
    until_s: float
    tracking_share: float

    @property
    def seconds(self) -> float:
        return self.until_s - self.since_s


def make_shard(rows: int) -> ResidentShard:
    """Make a resident shard of the reference shape; one worker's part of the reference batch per step."""
    torch.manual_seed(0)
    made = Rows(torch.randn(rows, FEATURES), torch.randint(CLASSES, (rows,)))
    return ResidentShard(Lanes(rows, BATCH_PER_WORKER, seed=0), made, {})


def run_loop(shard: ResidentShard, epochs: int, metric_log: MetricLogger, log_every: int = 1) -> Spent:
    """Train the reference model for some epochs and return what it took."""
    loop = assemble_loop(
        MLP((FEATURES,), CLASSES),
        Classification(CLASSES),
        shard,
        OptimConfig(),
        TrainConfig(epochs=epochs),
        SingleProcess(),
        torch.device("cpu"),
        has_validation=False,
    )
    clock = Clock()
    since_s = time.time()
    train(loop, Callbacks(metric_log, log_every=log_every), TrainingProgress(), clock)
    until_s = time.time()
    return Spent(since_s, until_s, clock.spent["tracking"] / (until_s - since_s))
