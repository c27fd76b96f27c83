"""Which split a row is in, and in which order the training rows are seen: pure functions, no data.

The order must not depend on the number of workers, yet each worker may hold only its own rows. The training rows are
therefore divided among B lanes, B the global batch size: row t is always in lane t mod B. Batch b of an epoch takes one
row of every lane; an epoch shuffles each lane by itself. A worker owns whole lanes (lane l belongs to worker l mod W),
hence a fixed set of rows, while the batch is the same for every number of workers W.

Where rows differ in length, the rows of a batch can be of similar length, so that little of it is padding: each lane is
then sorted by length, with some noise, and the batches are shuffled, in all lanes alike.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: the increment of SplitMix64
# By which share a row may count as longer than it is, so that batches differ from epoch to epoch.
LENGTH_NOISE = 0.2
SPLIT_SALT = np.uint64(0x5348_4F41_4C)  # keeps the draws of splits apart from those of the order

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
SPLIT_NAMES = {  # as data sets and folders spell them, in any case
    "train": TRAIN,
    "training": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "dev": VALIDATION,
    "eval": VALIDATION,
    "test": TEST,
    "testing": TEST,
}


def split_named(name: object) -> str | None:
    """Return the split that a name stands for, in any case; None: none."""
    return SPLIT_NAMES.get(str(name).lower())


@dataclass(frozen=True)
class SplitRule:
    """How rows are divided into splits. The one place that says which of a source's own splits are kept.

    Attributes:
        seed: of the draws.
        validation: share of the rows that are held out while training.
        test: share of the rows that are held out to the end.
    """

    seed: int
    validation: float
    test: float

    def assign(
        self, rows: Indices, source_split: str | None, source_has_validation: bool
    ) -> npt.NDArray[np.int8]:
        """Return for each row the index of its split in `SPLITS`.

        A split that the source states is kept. The one exception: of a stated training split without a validation
        split beside it, the share `validation` is held out.

        Args:
            rows: [n] row numbers over the whole source.
            source_split: the split that the source states for these rows; None: it states none.
            source_has_validation: whether the source states a validation split anywhere.
        """
        if source_split is None:
            return split_rows(self.seed, rows, self.validation, self.test)
        if source_split == TRAIN and not source_has_validation:
            return split_rows(self.seed, rows, self.validation, 0.0)
        return np.full(len(rows), SPLITS.index(source_split), dtype=np.int8)


def split_rows(seed: int, rows: Indices, validation: float, test: float) -> npt.NDArray[np.int8]:
    """Return for each row the index of its split in `SPLITS`, a function of the seed and the row's number alone.

    A row stays in its split when the data grows. The shares hold on average, not exactly.
    """
    mixed = mix(rows.astype(np.uint64) ^ mix(np.uint64(seed) + SPLIT_SALT))
    uniform = (mixed >> np.uint64(11)).astype(np.float64) / 2**53
    return np.where(uniform < test, 2, np.where(uniform < test + validation, 1, 0)).astype(np.int8)


def count_splits(split: npt.NDArray[np.int8]) -> dict[str, int]:
    """Return how many rows each split has."""
    return {name: int((split == number).sum()) for number, name in enumerate(SPLITS)}


def mix(bits: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")."""
    with np.errstate(over="ignore"):
        bits = np.asarray(bits, dtype=np.uint64) + GOLDEN
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class Lanes:
    """One worker's part of the training rows, and its order in each epoch.

    Attributes:
        rows: training rows over all workers.
        batch_size: samples of an optimizer step, over all workers.
        seed: of the order.
        lengths: [n] of this worker's rows, by position in its shard, which are then grouped by it; None: they are not.
    """

    rows: int
    batch_size: int
    seed: int
    worker: int = 0
    num_workers: int = 1
    lengths: Indices | None = field(default=None, repr=False, compare=False)

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch; the last may have a short batch."""
        return math.ceil(self.rows / self.batch_size)

    @property
    def width(self) -> int:
        """Lanes of this worker: its rows in a full batch."""
        return len(range(self.worker, self.batch_size, self.num_workers))

    @property
    def largest_part(self) -> int:
        """Rows of a full batch that the worker with most of them has."""
        return math.ceil(min(self.batch_size, self.rows) / self.num_workers)

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
        A shard holds its rows in ascending order, so lane j's k-th row is at k * width + j.
        """
        full, rest = divmod(self.rows, self.batch_size)
        lanes = np.arange(self.worker, self.batch_size, self.num_workers, dtype=np.uint64)
        keys = _shuffle_keys(self.seed, epoch, lanes, full + 1)
        keys[lanes >= rest, full] = np.iinfo(np.uint64).max  # these lanes have no such row: it sorts last
        order = np.argsort(keys, axis=1)
        if self.lengths is not None:
            order[:, :full] = self._grouped_by_length(order[:, :full], epoch)
        places = order.T * self.width + np.arange(self.width)
        return places.reshape(-1)[: full * self.width + self.local_count(full)]

    def _grouped_by_length(self, order: Indices, epoch: int) -> Indices:
        """Return the rows of each lane [lanes, batches] in an order in which those of a batch are of similar length.

        The order it takes is random, and so is the noise that a place in it stands for.
        """
        assert self.lengths is not None
        batches = order.shape[1]
        lengths = self.lengths[order * self.width + np.arange(self.width)[:, None]]
        noisy = lengths * (1 + LENGTH_NOISE * np.arange(batches) / max(1, batches))
        by_length = np.take_along_axis(order, np.argsort(noisy, axis=1, kind="stable"), axis=1)
        beyond_all_lanes = np.array([self.batch_size], dtype=np.uint64)
        return by_length[:, np.argsort(_shuffle_keys(self.seed, epoch, beyond_all_lanes, batches)[0])]

    def rows_of(self, step: int) -> Indices:
        """Return this worker's training rows of an optimizer step, numbered over the training split, in their order.

        Args:
            step: counted from 0 over all epochs.
        """
        epoch, batch = divmod(step, self.steps)
        cycles, lanes = np.divmod(self.epoch(epoch)[batch * self.width :][: self.width], self.width)
        rows: Indices = cycles * self.batch_size + self.worker + lanes * self.num_workers
        return rows


def _shuffle_keys(
    seed: int, epoch: int, lanes: npt.NDArray[np.uint64], length: int
) -> npt.NDArray[np.uint64]:
    """Return random numbers [lanes, length], a SplitMix64 stream per lane: their order is a uniform permutation."""
    streams = mix(mix(mix(np.uint64(seed)) ^ np.uint64(epoch)) ^ lanes)
    with np.errstate(over="ignore"):
        return mix(streams[:, None] + np.arange(length, dtype=np.uint64) * GOLDEN)
