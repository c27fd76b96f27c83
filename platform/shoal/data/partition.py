"""Each worker's rows: a block of a source is transformed and divided among the workers by lane.

Depends on the source's blocks and the order's lanes; independent of where the rows are then kept.
"""

from dataclasses import replace

import numpy as np

from shoal.data.dataset_info import DatasetInfo, blocks_with_splits
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TRAIN, Lanes, count_splits
from shoal.data.sources.base import Block, Source

# One worker's rows of a block, by split: (inputs [n, ...], targets [n]).
WorkerRows = dict[str, tuple[np.ndarray, np.ndarray]]


def partition_block(
    block: Block,
    split: np.ndarray,
    before: dict[str, int],
    dataset_info: DatasetInfo,
    preprocessing: PreprocessingSpec,
    num_workers: int,
) -> list[WorkerRows]:
    """Transform one block and divide its rows among the workers.

    Training rows go to the worker that owns their lane, held-out rows to the workers in turn.

    Args:
        block: columns, [n, ...] each.
        split: [n] each row's index into `SPLITS`.
        before: the number of rows of each split in all earlier blocks.
        dataset_info: with the fitted transform.
        preprocessing: with the batch size that determines the lanes.
        num_workers: parts to divide the rows into.
    """
    unlabelled = [SPLITS.index(name) for name in dataset_info.transform.label.unlabelled]
    if unlabelled:
        kept = ~np.isin(split, unlabelled)
        block, split = {name: column[kept] for name, column in block.items()}, split[kept]
    inputs, targets = dataset_info.transform.stored(block), dataset_info.transform.targets(block)
    lanes = dataset_info.lanes(preprocessing, num_workers=num_workers)
    workers: list[WorkerRows] = [{} for _ in range(num_workers)]
    for number, name in enumerate(SPLITS):
        here = np.flatnonzero(split == number)
        row_numbers = before[name] + np.arange(len(here))  # over the whole split
        owners = lanes.owner(row_numbers) if name == TRAIN else row_numbers % num_workers
        for worker, part in enumerate(workers):
            mine = here[owners == worker]
            # A full slice is a view: with one worker, which usually gets every row, nothing is copied.
            rows = slice(None) if len(mine) == len(targets) else mine
            part[name] = (inputs[rows], targets[rows])
    return workers


def concatenate(parts: list[WorkerRows]) -> WorkerRows:
    """Join one worker's rows of several blocks."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: (
            np.concatenate([part[name][0] for part in parts]),
            np.concatenate([part[name][1] for part in parts]),
        )
        for name in SPLITS
    }


def partition_source(
    source: Source, preprocessing: PreprocessingSpec, dataset_info: DatasetInfo, num_workers: int
) -> list[WorkerRows]:
    """Transform and partition in this process; returns each worker's rows."""
    before = dict.fromkeys(SPLITS, 0)
    workers: list[list[WorkerRows]] = [[] for _ in range(num_workers)]
    for block, split in blocks_with_splits(source, preprocessing):
        for rows, part in zip(
            workers,
            partition_block(block, split, before, dataset_info, preprocessing, num_workers),
            strict=True,
        ):
            rows.append(part)
        before = {name: before[name] + count for name, count in count_splits(split).items()}
    return [concatenate(rows) for rows in workers]


def lanes_of(
    rows: WorkerRows,
    dataset_info: DatasetInfo,
    preprocessing: PreprocessingSpec,
    worker: int = 0,
    num_workers: int = 1,
) -> Lanes:
    """Return the lanes of a worker's rows, grouped by length where that is asked."""
    lanes = dataset_info.lanes(preprocessing, worker, num_workers)
    if not preprocessing.data.group_by_length:
        return lanes
    return replace(lanes, lengths=dataset_info.transform.packing().lengths(rows[TRAIN][0]))
