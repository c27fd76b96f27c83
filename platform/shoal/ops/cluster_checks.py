"""What is there once for a cluster: the tracking server, room for the workers, the upload of a job."""

from shoal.errors import ConfigError, value_and_remedy
from shoal.ops.node_checks import MIB
from shoal.runs.config import ScaleConfig
from shoal.runs.machine import check_resources
from shoal.storage.records import Finding
from shoal.tracking.store_probe import StoreProbe

SLOW_CALL_S = 1.0


def check_store(probe: StoreProbe, own_version: str) -> list[Finding]:
    """MLflow must take a run, a metric and a file, and be of the version of its clients.

    Args:
        own_version: of MLflow where the driver runs.
    """
    if probe.error is not None:
        return [
            Finding(
                check="tracking",
                level="fatal",
                where=probe.uri,
                value=probe.error,
                rule="a probe run with a metric and a file must go in, come out and be deleted",
                remedy=probe.remedy or "start the server, or set track.tracking_uri",
            )
        ]
    value = f"writable, {probe.seconds_per_call:.2f} s a call, mlflow {probe.version or own_version}"
    if probe.version not in (None, own_version):
        return [
            Finding(
                check="tracking",
                level="fatal",
                where=probe.uri,
                value=f"mlflow {probe.version} there, {own_version} here",
                rule="a server that is older than its clients lacks what they call",
                remedy=f"install mlflow {own_version} on the server, then mlflow db upgrade",
            )
        ]
    if probe.seconds_per_call > SLOW_CALL_S:
        return [
            Finding(
                check="tracking",
                level="warning",
                where=probe.uri,
                value=value,
                rule=f"a call that takes more than {SLOW_CALL_S:g} s delays the end of every run",
                remedy="give the server more processes or a database of its own (docs/guides/tracking-server.md)",
            )
        ]
    return [Finding(check="tracking", where=probe.uri, value=value)]


def check_room(scale: ScaleConfig, cpus: float, gpus: int, nodes: int) -> list[Finding]:
    """The workers of the config must fit."""
    try:
        check_resources(scale, cpus, gpus, "the cluster" if nodes > 1 else "this machine")
    except ConfigError as error:
        value, remedy = value_and_remedy(error)
        rule = "all workers run at the same time"
        return [Finding(check="workers", level="fatal", where="all", value=value, rule=rule, remedy=remedy)]
    workers = f"{scale.fewest_workers} to {scale.most_workers}" if scale.is_elastic else scale.most_workers
    value = f"{workers} workers; {nodes} nodes with {cpus:g} CPUs and {gpus} GPUs"
    return [Finding(check="workers", where="all", value=value)]


def check_upload(folder: str, size: int, most: int) -> list[Finding]:
    """`ray job submit --working-dir` must take the working directory.

    Args:
        size: bytes of its files that .rayignore and .gitignore do not leave out.
        most: that Ray takes.
    """
    value = f"{size / MIB:.1f} MiB in {folder}"
    if size <= most / 5:
        return [Finding(check="upload", where="driver", value=value)]
    return [
        Finding(
            check="upload",
            level="fatal" if size > most else "warning",
            where="driver",
            value=value,
            rule=f"`ray job submit --working-dir` refuses {most / MIB:.0f} MiB, and each node fetches all of it",
            remedy="name data and outputs in .rayignore, and keep data where storage_path is",
        )
    ]
