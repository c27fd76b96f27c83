"""Each worker's rows: a block of a source is transformed and divided among the workers by lane."""

import numpy as np

from shoal.data.dataset_info import DatasetInfo, PreprocessingSpec, blocks_with_splits
from shoal.data.sampler import SPLITS, TRAIN
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
    """Transform one block and give each worker its rows.

    Args:
        before: the number of rows of each split in all earlier blocks.
    """
    inputs, targets = dataset_info.transform.features(block), dataset_info.transform.targets(block)
    lanes = dataset_info.lanes(preprocessing)
    workers: list[WorkerRows] = [{} for _ in range(num_workers)]
    for number, name in enumerate(SPLITS):
        here = np.flatnonzero(split == number)
        rank = before[name] + np.arange(len(here))
        place = rank % lanes.batch_size if name == TRAIN else rank
        for worker, part in enumerate(workers):
            mine = here[place % num_workers == worker]
            # A whole block, as is the rule for one worker, is passed on without a copy.
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
    """Transform and deal in this process; returns each worker's rows."""
    before = dict.fromkeys(SPLITS, 0)
    workers: list[list[WorkerRows]] = [[] for _ in range(num_workers)]
    for block, split in blocks_with_splits(source, preprocessing):
        for rows, part in zip(
            workers,
            partition_block(block, split, before, dataset_info, preprocessing, num_workers),
            strict=True,
        ):
            rows.append(part)
        before = {name: before[name] + int((split == number).sum()) for number, name in enumerate(SPLITS)}
    return [concatenate(rows) for rows in workers]
