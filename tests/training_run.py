"""A training in this process, assembled as a run's: 200 rows in batches of 16 (the last of an epoch short), real
model, optimizer and checkpoints.
"""

import contextlib
import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from shoal.data.loader import ResidentShard, Rows
from shoal.data.sampler import VALIDATION, Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.models.mlp import MLP
from shoal.storage.run_folder import RunFolder
from shoal.tasks.classification import Classification
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.contents import TrainingProgress, checkpoint_step, random_state, snapshot
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.clock import Clock
from shoal.training.loop import Callbacks, TrainConfig, train
from shoal.training.optimizer import OptimConfig
from shoal.training.resume import resume_or_start

CPU = torch.device("cpu")
ROWS, BATCH, FEATURES = 200, 16, 6
STEPS = math.ceil(ROWS / BATCH)  # in an epoch


class MetricPoints:
    """A metric log that keeps its points."""

    def __init__(self):
        self.points = []

    def log(self, step, metrics, at_s=None):
        self.points.append((step, dict(metrics)))

    def flush(self):
        pass

    def of(self, key):
        """A metric's values by step."""
        return {step: metrics[key] for step, metrics in self.points if key in metrics}


class Net(nn.Module):
    """Dropout and running statistics: what shows whether a step began from the same state.

    A forward pass in training over more than `limit` rows raises `error`.
    """

    def __init__(self, dropout=0.3, limit=math.inf, error=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.enter, self.norm, self.drop = nn.Linear(FEATURES, 32), nn.BatchNorm1d(32), nn.Dropout(dropout)
        self.leave = nn.Linear(32, 2)
        self.limit, self.error = limit, error
        self.rows = []

    def forward(self, x):
        hidden = self.drop(self.norm(self.enter(x)).relu())
        if self.training:
            self.rows.append(len(x))
            if len(x) > self.limit:
                raise self.error
        return self.leave(hidden)


def mlp(seed=0, **kwargs):
    """A model without randomness in its forward pass."""
    torch.manual_seed(seed)
    return MLP((FEATURES,), 2, **({"width": 32} | kwargs))


def rows(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)
    return Rows.of(x, (x[:, 0] + x[:, 1] > 0).astype(np.int64), CPU)


class TrainingRun:
    """A worker on its own; `settings` are of `TrainConfig` and `Callbacks`, and `scaler` replaces the loop's."""

    def __init__(
        self,
        folder,
        model=None,
        optim=None,
        metric_log=None,
        is_stop_requested=lambda step: False,
        has_validation=True,
        scaler=None,
        sync_batchnorm=False,
        **settings,
    ):
        config = {name: settings.pop(name) for name in TrainConfig.model_fields if name in settings}
        loop = assemble_loop(
            Net() if model is None else model,
            Classification(2),
            ResidentShard(Lanes(ROWS, BATCH, seed=0), rows(ROWS, 0), {VALIDATION: rows(50, 1)}),
            OptimConfig(**({"lr": 0.01} | (optim or {}))),
            TrainConfig(**({"epochs": 2} | config)),
            SingleProcess(),
            CPU,
            seed=3,
            sync_batchnorm=sync_batchnorm,
            has_validation=has_validation,
        )
        self.loop = loop if scaler is None else replace(loop, scaler=scaler)
        self.metric_log, self.progress, self.clock = metric_log or MetricPoints(), TrainingProgress(), Clock()
        self.callbacks = Callbacks(
            self.metric_log,
            save=self._save,
            is_stop_requested=lambda: is_stop_requested(self.progress.step),
            **settings,
        )
        self.store = CheckpointStore(RunFolder(str(folder)), keep=100)
        torch.manual_seed(1)

    def _save(self, progress, is_due):
        loop = self.loop
        own = loop.user_callbacks.state_dict()
        states = [random_state()]
        taken = snapshot(loop.model, loop.optimizer, progress, states, loop.scaler, loop.ema, callbacks=own)
        self.store.save(taken, {}, b"{}")

    def train(self, until="finished"):
        """Train, and check how it ended."""
        assert train(self.loop, self.callbacks, self.progress, self.clock) == until
        return self

    def resume(self):
        self.progress = resume_or_start(self.loop, self.store, seed=123)
        assert self.progress.step > 0
        return self

    @property
    def model(self):
        return self.loop.model

    @property
    def losses(self):
        return list(self.metric_log.of("train/loss").values())

    @property
    def saved(self):
        """Steps that have a checkpoint."""
        return [checkpoint_step(name) for name in self.store.names()]


def assert_same(one, other):
    """Same weights and buffers, bit for bit."""
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def assert_resumes_exactly(make):
    """A run stopped within an epoch and resumed by other objects ends like its twin that was never stopped."""
    twin = make("twin").train()
    stopped = make("run", is_stop_requested=lambda step: step >= 17, evaluate_every_steps=5)
    stopped.train(until="interrupted")
    assert stopped.progress.step % STEPS != 0
    torch.manual_seed(999)  # another process's random numbers
    resumed = make("run", evaluate_every_steps=5).resume().train()
    assert_same(twin.model, resumed.model)
    assert stopped.losses + resumed.losses == twin.losses
    assert resumed.progress.samples == twin.progress.samples
    return twin, resumed


@contextlib.contextmanager
def saved_bytes():
    """Yield a list whose one number is the bytes that autograd holds, at the most, for backward."""
    held, peak = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.bytes = tensor, tensor.nbytes
            held[0] += self.bytes
            peak[0] = max(peak[0], held[0])

        def __del__(self):
            held[0] -= self.bytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield peak
