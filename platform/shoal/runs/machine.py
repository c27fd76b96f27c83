"""What this machine holds, and which Ray cluster a run would join; found without Ray."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from shoal.errors import ConfigError
from shoal.runs.config import ScaleConfig

# Joins or starts a Ray cluster, with so many spare CPUs; says whether each worker gets a GPU (`shoal.cluster.session`).
Connect = Callable[[ScaleConfig, int], bool]

PROBE_S = 5.0
# How a client of gRPC begins, and the type of the frame that a server answers with: HTTP/2's, with and without tokens.
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
HTTP2_SETTINGS = b"\x04"

CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")


def cluster_address() -> str | None:
    """Return the address of the cluster to join: RAY_ADDRESS, else one that runs on this machine, else None.

    After an unclean stop Ray's own file still names a cluster that is gone, and `ray.init` would fail on it;
    here it counts only if something answers.
    """
    named = os.environ.get("RAY_ADDRESS")
    if named:
        return named
    address = _address_in_file()
    return address if address and _answers(address) else None


def left_behind() -> str | None:
    """Return the address in Ray's own file if nothing answers there."""
    address = _address_in_file()
    return address if address and not _answers(address) else None


def _address_in_file() -> str | None:
    try:
        return CLUSTER_FILE.read_text().strip()
    except (OSError, ValueError):
        return None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def check_cluster(address: str) -> None:
    """Refuse the address of a cluster that does not answer within seconds; Ray would try for many minutes.

    Raises:
        ConfigError: nothing listens there, it does not speak gRPC's protocol, or it is no address.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or "/" in host:
        return  # a word such as `auto`, or a scheme, which Ray refuses at once
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_S) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(HTTP2_HELLO)
            if connection.recv(9)[3:4] == HTTP2_SETTINGS:
                return
            reason = "it answers, and not as Ray does"
    except TimeoutError:
        reason = f"no answer within {PROBE_S:g} s"
    except (OSError, ValueError, OverflowError) as error:
        reason = str(error)
    raise ConfigError(
        f"the Ray cluster at '{address}' cannot be used ({reason}): start it, or unset RAY_ADDRESS to let Shoal start "
        "one here"
    )


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
