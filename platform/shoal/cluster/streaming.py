"""A shard too large for memory, streamed through Ray Data in the same order as the resident shard.

Each epoch is a sort: every row gets its position in the epoch, a pure function of seed and epoch, and Ray Data sorts by
it, out of core, and prefetches batches ahead of the training.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.data
import torch

from shoal.data.loader import Batch, Rows
from shoal.data.packing import Packing
from shoal.data.sampler import TRAIN, Lanes

PREFETCH = 4  # batches
FETCH_ROWS = 4096  # of a batch that is fetched, which is then divided into the training's batches


class StreamingShard:
    """Batches from objects in Ray's store, which spills to disk what does not fit."""

    def __init__(
        self,
        lanes: Lanes,
        refs: list[tuple[Any, Any]],
        device: torch.device,
        packing: Packing | None = None,
    ) -> None:
        """Take references to rows: pairs of training rows and of held-out rows.

        Args:
            packing: of rows that are grouped by length; None: they are not.
        """
        self._refs, self._device = [train for train, _ in refs], device
        self._held_out = [held_out for _, held_out in refs]
        self.lanes = replace(lanes, lengths=self._lengths(packing)) if packing else lanes
        self._rows = ray.get([_train_rows.remote(ref) for ref in self._refs])
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        lanes = self.lanes
        order = lanes.epoch(epoch)
        skipped = min(start * lanes.width, len(order))
        number, rows = start, self._ordered(order, skipped)
        for first in range(skipped, len(order), lanes.width):
            taken = rows.take(min(lanes.width, len(order) - first))
            yield Batch(taken.inputs, taken.targets, lanes.global_count(number))
            number += 1
        if number < lanes.steps:
            filler = next(self._first_rows(1))
            yield Batch(filler.inputs, filler.targets, lanes.global_count(number), is_filler=True)

    def held_out(self, split: str, batch_size: int) -> Iterator[Batch]:
        for ref in self._held_out:
            inputs, targets = ray.get(ref)[split]
            rows = Rows.of(inputs, targets, self._device)
            for first in range(0, len(rows), batch_size):
                part = slice(first, first + batch_size)
                yield Batch(rows.inputs[part], rows.targets[part], count=len(rows.targets[part]))

    def some_batch(self) -> Batch:
        rows = next(self._first_rows(self.lanes.width))
        return Batch(rows.inputs, rows.targets, self.lanes.global_count(0))

    def _lengths(self, packing: Packing) -> np.ndarray | None:
        """Return the lengths of all training rows [n]."""
        found = ray.get([_train_lengths.remote(ref, packing) for ref in self._refs])
        return None if any(one is None for one in found) else np.concatenate(found)

    def _ordered(self, order: np.ndarray, skipped: int) -> "_Rebatcher":
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order))
        position_ref = ray.put(position)
        starts = np.concatenate([[0], np.cumsum(self._rows)[:-1]]).tolist()
        spans = list(zip(self._refs, starts, strict=True))
        numbers = ray.data.range(len(spans), override_num_blocks=len(spans))
        rows = numbers.map_batches(
            _with_position,
            batch_size=1,
            fn_kwargs={"spans": spans, "position": position_ref, "skipped": skipped},
        )
        fetched = rows.sort("position").iter_batches(
            batch_size=max(FETCH_ROWS // self.lanes.width, 1) * self.lanes.width,
            batch_format="numpy",
            prefetch_batches=PREFETCH,
        )
        return _Rebatcher(iter(fetched), self._device)

    def _first_rows(self, most: int) -> Iterator[Rows]:
        """Yield up to so many of the first rows of each object that has some."""
        for ref, rows in zip(self._refs, self._rows, strict=True):
            if rows:
                inputs, targets = ray.get(ref)[TRAIN]
                yield Rows.of(inputs[:most].copy(), targets[:most].copy(), self._device)


class _Rebatcher:
    """Divides the large batches that are fetched into the small ones of the training."""

    def __init__(self, fetched: Iterator[dict[str, np.ndarray]], device: torch.device) -> None:
        self._fetched, self._device = fetched, device
        self._rows: Rows | None = None
        self._used = 0

    def take(self, count: int) -> Rows:
        if self._rows is None or self._used == len(self._rows):
            batch = next(self._fetched)
            self._rows, self._used = Rows.of(batch["inputs"], batch["targets"], self._device), 0
        part = slice(self._used, self._used + count)
        self._used += count
        return Rows(self._rows.inputs[part], self._rows.targets[part])


def _with_position(
    batch: dict[str, np.ndarray], spans: list[tuple[Any, int]], position: Any, skipped: int
) -> dict[str, np.ndarray]:
    ref, start = spans[int(batch["id"][0])]
    inputs, targets = ray.get(ref)[TRAIN]
    positions = ray.get(position)[start : start + len(targets)]
    kept = positions >= skipped
    return {"inputs": inputs[kept], "targets": targets[kept], "position": positions[kept]}


@ray.remote(num_cpus=0)
def _train_rows(rows: Any) -> int:
    return len(rows[TRAIN][1])


@ray.remote(num_cpus=0)
def _train_lengths(rows: Any, packing: Packing) -> np.ndarray | None:
    return packing.lengths(rows[TRAIN][0])
