"""Reads a source by tasks of a cluster and partitions its rows among the workers, in Ray's object store.

The source's own functions read the blocks and `shoal.data.partition` divides one; here they are mapped over blocks that
no single process holds.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from shoal.data.dataset_info import DatasetInfo, fit_dataset_info
from shoal.data.how_far import SAY_EVERY_S, HowFar
from shoal.data.partition import WorkerRows, concatenate, partition_block
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TRAIN
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import Block, OtherTypesError, Part, Source
from shoal.data.summary import DatasetSummary, merge_summaries, summarise_block
from shoal.errors import UserError

logger = logging.getLogger(__name__)

RowsRef = Any  # ray.ObjectRef[WorkerRows]


@dataclass(frozen=True)
class Blocks:
    """A source's blocks in the object store, in the source's order.

    Attributes:
        refs: of blocks of arrays; of Arrow tables where a Ray Dataset is the source.
        splits: of each block, the split that the source states.
        rows: of each block, the number of rows.
        has_validation: whether the source states a validation split.
    """

    refs: list[Any]
    splits: list[str | None]
    rows: list[int]
    has_validation: bool

    @property
    def first_rows(self) -> list[int]:
        return [sum(self.rows[:number]) for number in range(len(self.rows))]


def read_blocks(source: Source) -> Blocks:
    """Read in parallel, by the functions that read a small source in one process; the order of rows is the same.

    A cell that is not of the type that samples of its column show has all read again.
    """
    while True:
        try:
            return _read_once(source)
        except OtherTypesError as error:
            parts = [part.encoded[0] if part.encoded else part for part in source.parts]
            relearn = next((part.relearn for part in parts if part.relearn), None)
            if relearn is None:
                raise
            relearn(error)  # the parts have one schema


def _read_once(source: Source) -> Blocks:
    found: list[tuple[str | None, Any]] = []
    how_far = HowFar(logger)
    for split, refs in [(part.split, _start_reading(part)) for part in source.parts]:
        for ref in itertools.chain.from_iterable(refs):
            found.append((split, ref))
            how_far("data.source='%s': %d blocks are read", source.uri, len(found))
    rows = _get([_count.remote(ref) for _, ref in found])
    kept = [(ref, split, count) for (split, ref), count in zip(found, rows, strict=True) if count]
    refs, splits, counts = (list(column) for column in zip(*kept, strict=True)) if kept else ([], [], [])
    return Blocks(refs, splits, counts, source.has_validation)


def read_and_inspect(
    source: Source, preprocessing: PreprocessingSpec
) -> tuple[Blocks, DatasetInfo, list[dict[str, int]]]:
    """Read a source, check and fit over all of it; also returns how many rows of each split precede each block.

    Raises:
        DataError: a problem that is found by reading all rows.
    """
    blocks = read_blocks(source)
    return blocks, *inspect_blocks(blocks, preprocessing, source.fingerprint)


def inspect_blocks(
    blocks: Blocks, preprocessing: PreprocessingSpec, fingerprint: str
) -> tuple[DatasetInfo, list[dict[str, int]]]:
    """Check and fit over all blocks; also returns how many rows of each split precede each block."""
    started = [
        _summarise.remote(ref, first, source_split, blocks.has_validation, preprocessing)
        for ref, first, source_split in zip(blocks.refs, blocks.first_rows, blocks.splits, strict=True)
    ]
    before, count, how_far = [], dict.fromkeys(SPLITS, 0), HowFar(logger)

    def summaries() -> Iterator[DatasetSummary]:
        """Yield one at a time: this process holds two, however many blocks there are."""
        while started:
            [summary] = _get([started.pop(0)])
            before.append(dict(count))
            count.update({name: count[name] + summary.rows[name] for name in SPLITS})
            how_far("%d of %d blocks are checked", len(before), len(blocks.refs))
            yield summary

    return fit_dataset_info(merge_summaries(summaries()), preprocessing, fingerprint), before


def partition_blocks(
    blocks: Blocks,
    before: list[dict[str, int]],
    dataset_info: DatasetInfo,
    preprocessing: PreprocessingSpec,
    num_workers: int,
    joined: bool,
) -> list[list[Any]]:
    """Transform all blocks and partition their rows.

    Returns:
        by worker, one object of all its rows if `joined`; else, for each block, one of its training rows and one of its
        held-out rows, so that an evaluation does not fetch what is trained on.
    """
    shard_refs: list[list[Any]] = [[] for _ in range(num_workers)]
    fitted = ray.put((dataset_info, preprocessing))
    inputs = zip(blocks.refs, blocks.first_rows, blocks.splits, before, strict=True)
    for ref, first, source_split, earlier in inputs:
        task = _partition.options(num_returns=2 * num_workers)
        parts = task.remote(ref, first, source_split, blocks.has_validation, earlier, fitted, num_workers)
        for worker, rows in enumerate(shard_refs):
            rows.append((parts[2 * worker], parts[2 * worker + 1]))
    if joined:
        shard_refs = [[_join.remote(*(ref for pair in rows for ref in pair))] for rows in shard_refs]
    made = [ref for rows in shard_refs for found in rows for ref in (found if not joined else [found])]
    how_far = HowFar(logger)
    ready: list[Any] = []
    while len(ready) < len(made):
        ready, _ = ray.wait(made, num_returns=len(made), timeout=SAY_EVERY_S, fetch_local=False)
        how_far("%d of %d parts of the workers are made", len(ready), len(made))
    return shard_refs


def _start_reading(part: Part) -> list[Any]:
    """Start to read a part; returns, in its order, iterables over references to its blocks."""
    if part.encoded is not None:
        encoded, decode = part.encoded
        shared = ray.put(decode)
        return [_decode.remote(shared, ref) for refs in _start_reading(encoded) for ref in refs]
    if part.dataset is not None:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        part.dataset.context.execution_options.preserve_order = True
        part.dataset.context.enable_progress_bars = False
        return [part.dataset.to_arrow_refs()]
    if part.chunks is None:
        return [[ray.put(block) for block in part.read()]]
    chunks = part.chunks()
    shared = ray.put(chunks.read)  # it may hold the rows: a user's dataset
    return [_read_chunk.remote(shared, number) for number in range(chunks.count)]


def _get(refs: list[Any]) -> list[Any]:
    """Return what references stand for.

    Raises:
        UserError: as a task raised it, without Ray's account of the task.
    """
    try:
        return ray.get(refs)  # type: ignore[no-any-return]
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise


def _as_block(rows: Block | pa.Table) -> Block:
    return table_to_block(rows) if isinstance(rows, pa.Table) else rows


@ray.remote(num_cpus=0.5, num_returns="streaming")
def _read_chunk(read: Callable[[int], Iterator[Block]], number: int) -> Iterator[Block]:
    yield from read(number)


@ray.remote(num_cpus=0.5, num_returns="streaming")
def _decode(decode: Callable[[Block], Iterator[Block]], rows: Block | pa.Table) -> Iterator[Block]:
    yield from decode(_as_block(rows))


@ray.remote(num_cpus=0.5)
def _count(rows: Block | pa.Table) -> int:
    return len(rows) if isinstance(rows, pa.Table) else len(next(iter(rows.values()), ()))


@ray.remote(num_cpus=0.5)
def _summarise(
    rows: Block | pa.Table,
    first: int,
    source_split: str | None,
    has_validation: bool,
    preprocessing: PreprocessingSpec,
) -> DatasetSummary:
    block = _as_block(rows)
    split = _assign_splits(block, first, source_split, has_validation, preprocessing)
    return summarise_block(block, split, preprocessing)


@ray.remote(num_cpus=0.5)
def _partition(
    rows: Block | pa.Table,
    first: int,
    source_split: str | None,
    has_validation: bool,
    before: dict[str, int],
    fitted: tuple[DatasetInfo, PreprocessingSpec],
    num_workers: int,
) -> Any:
    dataset_info, preprocessing = fitted
    block = _as_block(rows)
    split = _assign_splits(block, first, source_split, has_validation, preprocessing)
    workers = partition_block(block, split, before, dataset_info, preprocessing, num_workers)
    return [part for rows in workers for part in divided(rows)]


def _assign_splits(
    block: Block,
    first: int,
    source_split: str | None,
    has_validation: bool,
    preprocessing: PreprocessingSpec,
) -> np.ndarray:
    rows = np.arange(first, first + len(next(iter(block.values()))))
    return preprocessing.split_rule.assign(rows, source_split, has_validation)


def divided(rows: WorkerRows) -> tuple[WorkerRows, WorkerRows]:
    """Divide a worker's rows into those of training and those that are held out."""
    return {TRAIN: rows[TRAIN]}, {name: part for name, part in rows.items() if name != TRAIN}


@ray.remote(num_cpus=0.5)
def _join(*parts: WorkerRows) -> WorkerRows:
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return concatenate([train | held_out for train, held_out in pairs])
