"""What the peers of `sweep.py` share: the points, scikit-learn's digits, one trial's training, their arguments.

An MLP 64 -> width -> width/2 -> 10 with ReLU, Adam, cross entropy, batches of 32, one compute thread; validation
loss and accuracy after each epoch. The loop is plain PyTorch without a DataLoader: whole batches are indexed from
one tensor, so that what a peer takes beyond it is the peer's own cost.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (32, 64, 128, 256)
BATCH, EPOCHS, TRIALS = 32, 5, 16


@dataclass(frozen=True)
class Point:
    """What differs between trials."""

    width: int
    lr: float

    @property
    def key(self) -> str:
        return f"{self.width}/{self.lr:g}"


@dataclass(frozen=True)
class Digits:
    """Standardized rows of two splits, as (inputs, targets); the third, for a test, is left out."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]


def learning_rates(count: int) -> list[float]:
    """Return `count` different learning rates: four, each a factor of 4 apart, then the same a little higher."""
    return [float(f"{1e-4 * 4 ** (number % 4) * 1.02 ** (number // 4):.6g}") for number in range(count)]


def points(trials: int) -> list[Point]:
    """Return the first points of the grid: all widths with one learning rate, then all with the next."""
    rates = learning_rates(-(-trials // len(WIDTHS)))
    return [Point(width, lr) for lr, width in itertools.product(rates, WIDTHS)][:trials]


def load_digits() -> Digits:
    """Load scikit-learn's digits, split 80/10/10."""
    from sklearn.datasets import load_digits as load

    features, target = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(target))
    held_out = len(target) // 10
    train, validation = order[2 * held_out :], order[:held_out]
    scale = features[train].std(axis=0)
    features = (features - features[train].mean(axis=0)) / np.where(scale > 0, scale, 1)
    inputs, targets = torch.from_numpy(features.astype(np.float32)), torch.from_numpy(target)
    return Digits((inputs[train], targets[train]), (inputs[validation], targets[validation]))


def train(
    point: Point, epochs: int, data: Digits, report: Callable[[dict[str, float]], object], fused: bool = False
) -> None:
    """Train one trial, reporting `val_loss` and `val_accuracy` after each epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = (data.train[0].shape[1], point.width, point.width // 2, 10)
    first, second, last = (nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    optimizer = torch.optim.Adam(model.parameters(), lr=point.lr, fused=fused)
    inputs, targets = data.train
    for _ in range(epochs):
        for rows in torch.randperm(len(targets)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
        report(evaluate(model, *data.validation))


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    outputs = model(inputs)
    right = (outputs.argmax(1) == targets).float().mean()
    return {"val_loss": F.cross_entropy(outputs, targets).item(), "val_accuracy": right.item()}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments that all peers have."""
    made = argparse.ArgumentParser()
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--trials", type=int, default=TRIALS)
    made.add_argument("--epochs", type=int, default=EPOCHS)
    made.add_argument("--repeat-epochs", type=int, default=1, help="factor of the epochs")
    return made


def write(out: Path, metrics: dict[str, float], **more: object) -> None:
    """Write what was measured, once the last trial's result is there: `metrics` is validation loss by point."""
    ended_s = time.time()
    started_s = psutil.Process().create_time()
    out.write_text(json.dumps({"started": started_s, "ended": ended_s, "metrics": metrics} | more))
