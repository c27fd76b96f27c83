"""Training rows that are read again in every epoch, where a user's items draw random numbers.

What a row draws depends on the seed, the epoch and the row: neither on the number of workers nor on where a training
resumed. Depends on sources and the order's lanes; rows that are held out are drawn once, as all others are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from shoal.data.dataset_info import DatasetInfo
from shoal.data.loader import Batch, Rows, Shard
from shoal.data.preprocessing import Transform
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TRAIN, mix
from shoal.data.sources.base import Block, DrawnRows, Source


@dataclass(frozen=True)
class RedrawnRows:
    """The training rows of a source, to be read again; picklable.

    Attributes:
        items: the part of the source that holds the training rows.
        numbers: [training rows] of each, the number among the items.
        transform: fitted.
        seed: of all draws.
    """

    items: DrawnRows
    numbers: np.ndarray
    transform: Transform
    seed: int

    @classmethod
    def of(
        cls, source: Source, preprocessing: PreprocessingSpec, dataset_info: DatasetInfo
    ) -> "RedrawnRows | None":
        """Return a source's training rows; None: they hold no random numbers."""
        before = 0
        for number, part in enumerate(source.parts):
            if part.split not in (None, TRAIN):
                before += _row_count(source, number)
                continue
            if part.drawn is None:
                return None
            rows = np.arange(before, before + len(part.drawn))
            split = preprocessing.split_rule.assign(rows, part.split, source.has_validation)
            numbers = np.flatnonzero(split == SPLITS.index(TRAIN))
            return cls(part.drawn, numbers, dataset_info.transform, preprocessing.seed)
        return None

    def read(self, rows: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs [n, ...] and targets [n] of training rows, as an epoch draws them."""
        seed = int(mix(mix(np.uint64(self.seed)) ^ np.uint64(epoch + 1))) >> 2  # items add their number
        block: Block = self.items.read(self.numbers[rows].tolist(), seed)
        return self.transform.stored(block), self.transform.targets(block)


class RedrawnShard:
    """A worker's shard whose training rows are read again in every epoch."""

    def __init__(self, shard: Shard, rows: RedrawnRows, device: torch.device) -> None:
        self.lanes = shard.lanes
        self._shard, self._rows, self._device = shard, rows, device
        everyone = np.arange(self.lanes.rows)
        self._mine = everyone[self.lanes.owner(everyone) == self.lanes.worker]

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        lanes, order = self.lanes, self.lanes.epoch(epoch)
        for number in range(start, lanes.steps):
            places = order[number * lanes.width : (number + 1) * lanes.width]
            read = self._rows.read(self._mine[places if len(places) else [0]], epoch)
            rows = Rows.of(*read, self._device)
            yield Batch(rows.inputs, rows.targets, lanes.global_count(number), is_filler=not len(places))

    def some_batch(self) -> Batch:
        return self._shard.some_batch()

    def held_out(self, split: str, batch_size: int) -> Iterator[Batch]:
        return self._shard.held_out(split, batch_size)


def _row_count(source: Source, number: int) -> int:
    """Return how many rows a part has."""
    part = source.parts[number]
    if part.drawn is not None:
        return len(part.drawn)
    return sum(len(next(iter(block.values()))) for _, block in source.blocks(part.split))
