"""A task's sums and the metrics of `train.metrics`, over rows that are added part by part."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal.data.loader import Batch
from shoal.devices import place_of_sums
from shoal.distributed.process_group import Collective
from shoal.tasks.base import Task
from shoal.tasks.float64 import where_float64_is


class Part(NamedTuple):
    """What was found of some rows, before they are added; the outputs only where a metric needs them."""

    sums: Tensor
    outputs: Any
    batch: Batch


class Accumulator:
    """What evaluation adds up; means come last, so that they do not depend on how rows were divided.

    Attributes:
        sums: the task's, float64 [task.sums_size]; element 0 counts the rows.
        measures: of `train.metrics`, and of the loss where it is not the task's own.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task, device = task, place_of_sums(device)
        self.measures = [measure.fresh(device) for measure in task.measures]
        self.sums = torch.zeros(task.sums_size, dtype=torch.float64, device=device)

    def part(self, outputs: Any, batch: Batch) -> Part:
        """Return what there is to add of a batch and a model's outputs for it."""
        outputs, batch = where_float64_is(outputs, batch)
        sums = self._task.sums(outputs, batch)
        return Part(sums, outputs if self.measures else None, batch)

    def add(self, part: Part) -> None:
        self.sums += part.sums
        for measure in self.measures:
            measure.add(part.outputs, part.batch)

    def reduce(self, collective: Collective) -> None:
        """Add what the other workers have; afterwards all have the same."""
        self.sums = collective.all_reduce(self.sums)
        if not self.measures or collective.size == 1:
            return
        # Workers of a tensor-parallel group have seen the same rows: one of them is enough.
        found = dict(collective.gather((collective.data_rank, [one.state() for one in self.measures])))
        for number, measure in enumerate(self.measures):
            states = [found[rank][number] for rank in sorted(found)]
            if any(state is not None for state in states):
                measure.merge([state for state in states if state is not None])

    @property
    def rows(self) -> int:
        return int(self.sums[0])

    def results(self) -> dict[str, float]:
        """Return the metrics by name; there must be rows."""
        found = self._task.metrics(self.sums)
        for measure in self.measures:
            found |= measure.results()
        return found
