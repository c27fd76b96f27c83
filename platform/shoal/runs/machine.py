"""What this machine holds, and which Ray cluster a run would join; found without Ray."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from shoal.errors import ConfigError
from shoal.runs.config import ScaleConfig

# Joins or starts a Ray cluster, with so many spare CPUs; says whether each worker gets a GPU (`shoal.cluster.session`).
Connect = Callable[[ScaleConfig, int], bool]

CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")


def cluster_address() -> str | None:
    """Return the address of the cluster to join: RAY_ADDRESS, else one that runs on this machine, else None.

    After an unclean stop Ray's own file still names a cluster that is gone, and `ray.init` would fail on it;
    here it counts only if something answers.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return named
    try:
        found = CLUSTER_FILE.read_text().strip()
        host, _, port = found.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=1):
            return found
    except (OSError, ValueError):
        return None


def check_local(scale: ScaleConfig, cluster_address: str | None) -> None:
    """Refuse what this machine cannot hold, before Ray is started; a cluster to join is checked once joined.

    Raises:
        ConfigError: with the arithmetic.
    """
    if scale.num_workers == 0 or cluster_address is not None:
        return
    check_resources(scale, cpus=float(os.cpu_count() or 1), gpus=local_gpus(), where="this machine")


def local_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_resources(scale: ScaleConfig, cpus: float, gpus: int, where: str, spare: int = 0) -> None:
    workers = scale.num_workers
    if scale.use_gpu is True and workers > gpus:
        raise ConfigError(
            f"scale.num_workers={workers} with scale.use_gpu=true needs {workers} GPUs and {where} has {gpus}: "
            f"lower scale.num_workers, or set scale.use_gpu=auto"
        )
    needed = workers * scale.cpus_per_worker
    if needed > cpus + 1e-9:
        kept = f" ({spare} are kept for Ray Data, which streams)" if spare else ""
        raise ConfigError(
            f"scale.num_workers={workers} x scale.cpus_per_worker={scale.cpus_per_worker:g} needs {needed:g} CPUs "
            f"and {where} has {cpus:g}{kept}: set scale.cpus_per_worker={max(cpus, 0.1) / workers:.2g} or lower "
            "scale.num_workers"
        )
