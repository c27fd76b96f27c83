"""Partitions a source's rows among workers through Ray's object store, and makes a worker's shard of its part."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from shoal.cluster import session
from shoal.data.dataset_info import DatasetInfo
from shoal.data.loader import Shard
from shoal.data.partition import partition_source
from shoal.data.redraw import RedrawnRows, RedrawnShard
from shoal.data.sampler import SPLITS
from shoal.runs.resident import resident_shard
from shoal.runs.validate import RunPlan
from shoal.runs.worker import WorkerSpec

logger = logging.getLogger(__name__)

# Resident shards share Ray's object store with everything else in it.
RESIDENT_STORE_SHARE = 0.5


@dataclass(frozen=True)
class ShardRefs:
    """Where each worker's rows are in the object store, and whether it keeps them in memory.

    Attributes:
        refs: by worker; of rows that are streamed, pairs (training rows, held-out rows).
        redrawn: training rows that are read again in every epoch; None: none are.
    """

    refs: list[list[Any]]
    resident: bool
    redrawn: Any = None


# Returns the rows of a run, divided into so many parts.
ShardsFn = Callable[[int], ShardRefs]


class Shards:
    """The rows of a run by the number of parts that they are divided into; those of the last number alone are kept."""

    def __init__(self, plan: RunPlan, num_workers: int) -> None:
        """Read and divide the rows.

        Raises:
            DataError: a problem that is found by reading all rows.
        """
        self._plan = plan
        self.dataset_info, shard_refs = put_shards(plan, num_workers)
        self._kept = {num_workers: shard_refs}

    def __call__(self, num_workers: int) -> ShardRefs:
        """Return the rows for so many workers; another number than before has them read and divided again."""
        if num_workers not in self._kept:
            self._kept.clear()  # room for the others
            _, self._kept[num_workers] = put_shards(self._plan, num_workers)
        return self._kept[num_workers]


def spare_cpus(plan: RunPlan) -> int:
    """Return the CPUs that reading needs beside the workers: none if the driver reads the rows itself."""
    is_surely_resident = plan.config.data.resident == "auto" and plan.source.is_small
    return 0 if plan.config.data.resident is True or is_surely_resident else 1


def put_shards(plan: RunPlan, num_workers: int) -> tuple[DatasetInfo, ShardRefs]:
    """Partition the rows; tasks first read, check and fit a source that is too large for the driver.

    Raises:
        DataError: a problem that is found by reading all rows.
    """
    if plan.dataset_info is not None:
        shard_refs = _put_small(plan, plan.dataset_info, num_workers)
        return plan.dataset_info, _with_redrawn(shard_refs, plan, plan.dataset_info)
    from shoal.cluster import ingest

    blocks, dataset_info, before = ingest.read_and_inspect(plan.source, plan.preprocessing)
    resident = _is_resident(plan, dataset_info)
    refs = ingest.partition_blocks(blocks, before, dataset_info, plan.preprocessing, num_workers, resident)
    return dataset_info, _with_redrawn(ShardRefs(refs, resident), plan, dataset_info)


def _with_redrawn(shard_refs: ShardRefs, plan: RunPlan, dataset_info: DatasetInfo) -> ShardRefs:
    import ray

    redrawn = RedrawnRows.of(plan.source, plan.preprocessing, dataset_info)
    return replace(shard_refs, redrawn=ray.put(redrawn)) if redrawn else shard_refs


def _put_small(plan: RunPlan, dataset_info: DatasetInfo, num_workers: int) -> ShardRefs:
    """Partition rows that this process has read already, one object for each worker."""
    import ray

    partitions = partition_source(plan.source, plan.preprocessing, dataset_info, num_workers)
    resident = _is_resident(plan, dataset_info)
    if resident:
        return ShardRefs([[ray.put(rows)] for rows in partitions], resident)
    from shoal.cluster.ingest import divided

    return ShardRefs([[tuple(map(ray.put, divided(rows)))] for rows in partitions], resident)


def make_shard(spec: WorkerSpec, shard_refs: ShardRefs, rank: int, size: int, device: torch.device) -> Shard:
    """Make a worker's shard: in memory on its device, or streamed."""
    import ray

    shard: Shard
    if shard_refs.resident:
        shard = resident_shard(spec, ray.get(shard_refs.refs[rank][0]), rank, size, device)
    else:
        from shoal.cluster.streaming import StreamingShard

        info = spec.dataset_info
        packing = info.transform.packing() if spec.preprocessing.data.group_by_length else None
        lanes = info.lanes(spec.preprocessing, rank, size)
        shard = StreamingShard(lanes, shard_refs.refs[rank], device, packing)
    return RedrawnShard(shard, ray.get(shard_refs.redrawn), device) if shard_refs.redrawn else shard


def _is_resident(plan: RunPlan, dataset_info: DatasetInfo) -> bool:
    wanted = plan.config.data.resident
    if wanted != "auto":
        return wanted
    nbytes = sum(dataset_info.rows[name] for name in SPLITS) * dataset_info.row_bytes
    room = session.object_store_bytes() * RESIDENT_STORE_SHARE
    if nbytes > room:
        logger.info(
            "data of %.1f GB exceeds %.1f GB of object store: it is streamed", nbytes / 1e9, room / 1e9
        )
    return nbytes <= room
