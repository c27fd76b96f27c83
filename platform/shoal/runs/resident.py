"""A worker's shard of rows that are kept in memory."""

import logging

import torch

from shoal.data.loader import ResidentShard, Rows
from shoal.data.partition import WorkerRows, lanes_of
from shoal.data.sampler import TRAIN
from shoal.devices import free_bytes
from shoal.runs.worker import WorkerSpec

# Of a device's free memory, before the model is there; the rest is for the training.
RESIDENT_DEVICE_SHARE = 0.4

logger = logging.getLogger(__name__)


def resident_shard(
    spec: WorkerSpec, rows: WorkerRows, rank: int, size: int, device: torch.device
) -> ResidentShard:
    """Make a shard of this worker's rows: on its device, or in RAM where they would take too much of the device."""
    nbytes = sum(array.nbytes for arrays in rows.values() for array in arrays)
    place = place_of_rows(nbytes, free_bytes(device), device)
    held = {name: Rows.of(*arrays, place) for name, arrays in rows.items()}
    lanes = lanes_of(rows, spec.dataset_info, spec.preprocessing, rank, size)
    return ResidentShard(lanes, held.pop(TRAIN), held, device)


def place_of_rows(nbytes: int, free: int | None, device: torch.device) -> torch.device:
    """Return where rows of a size are kept: on the device, if they leave most of its free memory to the training."""
    if free is None or nbytes <= free * RESIDENT_DEVICE_SHARE:
        return device
    logger.info("data of %.1f GB stays in RAM: the device has %.1f GB free", nbytes / 1e9, free / 1e9)
    return torch.device("cpu")
