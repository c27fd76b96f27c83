"""Reads a source with Ray Data and partitions its rows among the workers, in Ray's object store.

`shoal.data.partition` does the work on a block; here it is mapped over blocks that no single process holds.
"""

import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockAccessor

from shoal.data.dataset_info import (
    DatasetInfo,
    DatasetSummary,
    PreprocessingSpec,
    fit_dataset_info,
    merge_summaries,
    summarise_block,
)
from shoal.data.partition import WorkerRows, concatenate, partition_block
from shoal.data.sampler import SPLITS, VALIDATION
from shoal.data.sources.arrow import table_to_block
from shoal.data.sources.base import Block, Source
from shoal.data.sources.files import file_schema, read_npz
from shoal.data.sources.function import Items
from shoal.data.sources.image_column import ImageDecoder
from shoal.data.sources.synthetic import synthetic_block, synthetic_options

RowsRef = Any  # ray.ObjectRef[WorkerRows]


@dataclass(frozen=True)
class Blocks:
    """A source's blocks in the object store, in the source's order.

    Attributes:
        refs: of Arrow tables.
        splits: of each block, the split that the source states.
        rows: of each block, the number of rows.
    """

    refs: list[Any]
    splits: list[str | None]
    rows: list[int]

    @property
    def first_rows(self) -> list[int]:
        return [sum(self.rows[:number]) for number in range(len(self.rows))]


def read_blocks(source: Source) -> Blocks:
    """Read with Ray Data's readers, in parallel, keeping the order of rows."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    refs: list[Any] = []
    splits: list[str | None] = []
    parts = source.value.items() if source.scheme == "splits" else [(None, source)]
    for split, part in parts:
        for own_split, dataset in _datasets(part):
            found = dataset.to_arrow_refs()
            refs += found
            splits += [split or own_split] * len(found)
    rows = ray.get([_count.remote(ref) for ref in refs])
    kept = [number for number, count in enumerate(rows) if count]
    return Blocks([refs[n] for n in kept], [splits[n] for n in kept], [rows[n] for n in kept])


def inspect_blocks(
    blocks: Blocks, preprocessing: PreprocessingSpec, fingerprint: str
) -> tuple[DatasetInfo, list[dict[str, int]]]:
    """Check and fit over all blocks; also returns how many rows of each split precede each block."""
    has_validation = VALIDATION in blocks.splits
    summaries: list[DatasetSummary] = ray.get(
        [
            _summarise.remote(ref, first, source_split, has_validation, preprocessing)
            for ref, first, source_split in zip(blocks.refs, blocks.first_rows, blocks.splits, strict=True)
        ]
    )
    before, count = [], dict.fromkeys(SPLITS, 0)
    for summary in summaries:
        before.append(dict(count))
        count = {name: count[name] + summary.rows[name] for name in SPLITS}
    return fit_dataset_info(merge_summaries(summaries), preprocessing, fingerprint), before


def partition_blocks(
    blocks: Blocks,
    before: list[dict[str, int]],
    dataset_info: DatasetInfo,
    preprocessing: PreprocessingSpec,
    num_workers: int,
    joined: bool,
) -> list[list[RowsRef]]:
    """Transform all blocks and partition their rows; returns each worker's objects, one if `joined`."""
    has_validation = VALIDATION in blocks.splits
    shard_refs: list[list[RowsRef]] = [[] for _ in range(num_workers)]
    fitted = ray.put((dataset_info, preprocessing))
    inputs = zip(blocks.refs, blocks.first_rows, blocks.splits, before, strict=True)
    for ref, first, source_split, earlier in inputs:
        task = _partition.options(num_returns=num_workers)
        partitions = task.remote(ref, first, source_split, has_validation, earlier, fitted, num_workers)
        for rows, part in zip(shard_refs, partitions if num_workers > 1 else [partitions], strict=True):
            rows.append(part)
    if joined:
        shard_refs = [[_join.remote(*rows)] for rows in shard_refs]
    ray.wait(
        [ref for rows in shard_refs for ref in rows], num_returns=sum(map(len, shard_refs)), fetch_local=False
    )
    return shard_refs


def _datasets(source: Source) -> list[tuple[str | None, ray.data.Dataset]]:
    """Return the source as Ray Datasets, each with the split that the source states."""
    paths = list(source.paths)
    match source.scheme:
        case "csv":
            from pyarrow import csv

            convert = csv.ConvertOptions(strings_can_be_null=True, column_types=file_schema(source))
            return [(None, ray.data.read_csv(paths, convert_options=convert))]
        case "parquet":
            return [(None, ray.data.read_parquet(paths))]
        case "json":
            return [(None, ray.data.read_json(paths))]
        case "npz":
            files = ray.data.read_binary_files(paths, include_paths=True)
            return [(None, files.map_batches(_npz_rows, batch_size=1))]
        case "synthetic":
            options = synthetic_options(source.uri)
            rows = options.pop("rows")
            return [(None, ray.data.range(rows).map_batches(_synthetic_rows, fn_kwargs=options))]
        case "indexed":
            rows = ray.data.range(len(source.value))
            return [(None, rows.map_batches(_item_rows, fn_kwargs={"items": source.value}))]
        case "huggingface":
            named = [
                (part.split, rows) for part, rows in zip(source.parts, source.value.values(), strict=True)
            ]
            return [(split, ray.data.from_huggingface(rows)) for split, rows in named]
        case "ray":
            return [(None, source.value)]
        case "image_column":
            decoder: ImageDecoder = source.value.decoder
            options = {"batch_size": decoder.block_rows, "batch_format": "pyarrow"}
            return [
                (split, dataset.map_batches(decode_batch, fn_kwargs={"decoder": decoder}, **options))
                for split, dataset in _datasets(source.value.inner)
            ]
        case _:
            return [(split, ray.data.from_arrow(block_to_table(block))) for split, block in source.blocks()]


def _npz_rows(batch: dict[str, np.ndarray]) -> Block:
    return read_npz(io.BytesIO(batch["bytes"][0]), str(batch["path"][0]))


def _synthetic_rows(batch: dict[str, np.ndarray], **options: Any) -> Block:
    rows = batch["id"]
    return synthetic_block(first=int(rows[0]), rows=len(rows), **options)


def _item_rows(batch: dict[str, np.ndarray], items: Items) -> Block:
    return items.read(batch["id"].tolist())


def decode_batch(batch: pa.Table, decoder: ImageDecoder) -> pa.Table:
    """Decode a batch; a message numbers its rows from the batch's first, as the batch has no place of its own."""
    return block_to_table(decoder(table_to_block(batch.select([decoder.column, decoder.label]))))


def block_to_table(block: Block) -> pa.Table:
    """Turn arrays into an Arrow table; images and other tensors become columns of Ray's tensor type."""
    tensors = {name: column for name, column in block.items() if column.ndim > 1}
    converted = BlockAccessor.batch_to_arrow_block(tensors)
    return pa.table(
        {name: converted.column(name) if name in tensors else column for name, column in block.items()}
    )


@ray.remote(num_cpus=0.5)
def _count(table: pa.Table) -> int:
    return int(table.num_rows)


@ray.remote(num_cpus=0.5)
def _summarise(
    table: pa.Table,
    first: int,
    source_split: str | None,
    has_validation: bool,
    preprocessing: PreprocessingSpec,
) -> DatasetSummary:
    split = _assign_splits(table, first, source_split, has_validation, preprocessing)
    return summarise_block(table_to_block(table), split, preprocessing)


@ray.remote(num_cpus=0.5)
def _partition(
    table: pa.Table,
    first: int,
    source_split: str | None,
    has_validation: bool,
    before: dict[str, int],
    fitted: tuple[DatasetInfo, PreprocessingSpec],
    num_workers: int,
) -> Any:
    dataset_info, preprocessing = fitted
    split = _assign_splits(table, first, source_split, has_validation, preprocessing)
    shard_refs = partition_block(
        table_to_block(table), split, before, dataset_info, preprocessing, num_workers
    )
    return shard_refs if num_workers > 1 else shard_refs[0]


def _assign_splits(
    table: pa.Table,
    first: int,
    source_split: str | None,
    has_validation: bool,
    preprocessing: PreprocessingSpec,
) -> np.ndarray:
    rows = np.arange(first, first + table.num_rows)
    return preprocessing.split_rule.assign(rows, source_split, has_validation)


@ray.remote(num_cpus=0.5)
def _join(*parts: WorkerRows) -> WorkerRows:
    return concatenate(list(parts))
