"""Deletion and insertion curves: an output as units go and come, by attribution and in random order.

Petsiuk et al. 2018, "RISE", section 4.3. A faithful order lets the output fall sooner when units are deleted, and rise
sooner when they are inserted, than random orders do.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from shoal.explain.rows import Rows
from shoal.explain.subject import Subject

ROWS, POINTS, RANDOM_ORDERS = 64, 20, 5


class Curves(NamedTuple):
    """The mean output over rows [points] as a share of units [points] is deleted or inserted.

    Classes: the probability of the class that is explained. Numbers: in their unit, less the label's mean.
    """

    shares: Tensor
    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor

    def areas(self) -> dict[str, float]:
        """Return the area under each curve, that is its mean over the shares."""
        return {
            name: float(torch.trapezoid(getattr(self, name), self.shares))
            for name in ("deletion", "insertion", "random_deletion", "random_insertion")
        }

    @property
    def is_better_than_random(self) -> bool:
        areas = self.areas()
        return areas["deletion"] < areas["random_deletion"] and areas["insertion"] > areas["random_insertion"]


def curves(subject: Subject, rows: Rows, values: Tensor, seed: int) -> Curves:
    """Return the curves of the first rows.

    Args:
        values: attributions [n, units]; units with the largest go first.
    """
    count, units = min(ROWS, len(rows)), len(subject.units)
    inputs, targets = rows.inputs[:count], rows.targets[:count]
    numbers = torch.linspace(0, units, min(units, POINTS) + 1).round().long()
    shares = numbers / units

    def output(is_left_out: Tensor) -> float:
        outputs = subject.run(subject.without(inputs, is_left_out))
        outputs = outputs.softmax(dim=1) if rows.is_classification else outputs
        return float(outputs.gather(1, targets[:, None]).mean())

    draw = torch.Generator().manual_seed(seed)
    orders = [torch.rand(count, units, generator=draw) for _ in range(RANDOM_ORDERS)]
    own = _both(_places(values[:count]), numbers, output)
    random = torch.stack([_both(_places(order), numbers, output) for order in orders]).mean(dim=0)
    return Curves(shares.double(), own[0], own[1], random[0], random[1])


def _places(values: Tensor) -> Tensor:
    """Return the place of each unit [n, units] when the largest come first."""
    return values.argsort(dim=1, descending=True).argsort(dim=1)


def _both(places: Tensor, numbers: Tensor, output: Callable[[Tensor], float]) -> Tensor:
    """Return deletion and insertion [2, points]."""
    deleted = [output(places < number) for number in numbers]
    inserted = [output(places >= number) for number in numbers]
    return torch.tensor([deleted, inserted], dtype=torch.float64)
