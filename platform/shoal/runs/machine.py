"""What this machine holds, and which Ray cluster a run would join; found without Ray."""

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch

from shoal import devices
from shoal.devices import CPU, Kind
from shoal.errors import ConfigError
from shoal.runs.config import ScaleConfig

# Joins or starts a Ray cluster, with so many spare CPUs; returns the device of each worker (`shoal.cluster.session`).
Connect = Callable[[ScaleConfig, int], Kind]

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


def submission_id() -> str | None:
    """Return the id by which `ray job` knows the job that this process is the driver of, None outside of one.

    Ray tells its drivers in an environment variable (`ray.dashboard.modules.job.job_supervisor`).
    """
    with contextlib.suppress(ValueError, AttributeError):  # not written by Ray
        config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return config.get("metadata", {}).get("job_submission_id") or None
    return None


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
    if cluster_address is not None and scale.most_workers:
        return
    kind = devices.find(scale.accelerator)
    if scale.most_workers:
        cpus, there = float(os.cpu_count() or 1), _accelerators(kind)
        check_resources(scale, cpus, there, "this machine", resource=kind.resource)


def local_gpus() -> int:
    """Return how many devices this machine has that `scale.accelerator=auto` takes."""
    return _accelerators(devices.find("auto"))


def local_device(scale: ScaleConfig) -> torch.device:
    """Return the device that a training in this process computes on.

    Raises:
        ConfigError: it is not there.
    """
    kind = devices.find(scale.accelerator) if scale.use_gpu else CPU
    return devices.first_device(kind)


def _accelerators(kind: Kind) -> int:
    return 0 if kind is CPU else devices.count(kind)


def check_resources(
    scale: ScaleConfig,
    cpus: float,
    accelerators: int,
    where: str,
    spare: int = 0,
    resource: str | None = None,
) -> None:
    """Refuse workers that CPUs or accelerators do not suffice for.

    Args:
        where: that is.
        spare: CPUs that are kept for others.
        resource: Ray's name of the accelerators.

    Raises:
        ConfigError: with the arithmetic.
    """
    workers = scale.fewest_workers
    asked = f"scale.num_workers={scale.num_workers}{f' (at least {workers})' if scale.is_elastic else ''}"
    if scale.needs_accelerator and workers > accelerators:
        key = "use_gpu=true" if scale.use_gpu is True else f"accelerator={scale.accelerator}"
        raise ConfigError(
            f"{asked} with scale.{key} needs {workers} {resource or 'GPU'}s and {where} has "
            f"{accelerators}: lower scale.num_workers, or set scale.{key.partition('=')[0]}=auto"
        )
    needed = workers * scale.cpus_per_worker
    if needed > cpus + 1e-9:
        kept = f" ({spare} are kept for Ray Data, which streams)" if spare else ""
        raise ConfigError(
            f"{asked} x scale.cpus_per_worker={scale.cpus_per_worker:g} needs {needed:g} CPUs "
            f"and {where} has {cpus:g}{kept}: set scale.cpus_per_worker={max(cpus, 0.1) / workers:.2g} or lower "
            "scale.num_workers"
        )
