"""Everything Shoal uses of Ray that Ray does not promise to keep: the only module that may name it.

Each interface is behind one function or constant here, with a fallback. `tests/unit/cluster/test_ray_private.py` fails
when a new Ray drops or changes one; `tests/contracts/test_private_interfaces.py` keeps every other module away from
names with a leading underscore. The list, with the reason for each and what happens without it:

Variables RAY_TRAIN_{HEALTH_CHECK_INTERVAL_S,ENABLE_PREEMPTION_WATCHER,METRICS_ENABLED} (`TRAIN_ENV`)
    An empty TorchTrainer.fit takes 10.5 s with these, 15 to 17 s without. Ray ignores variables it does not know.
Variables RAY_TRAIN_V2_ENABLED, RAY_CHDIR_TO_TRIAL_DIR, RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO (`TRAIN_ENV`)
    Ray Train 2; workers stay in the driver's working directory; a process without a GPU keeps CUDA_VISIBLE_DEVICES.
    Without them, Ray's defaults.
`ray._private.worker.print_to_stdstream` (`silence_raylet`)
    Ray prints raylets' messages about lost workers whatever `log_to_driver` says. Without it, they are printed.
`ray_constants.ENABLE_RAY_CLUSTER`, variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER (`listening_on_loopback`)
    Ray's servers listen on 127.0.0.1 alone if that is their node's address. `ray.init` replaces it by one that other
    hosts reach, unless these say that no other node can join (Ray's default on macOS). Without them, the cluster
    demands a token.
`ray._private.services.ConsolePopen` (`in_own_session`)
    Ray's servers are started in the driver's process group, where a signal to the group ends them beside the driver.
    Without it they are, and trials that are stopped so may have no checkpoint.
`ActorHandle._actor_id` (`actor_id`)
    Ray's memory monitor names processes by it. Without it, every process the monitor stopped counts as the one that
    used too much.
`ray.train.v2._internal.exceptions.WorkerHealthCheck*Error` (`is_health_check_error`, `health_check_failure`)
    A worker that no longer answers is lost, which is worth another attempt. Without it, it counts as an error of the
    user's code. What the check met is in `health_check_failure`; without it, the check's own error counts.
The wording of the memory monitor's message (`OUT_OF_MEMORY`, `STOPPED_ACTOR`)
    It tells a lack of memory from a crash. Without it, the trial is tried again like one that crashed.
The wording of what `ray.init` raises after 30 s (`START_TIMED_OUT`)
    A busy machine may take longer, and Ray takes no other limit. Without it, there is no second try.
`ray._private.runtime_env.packaging` (`upload_size`)
    What a job uploads, by the same rules as Ray. Without it, the size is not known, and not checked.
`ray._private.state.available_resources_per_node` (`free_resources`)
    What each node has free: an elastic run chooses its size by it, and a host that failed too often is left out where
    the others have room. Without it, what the whole cluster has counts as one node's.
Variable RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S (`START_TIMEOUT`), `WorkerGroupStartupTimeoutError` (`found_no_room`)
    An elastic run chooses another size when its workers find no place. Without it, they wait for their place.
`ray._private.state.state.get_draining_nodes` (`draining_nodes`)
    A node that is being drained is left before its end, with a checkpoint. Without it, its workers are lost then.
`ray._raylet.GcsClient`, `JobInfoStorageClient.JOB_DATA_KEY` (`job_submitted_ms`)
    Goodput of a job begins where it was submitted; Ray's own interface needs its dashboard's address. Without it,
    goodput begins where the job's process does.
`trial.run_metadata.checkpoint_manager._latest_checkpoint_result` (`exploited_checkpoint`)
    Population based training writes there whose weights a trial continues from. Without it, refused with a message.

Three more are not behind a function of this module:

- `/tmp/ray/ray_current_cluster`, the address of this machine's cluster, is read by `cluster_address` of
  `shoal.runs.machine`, which works without Ray. Without the file, a cluster is found by RAY_ADDRESS alone.
- What Ray Tune's schedulers call on a controller and its trials is in `TuneTrial` and `TuneSchedulerAdapter` of
  `shoal.cluster.tune_schedulers`. `tests/cluster/test_schedulers.py` runs the real schedulers.
- `worker_failures` of Ray Train's exceptions is read by `shoal.cluster.worker_failure`. Without it, the exception
  itself is taken for the cause.

Imports Ray inside functions alone: `TRAIN_ENV` must be set before Ray is imported.
"""

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from shoal.errors import ConfigError

logger = logging.getLogger(__name__)

MOST_UPLOADED = 100_000  # files and folders, of which an upload takes minutes
START_TIMED_OUT = "timed out during startup"

# Measured on 2 cores (docs/design.md): an empty TorchTrainer.fit takes 10.5 s with these, 15 to 17 s without.
TRAIN_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"

# Ray's memory monitor ended a process.
OUT_OF_MEMORY = ("low on memory", "OutOfMemoryError", "memory monitor", "memory usage threshold")
# One process that the monitor chose: the actor's id and the memory it used.
STOPPED_ACTOR = re.compile(r"Actor\((\w+)\).*?actual memory used=([\d.]+)GB")


def silence_raylet() -> None:
    """Send what raylets say about lost workers to the debug log; Ray prints it whatever `log_to_driver` says."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, **_: logger.debug("%s", data.get("lines"))


@contextlib.contextmanager
def listening_on_loopback() -> Iterator[bool]:
    """Let a cluster that is started meanwhile listen on 127.0.0.1 alone; yield whether this Ray can do so."""
    from ray._private import ray_constants

    if not hasattr(ray_constants, "ENABLE_RAY_CLUSTER"):
        yield False
        return
    before, environment = ray_constants.ENABLE_RAY_CLUSTER, dict(os.environ)
    interfaces = psutil.net_if_addrs().items()
    loopback = [
        name for name, addresses in interfaces if any(one.address == "127.0.0.1" for one in addresses)
    ]
    for name in loopback[:1]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)  # of the workers that the cluster starts
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield True
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name in ("GLOO_SOCKET_IFNAME", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            os.environ.pop(name, None)
            if name in environment:
                os.environ[name] = environment[name]


@contextlib.contextmanager
def in_own_session() -> Iterator[None]:
    """Let the processes that Ray starts meanwhile be in sessions of their own; they still end with this process."""
    from ray._private import services

    plain = getattr(services, "ConsolePopen", None)
    # Elsewhere Ray ends what is left of a driver by its process group.
    if plain is None or not sys.platform.startswith("linux"):
        yield
        return
    services.ConsolePopen = partial(plain, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = plain


def upload_size(folder: Path) -> tuple[int, int] | None:
    """Return the bytes that a job would upload from a folder, and how many Ray takes; None if this Ray does not tell.

    Where it is more than Ray takes, or too many files to count, it is at least so much.
    """
    from ray._private.runtime_env import packaging

    ignored = getattr(packaging, "get_excludes_from_ignore_files", None)
    most = getattr(packaging, "GCS_STORAGE_MAX_SIZE", None)
    if ignored is None or most is None:
        return None
    size, entries = 0, 0
    waiting: list[tuple[Path, list[Callable[[Path], bool]]]] = [(folder, [])]
    while waiting and size <= most:
        path, excludes = waiting.pop()
        excludes = [*excludes, *ignored(path, include_gitignore=True, logger=logger.getChild("upload"))]
        for inner in path.iterdir() if os.access(path, os.R_OK | os.X_OK) else ():
            entries += 1
            if entries > MOST_UPLOADED:
                return most + 1, int(most)
            if any(leaves_out(inner) for leaves_out in excludes):
                continue
            if inner.is_dir():
                waiting.append((inner, excludes))
            elif inner.is_file():
                size += inner.stat().st_size
    return size, int(most)


def draining_nodes() -> frozenset[str]:
    """Return Ray's names of the nodes that are being drained; none if this Ray does not tell.

    Raises:
        Exception: Ray's server does not answer.
    """
    import ray

    state: Any = getattr(getattr(ray._private, "state", None), "state", None)
    return frozenset(state.get_draining_nodes()) if hasattr(state, "get_draining_nodes") else frozenset()


def job_submitted_ms(address: str, job: str) -> int | None:
    """Return when a job was submitted, in Unix milliseconds of the head.

    Args:
        address: host and port of Ray's server.
        job: its submission id.
    """
    with contextlib.suppress(Exception):
        from ray._private.ray_constants import KV_NAMESPACE_JOB
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.dashboard.modules.job.common import JobInfoStorageClient

        key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
        found = GcsClient(address=address).internal_kv_get(key, KV_NAMESPACE_JOB)
        return int(json.loads(found)["start_time"])
    return None


def free_resources() -> dict[str, dict[str, float]]:
    """Return what each live node has free, by Ray's names of nodes and resources.

    Raises:
        Exception: Ray's server does not answer.
    """
    import ray

    ask = getattr(getattr(ray._private, "state", None), "available_resources_per_node", None)
    if ask is not None:
        return dict(ask())
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    return {name: ray.available_resources() for name in alive[:1]}


def found_no_room(error: BaseException) -> bool:
    """Whether Ray Train gave up on places for its workers, none of which has started."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def actor_id(actor: Any) -> str:
    """Return an actor's id in hexadecimal, as Ray's messages write it; empty if the handle does not tell."""
    found = getattr(actor, "_actor_id", None)
    return found.hex() if found is not None else ""


def is_health_check_error(error: BaseException) -> bool:
    """Whether Ray Train gave up on a worker that no longer answered its health checks."""
    return type(error).__name__.startswith("WorkerHealthCheck")


def health_check_failure(error: BaseException) -> BaseException:
    """Return what Ray Train met as it looked after a worker, or the error itself where it is no other one's."""
    return getattr(error, "health_check_failure", None) or error


def exploited_checkpoint(ray_trial: Any) -> Any:
    """Return the checkpoint that population based training gave a trial to continue from.

    Raises:
        ConfigError: this Ray keeps it elsewhere.
    """
    manager = ray_trial.run_metadata.checkpoint_manager
    try:
        return manager._latest_checkpoint_result.checkpoint
    except AttributeError:
        import ray

        raise ConfigError(
            f"tune.scheduler=pbt does not work with Ray {ray.__version__}, which keeps a trial's checkpoint elsewhere: "
            "install the Ray of constraints.txt, or choose tune.scheduler=asha"
        ) from None
