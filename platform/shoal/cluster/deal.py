"""Deals a source's rows to workers through Ray's object store, and makes a worker's shard of its hand."""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from shoal.cluster import session
from shoal.cluster.plan import Plan
from shoal.cluster.worker import Assignment, resident_shard
from shoal.data.order import SPLITS
from shoal.data.prepare import Prepared, deal_here
from shoal.data.shard import Shard

logger = logging.getLogger(__name__)

# Resident shards share Ray's object store with whatever else is in it.
RESIDENT_STORE_SHARE = 0.5


@dataclass(frozen=True)
class Hands:
    """Where each worker's rows lie in the object store, and how it shall read them."""

    pieces: list[list[Any]]
    resident: bool


def spare_cpus(plan: Plan) -> int:
    """Return the CPUs that Ray Data needs beside the workers: none where the driver reads the rows itself."""
    is_surely_resident = plan.config.data.resident == "auto" and plan.source.is_small
    return 0 if plan.config.data.resident is True or is_surely_resident else 1


def deal(plan: Plan, num_workers: int) -> tuple[Prepared, Hands]:
    """Deal the rows; a source too large for the driver is first read, checked and fitted by Ray Data.

    Raises:
        DataError: what only reading all rows could tell.
    """
    if plan.prepared is not None:
        return plan.prepared, _deal_small(plan, plan.prepared, num_workers)
    from shoal.cluster import ingest

    blocks = ingest.read_blocks(plan.source)
    prepared, before = ingest.prepare_blocks(blocks, plan.recipe, plan.source.fingerprint)
    resident = _is_resident(plan, prepared)
    pieces = ingest.deal_blocks(blocks, before, prepared, plan.recipe, num_workers, resident)
    return prepared, Hands(pieces, resident)


def _deal_small(plan: Plan, prepared: Prepared, num_workers: int) -> Hands:
    """Deal rows that this process has read already, one object for each worker."""
    import ray

    dealt = deal_here(plan.source, plan.recipe, prepared, num_workers)
    return Hands([[ray.put(hand)] for hand in dealt], _is_resident(plan, prepared))


def shard_of(told: Assignment, hands: Hands, rank: int, size: int, device: torch.device) -> Shard:
    """Make a worker's shard: in memory on its device, or streamed."""
    import ray

    if hands.resident:
        return resident_shard(told, ray.get(hands.pieces[rank][0]), rank, size, device)
    from shoal.cluster.stream import StreamingShard

    return StreamingShard(told.prepared.lanes(told.recipe, rank, size), hands.pieces[rank], device)


def _is_resident(plan: Plan, prepared: Prepared) -> bool:
    wish = plan.config.data.resident
    if wish != "auto":
        return wish
    nbytes = sum(prepared.rows[name] for name in SPLITS) * prepared.row_bytes
    room = session.object_store_bytes() * RESIDENT_STORE_SHARE
    if nbytes > room:
        logger.info(
            "data of %.1f GB exceeds %.1f GB of object store: it is streamed", nbytes / 1e9, room / 1e9
        )
    return nbytes <= room
