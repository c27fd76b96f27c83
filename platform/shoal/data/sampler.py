"""Which split a row is in, and in which order the training rows are seen: pure functions, no data.

The order must not depend on how many workers there are, yet each worker may hold only its own rows. So the
training rows are dealt into B lanes, B the global batch size: row t lies in lane t mod B, for good. Batch b
of an epoch takes one row of every lane; an epoch shuffles each lane by itself. A worker owns whole lanes
(lane l belongs to worker l mod W), hence a fixed set of rows, while the batch is the same for every W.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: what SplitMix64 goes on by

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
SPLIT_NAMES = {  # as data sets and folders spell them
    "train": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "test": TEST,
}


def split_rows(seed: int, rows: Indices, validation: float, test: float) -> npt.NDArray[np.int8]:
    """Return for each row the index of its split in `SPLITS`, from nothing but the seed and the row's number.

    A row stays in its split when the data grows. The shares hold on average, not exactly.
    """
    mixed = mix(rows.astype(np.uint64) ^ mix(np.uint64(seed) + np.uint64(0x5348_4F41_4C)))
    uniform = (mixed >> np.uint64(11)).astype(np.float64) / 2**53
    return np.where(uniform < test, 2, np.where(uniform < test + validation, 1, 0)).astype(np.int8)


def mix(bits: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    with np.errstate(over="ignore"):
        bits = np.asarray(bits, dtype=np.uint64) + GOLDEN
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class Lanes:
    """One worker's part of the training rows, and its order in each epoch."""

    rows: int  # training rows over all workers
    batch_size: int  # global
    seed: int
    worker: int = 0
    num_workers: int = 1

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch; the last may be of a short batch."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def width(self) -> int:
        """Lanes of this worker: its rows in a full batch."""
        return len(range(self.worker, self.batch_size, self.num_workers))

    @property
    def local_rows(self) -> int:
        return self.rows // self.batch_size * self.width + self.local_count(self.rows // self.batch_size)

    def owner(self, rows: Indices) -> Indices:
        """Return the worker that holds each training row (numbered over the training split)."""
        return (rows % self.batch_size) % self.num_workers

    def global_count(self, batch: int) -> int:
        """Return the number of rows in batch `batch` of an epoch over all workers."""
        return max(0, min(self.batch_size, self.rows - batch * self.batch_size))

    def local_count(self, batch: int) -> int:
        """Return the number of this worker's rows in batch `batch` of an epoch; may be 0 in a short one."""
        return len(range(self.worker, self.global_count(batch), self.num_workers))

    def epoch(self, epoch: int) -> Indices:
        """Return this worker's rows, by position in its shard, in the order in which the epoch sees them.

        The first `width` are its part of the first batch, and so on; only the last batch may be shorter.
        A shard holds its rows in ascending order, so lane j's k-th row lies at k * width + j.
        """
        full, rest = divmod(self.rows, self.batch_size)
        lanes = np.arange(self.worker, self.batch_size, self.num_workers, dtype=np.uint64)
        keys = _keys(self.seed, epoch, lanes, full + 1)
        keys[lanes >= rest, full] = np.iinfo(np.uint64).max  # no such row: it stays last
        order = np.argsort(keys, axis=1).T * self.width + np.arange(self.width)
        return order.reshape(-1)[: full * self.width + self.local_count(full)]


def _keys(seed: int, epoch: int, lanes: npt.NDArray[np.uint64], length: int) -> npt.NDArray[np.uint64]:
    """Return random numbers [lanes, length], a SplitMix64 stream per lane: their order is a uniform permutation."""
    streams = mix(mix(mix(np.uint64(seed)) ^ np.uint64(epoch)) ^ lanes)
    with np.errstate(over="ignore"):
        return mix(streams[:, None] + np.arange(length, dtype=np.uint64) * GOLDEN)
