"""A Ray session: join the cluster there is, or start one here, without Ray's own log messages."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch

from shoal.cluster.ray_private import (
    START_TIMED_OUT,
    TRAIN_ENV,
    in_own_session,
    job_submitted_ms,
    listening_on_loopback,
    silence_raylet,
)
from shoal.devices import CPU, Kind, assigned_device, find_in_cluster, load
from shoal.errors import ConfigError, Interrupted
from shoal.processes import STOP_SIGNALS
from shoal.runs.config import ScaleConfig
from shoal.runs.machine import check_resources, cluster_address, submission_id

PROBE_S, LOOK_EVERY_S = 2.0, 0.5
# Of a stop, once Ray's server is gone, by whether a checkpoint is written; after 60 s Ray ends the driver, with code 1.
GONE_PATIENCE_S = {False: 10.0, True: 30.0}
_OPENED: list[bool] = []  # not empty while the session is one that `connect` opened, and not the caller's own
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")

logger = logging.getLogger(__name__)


def connect(scale: ScaleConfig, spare_cpus: int) -> Kind:
    """Join or start a cluster; return the kind of device that each worker gets.

    Args:
        spare_cpus: CPUs that Ray Data needs besides the workers; a cluster started here has them in addition.

    Raises:
        ConfigError: the cluster is too small, or does not answer.
    """
    is_own = join(spare_cpus)
    has = resources()
    kind = find_in_cluster(scale.accelerator)
    there = int(has.get(kind.resource, 0)) if kind.resource else 0
    spare = 0 if is_own else spare_cpus
    check_resources(scale, has.get("CPU", 0.0) - spare, there, "the cluster", spare, kind.resource)
    return kind if scale.use_gpu and there >= scale.fewest_workers else CPU


def join(spare_cpus: int = 0) -> bool:
    """Join or start a cluster, whatever its size; return whether it was started here, for this process.

    Raises:
        ConfigError: it does not answer.
    """
    for name, value in TRAIN_ENV.items():
        os.environ.setdefault(name, value)
    found = cluster_address()
    decides_on_token = found is None and "RAY_AUTH_MODE" not in os.environ
    if found is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    silence_raylet()
    is_callers = ray.is_initialized() and not _OPENED
    if not ray.is_initialized():
        with _own_signals():
            _open(found, spare_cpus, decides_on_token)
        _OPENED.append(True)
    return found is None and not is_callers


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals that there are: Ray installs its own, which end the process without a word.

    Raises:
        Interrupted: Ray's handler received a SIGTERM, which the own one has received as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    try:
        yield
    except SystemExit:
        restore()
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted("interrupted while Ray started; the same command goes on") from None
    finally:
        restore()


def _open(address: str | None, spare_cpus: int, decides_on_token: bool) -> None:
    """Join the cluster at an address, or start one here.

    Raises:
        ConfigError: it does not answer.
    """
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            ray.init(address, **quiet)
            return
        cpus = (os.cpu_count() or 1) + spare_cpus
        with in_own_session(), listening_on_loopback() as is_hidden:
            if decides_on_token and not is_hidden:
                _demand_token()
            _start_here(num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        token = "" if "RAY_AUTH_MODE" in os.environ else ", set RAY_AUTH_MODE=token if it demands a token"
        raise ConfigError(
            f"the Ray cluster at '{address or 'this machine'}' cannot be used ({reason}): start it{token}, or unset "
            "RAY_ADDRESS to let Shoal start one here"
        ) from error


def _start_here(**options: Any) -> None:
    """Start a cluster here; try once more where Ray's fixed 30 s did not suffice, as on a machine that is busy.

    Raises:
        ConfigError: the second time did not suffice either.
    """
    import ray

    for is_last in (False, True):
        try:
            ray.init("local", **options)
            return
        except Exception as error:
            if START_TIMED_OUT not in str(error):
                raise
            ray.shutdown()  # what was started ends with this process
            if is_last:
                raise ConfigError(
                    "this machine is too busy to start Ray within 30 s: run the same command when less runs here, or "
                    "with scale.num_workers=0"
                ) from error
            logger.warning("Ray did not start within 30 s, since this machine is busy: trying once more")


def _demand_token() -> None:
    """Let the cluster that is started next demand a token; Ray does so by default where it starts one."""
    del os.environ["RAY_AUTH_MODE"]
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault(
            "RAY_AUTH_TOKEN", secrets.token_hex(32)
        )  # which this user's processes alone can read


class RayWatch:
    """How long Ray's server, without which Ray starts and ends nothing, has taken no connections."""

    def __init__(self) -> None:
        self._gone_since_s: float | None = None
        self._look_again_s = 0.0

    def gone_for_s(self) -> float:
        """Return the seconds since it was first found gone; 0.0 while it is there. Looks every `LOOK_EVERY_S`."""
        now_s = time.monotonic()
        if now_s >= self._look_again_s:
            is_gone = _is_gone()
            self._gone_since_s = (self._gone_since_s or now_s) if is_gone else None
            self._look_again_s = time.monotonic() + LOOK_EVERY_S
        return now_s - self._gone_since_s if self._gone_since_s else 0.0


def answers() -> bool:
    """Whether Ray's server takes connections; without it, Ray's calls wait, and after a minute end this process."""
    return not _is_gone()


def _is_gone() -> bool:
    import ray

    if not ray.is_initialized():
        return False
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S):
            return False
    except (OSError, ValueError):
        return True


def submitted_ms(began_ms: int) -> int:
    """Return when the job that this process is the driver of was submitted to Ray; when it began, outside of one.

    Args:
        began_ms: Unix milliseconds.
    """
    job, address = submission_id(), os.environ.get("RAY_ADDRESS")
    found = job_submitted_ms(address, job) if job and address else None
    return min(began_ms, found or began_ms)


def disconnect() -> None:
    """Leave the cluster that `connect` joined; one that was started here ends with it. The caller's own stays."""
    import ray

    if _OPENED:
        _OPENED.clear()
        ray.shutdown()


def own_device(kind: Kind) -> torch.device:
    """Return the device that Ray assigned to this process.

    Raises:
        ConfigError: torch does not know such devices here.
    """
    import ray

    load(kind)
    ids = ray.get_runtime_context().get_accelerator_ids().get(kind.resource or "", [])
    return assigned_device(kind, ids)


def object_store_bytes() -> int:
    import ray

    return int(ray.cluster_resources().get("object_store_memory", 0))


def resources() -> dict[str, float]:
    """Return the resources of the whole cluster, by Ray's names."""
    import ray

    return dict(ray.cluster_resources())
