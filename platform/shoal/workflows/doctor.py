"""A cluster looked at before anything is spent on it: every node by itself, storage, MLflow, and pairs of nodes.

What can be judged without looking is in `shoal.ops`; this is the order in which is looked.
"""

import contextlib
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from shoal.cluster import session
from shoal.cluster.node_actors import Call, Node, NodeActors
from shoal.cluster.ray_private import upload_size
from shoal.devices import find_in_cluster
from shoal.errors import ConfigError, value_and_remedy
from shoal.ops import cluster_checks, network_probe, node_checks, storage_probe
from shoal.ops.network_probe import Pair, PairSpeed
from shoal.ops.node import NodeReport, report_node
from shoal.ops.node_checks import Clock
from shoal.runs.config import RunConfig
from shoal.runs.job_result import write_plain_result
from shoal.runs.locations import artifact_location, resolve_tracking_uri, storage_uri
from shoal.runs.machine import check_cluster, cluster_address, local_gpus
from shoal.storage.host_ledger import HostLedger
from shoal.storage.lease import now_ms
from shoal.storage.records import LEVELS, DoctorResult, Finding
from shoal.tracking.store_probe import probe_store

DRIVER = "driver"
RAY_FOLDER = "/tmp/ray"
CLOCK_READS = 5

Say = Callable[[str], None]


class Nodes(Protocol):
    """Where functions are called: an actor on each node of a cluster, or this process alone."""

    nodes: dict[str, Node]

    def call(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]: ...

    def call_each(self, calls: Mapping[str, Call], timeout_s: float = ...) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Diagnosis:
    """What was found, worst first."""

    findings: list[Finding]
    nodes: list[str]
    seconds: float

    @property
    def fatal(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level == "fatal"]


class _Here:
    """This process, as the only node."""

    def __init__(self) -> None:
        self.nodes = {"this machine": Node("127.0.0.1", socket.gethostname(), local_gpus(), 0)}

    def call(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        return self.call_each(dict.fromkeys(self.nodes, (function, arguments)))

    def call_each(self, calls: Mapping[str, Call], timeout_s: float = 0.0) -> dict[str, Any]:
        return {name: function(*arguments) for name, (function, arguments) in calls.items()}


def diagnose(config: RunConfig, say: Say = lambda text: None) -> Diagnosis:
    """Check all that a training with this config needs of its cluster; nothing of it stays but an MLflow experiment.

    Args:
        say: called with what is done next.
    """
    began_s, findings = time.monotonic(), list[Finding]()
    with contextlib.ExitStack() as stack:
        nodes = _open_nodes(config, findings, stack, say)
        names = list(nodes.nodes)
        say(f"{len(names)} node{'s' * (len(names) != 1)}: {', '.join(names)}")
        findings += _check_nodes(nodes, storage_uri(config))
        say("storage: each node writes, and reads what the others wrote")
        findings += _check_storage(nodes, storage_uri(config))
        say("pairs of nodes: all-reduce, in two rounds")
        findings += network_probe.check_network(_measure_pairs(nodes))
    say("MLflow: a probe run")
    findings += _check_tracking(config)
    findings += _check_upload()
    findings += _check_failed_hosts(config, nodes, findings)
    findings.sort(key=lambda finding: LEVELS.index(finding.level), reverse=True)
    return Diagnosis(findings, names, time.monotonic() - began_s)


def _open_nodes(config: RunConfig, findings: list[Finding], stack: contextlib.ExitStack, say: Say) -> Nodes:
    """Return the nodes; what keeps a cluster from being used is a finding, and this process is looked at instead."""
    if config.scale.most_workers == 0:
        return _Here()
    try:
        if (address := cluster_address()) is not None:
            check_cluster(address)
        say(f"joining the cluster at {address}" if address else "starting Ray here, as a training would")
        stack.callback(session.disconnect)
        session.join()
    except ConfigError as error:
        value, remedy = value_and_remedy(error)
        rule = "the driver of a training joins it"
        findings.append(
            Finding(check="cluster", level="fatal", where=DRIVER, value=value, rule=rule, remedy=remedy)
        )
        return _Here()
    actors = stack.enter_context(NodeActors())
    has, resource = session.resources(), find_in_cluster(config.scale.accelerator).resource
    room = cluster_checks.check_room(
        config.scale, has.get("CPU", 0.0), int(has.get(resource or "", 0)), len(actors.nodes)
    )
    findings.extend(room)
    return actors


def _check_nodes(nodes: Nodes, storage: str) -> list[Finding]:
    """Check each node by itself, and against the driver."""
    folders = [RAY_FOLDER, *([] if "://" in storage else [storage])]
    found = nodes.call(report_node, folders)
    findings = [_unusable(name, error) for name, error in found.items() if isinstance(error, Exception)]
    reports: dict[str, NodeReport] = {
        name: report for name, report in found.items() if not isinstance(report, Exception)
    }
    if not reports:
        return findings
    with_driver = reports if isinstance(nodes, _Here) else {**reports, DRIVER: report_node(folders)}
    return [
        *findings,
        *node_checks.check_versions(with_driver),
        *node_checks.check_names(reports),
        *node_checks.check_tokens(with_driver),
        *node_checks.check_clocks(_read_clocks(nodes)),
        *node_checks.check_devices(reports, {name: node.gpus for name, node in nodes.nodes.items()}),
        *node_checks.check_shared_memory(
            reports, {name: node.object_store_bytes for name, node in nodes.nodes.items()}
        ),
        *node_checks.check_disks(reports),
        *node_checks.check_open_files(reports),
        *node_checks.check_left_behind(with_driver),
    ]


def _unusable(node: str, error: Exception) -> Finding:
    return Finding(
        check="nodes",
        level="fatal",
        where=node,
        value=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        rule="a process with Shoal must start on each node",
        remedy="install Shoal there, with the versions of constraints.txt, and look into Ray's logs in /tmp/ray",
    )


def _read_clocks(nodes: Nodes) -> dict[str, Clock]:
    """Compare the clocks with this process's, by the answer that came back soonest."""
    best: dict[str, Clock] = {}
    for _ in range(CLOCK_READS):
        for name in nodes.nodes:
            asked_s = time.time()
            there_s = nodes.call_each({name: (time.time, ())})[name]
            error_s = (time.time() - asked_s) / 2
            if isinstance(there_s, float) and (name not in best or error_s < best[name].error_s):
                best[name] = Clock(there_s - asked_s - error_s, error_s)
    return best


def _check_storage(nodes: Nodes, storage: str) -> list[Finding]:
    probe = f"{storage_probe.PROBES}-{uuid.uuid4().hex[:8]}"
    calls = {name: (storage_probe.write_probe, (storage, probe, name)) for name in nodes.nodes}
    written = _answered(nodes.call_each(calls))
    seen = _answered(nodes.call(storage_probe.read_probes, storage, probe, list(written)))
    removals = {
        name: (storage_probe.remove_probes, (storage, probe, one.made)) for name, one in written.items()
    }
    nodes.call_each(removals)
    return storage_probe.check_storage(
        storage, written, {name: seen[name] for name in written if name in seen}
    )


def _answered(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer for name, answer in found.items() if not isinstance(answer, Exception)}


def _measure_pairs(nodes: Nodes) -> dict[Pair, PairSpeed]:
    names = list(nodes.nodes)
    if len(names) < 2:
        return {}
    speeds = _measure(nodes, network_probe.first_round(names))
    return {**speeds, **_measure(nodes, network_probe.second_round(names, speeds))}


def _measure(nodes: Nodes, pairs: Sequence[Pair]) -> dict[Pair, PairSpeed]:
    """Measure pairs that share no node, all at once."""
    ports = nodes.call_each({first: (network_probe.free_port, ()) for first, _ in pairs})
    calls: dict[str, Call] = {}
    for pair in pairs:
        if isinstance(ports[pair[0]], int):
            for rank, name in enumerate(pair):
                calls[name] = (
                    network_probe.measure_pair,
                    (rank, nodes.nodes[pair[0]].address, ports[pair[0]]),
                )
    found = nodes.call_each(calls, timeout_s=4 * network_probe.PATIENCE_S)
    return {pair: _worse([found.get(name, ports[pair[0]]) for name in pair]) for pair in pairs}


def _worse(sides: Sequence[PairSpeed | Exception]) -> PairSpeed:
    """Return what a pair reached, of what its two sides say."""
    speeds = [side if isinstance(side, PairSpeed) else PairSpeed(error=str(side)) for side in sides]
    failed = [speed for speed in speeds if speed.error is not None]
    return failed[0] if failed else min(speeds, key=lambda speed: speed.bytes_per_second)


def _check_tracking(config: RunConfig) -> list[Finding]:
    uri = resolve_tracking_uri(config.track)
    probe = probe_store(uri, config.experiment_name, artifact_location(uri))
    return cluster_checks.check_store(probe, version("mlflow"))


def _check_upload() -> list[Finding]:
    found = upload_size(Path.cwd())
    return cluster_checks.check_upload(str(Path.cwd()), *found) if found else []


def _check_failed_hosts(config: RunConfig, nodes: Nodes, findings: Sequence[Finding]) -> list[Finding]:
    """Name the hosts that failed too many runs, and let those back whose checks pass."""
    try:
        ledger = HostLedger(storage_uri(config))
        hosts = {name: node.host for name, node in nodes.nodes.items()}
        found, cleared = cluster_checks.check_failed_hosts(ledger.recent(now_ms()), hosts, findings)
        for host in cleared:
            ledger.forgive(host)
    except OSError:
        return []  # the check of storage says so
    return found


def write_diagnosis(diagnosis: Diagnosis, config: RunConfig) -> DoctorResult:
    """Write `result.json` below storage_path, or where that cannot be written to a temporary folder."""
    reason = "; ".join(f"{finding.check}: {finding.value}" for finding in diagnosis.fatal)
    return write_plain_result(
        storage_uri(config),
        DoctorResult,
        "doctor",
        status="FAILED" if reason else "FINISHED",
        reason=reason or None,
        tracking_uri=resolve_tracking_uri(config.track),
        findings=diagnosis.findings,
        nodes=diagnosis.nodes,
        seconds=round(diagnosis.seconds, 3),
    )
