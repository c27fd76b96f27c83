"""What is there once for a cluster: the tracking server, room for the workers, the upload of a job."""

from collections.abc import Mapping, Sequence

from shoal.errors import ConfigError, value_and_remedy
from shoal.ops.node_checks import MIB
from shoal.runs.config import ScaleConfig
from shoal.runs.machine import check_resources
from shoal.storage.host_ledger import failing_hosts
from shoal.storage.records import Finding, HostFailure
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


def check_failed_hosts(
    recent: Mapping[str, Sequence[HostFailure]], nodes: Mapping[str, str], findings: Sequence[Finding]
) -> tuple[list[Finding], list[str]]:
    """A host that failed too many runs is left out by others until its checks pass.

    Args:
        recent: failures by host, the newest first.
        nodes: hosts by the names of nodes.
        findings: of the other checks.

    Returns:
        findings, and the hosts that are let back.
    """
    unsound = {finding.where for finding in findings if finding.level == "fatal"}
    found, cleared = [], []
    for host in failing_hosts(recent):
        here = [name for name, its in nodes.items() if its == host]
        passes = bool(here) and not unsound.intersection((*here, "all"))
        if passes:
            cleared.append(host)
            remedy = "nothing: it passed the checks, and is let back"
        elif here:
            remedy = "repair what is fatal there, and call shoal doctor again"
        else:
            remedy = "nothing while it is not in the cluster; shoal doctor lets it back once its checks pass"
        last = recent[host][0]
        found.append(
            Finding(
                check="failed hosts",
                level="ok" if passes else "warning",
                where=host,
                value=f"failed {len(recent[host])} runs in a week, the last of them {last.run} ({last.kind})",
                rule="such a host is left out where the others have room",
                remedy=remedy,
            )
        )
    return found or [Finding(check="failed hosts", where="all", value="none")], cleared


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
