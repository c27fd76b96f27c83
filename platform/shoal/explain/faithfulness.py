"""Deletion and insertion curves: an output as units go and come, by attribution and in random order.

Petsiuk et al. 2018, "RISE", section 4.3. A faithful order lets the output fall sooner when units are deleted, and rise
sooner when they are inserted, than random orders do.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from shoal.explain.rows import Rows
from shoal.explain.subject import Subject

ROWS, POINTS, RANDOM_ORDERS = 64, 20, 5
NUMBERS_AT_A_TIME = 1 << 22  # of inputs


class Curves(NamedTuple):
    """The mean output over rows [points] as a share of units [points] is deleted or inserted.

    Classes: the probability of the class or label that is explained. Numbers: in their unit, less the label's mean.
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

    # In few calls: of small models each costs more than its rows.
    at_a_time = max(1, NUMBERS_AT_A_TIME // inputs.numel())

    def outputs_of(is_left_out: Tensor) -> Tensor:
        """Return the mean output [points] where units [points, rows, units] are left out."""
        found = []
        for some in is_left_out.split(at_a_time):
            repeated = inputs.repeat(len(some), *(1,) * (inputs.dim() - 1))
            outputs = subject.answers.shown(subject.run(subject.without(repeated, some.flatten(0, 1))))
            found.append(
                outputs.gather(1, targets.repeat(len(some))[:, None]).view(len(some), count).mean(dim=1)
            )
        return torch.cat(found)

    def both(order: Tensor) -> Tensor:
        """Return deletion and insertion [2, points] when the largest units [n, units] go first."""
        places = order.argsort(dim=1, descending=True).argsort(dim=1)
        is_gone = places < numbers[:, None, None]
        return torch.stack([outputs_of(is_gone), outputs_of(~is_gone)])

    draw = torch.Generator().manual_seed(seed)
    random = torch.stack([both(torch.rand(count, units, generator=draw)) for _ in range(RANDOM_ORDERS)])
    return Curves(shares.double(), *both(values[:count]), *random.mean(dim=0))
