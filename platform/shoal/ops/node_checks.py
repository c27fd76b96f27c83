"""What the reports of machines lead to: findings. Pure functions, without a look at this machine."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from shoal.ops.node import NodeReport
from shoal.storage.records import Finding

MIB, GIB = 1 << 20, 1 << 30
LEAST_SHM = 128 * MIB  # below, gradients do not fit that workers of a host all-reduce there
SHM_SHARE = 0.3  # of a node's memory, which Ray's object store takes
FULL_SHARE = 0.95  # of a disk, at which Ray stores nothing more
FEW_FREE = 10 * GIB
FEW_FILES, ENOUGH_FILES = 1024, 8192  # Ray warns below the second
CLOCK_S, CLOCK_LIMIT_S = 2.0, 300.0  # S3 refuses a request at 900 s, tokens at less

Reports = Mapping[str, NodeReport]  # by the name of the node


@dataclass(frozen=True)
class Clock:
    """How far the clock of a host is ahead of the driver's, and by how much this may be wrong, in seconds."""

    ahead_s: float
    error_s: float


def check_versions(reports: Reports) -> list[Finding]:
    """All nodes and the driver must have the same versions: what one pickles, the other loads."""
    findings = []
    for package in next(iter(reports.values())).versions:
        found = {name: report.versions.get(package, "unknown") for name, report in reports.items()}
        usual = Counter(found.values()).most_common(1)[0][0]
        others = {name: value for name, value in found.items() if value != usual}
        findings += [
            Finding(
                check="versions",
                level="fatal",
                where=name,
                value=f"{package} {value}, elsewhere {usual}",
                rule="all nodes and the driver need the same",
                remedy=f"install {package} {usual} there (constraints.txt has the versions)",
            )
            for name, value in others.items()
        ]
    one = next(iter(reports.values())).versions
    return findings or [
        Finding(check="versions", where="all", value=", ".join(f"{k} {v}" for k, v in one.items()))
    ]


def check_names(reports: Reports) -> list[Finding]:
    """A worker must listen at an address that the others reach."""
    return _each(reports, "names", lambda report: _name_problem(report, is_alone=len(reports) == 1))


def _name_problem(report: NodeReport, is_alone: bool) -> Finding | str:
    address = report.gloo_address
    if address is None:
        return Finding(
            check="names",
            level="fatal",
            value=f"GLOO_SOCKET_IFNAME={report.interface}",
            rule="the host has no such interface with an address",
            remedy="name one that `ip address` shows, before `ray start`",
        )
    source = f"GLOO_SOCKET_IFNAME={report.interface}" if report.interface else f"hostname '{report.host}'"
    if is_alone or not _is_loopback(address):
        return f"{source}: {address}"
    return Finding(
        check="names",
        level="fatal",
        value=f"workers listen at {address} ({source})",
        rule="the other hosts cannot reach a loopback address",
        remedy=f"let /etc/hosts or DNS name the host's own address for {report.host}, or set GLOO_SOCKET_IFNAME before "
        "`ray start`",
    )


def _is_loopback(address: str) -> bool:
    return ip_address(address.partition("%")[0]).is_loopback


def check_tokens(reports: Reports) -> list[Finding]:
    """Ray's processes must agree on whether a token is demanded."""
    modes = {name: report.auth_mode for name, report in reports.items()}
    usual = Counter(modes.values()).most_common(1)[0][0]
    rule = "where the modes differ, nodes that join end after 22 s"
    findings = [
        Finding(
            check="tokens",
            level="fatal",
            where=name,
            value=f"RAY_AUTH_MODE={mode or 'unset'}, elsewhere {usual or 'unset'}",
            rule=rule,
            remedy=f"set RAY_AUTH_MODE={usual or mode} in every shell that starts or uses Ray",
        )
        for name, mode in modes.items()
        if mode != usual
    ]
    if findings:
        return findings
    if usual is None and any(report.has_token for report in reports.values()):
        holders = [name for name, report in reports.items() if report.has_token]
        return [
            Finding(
                check="tokens",
                level="warning",
                where=", ".join(holders),
                value="RAY_AUTH_MODE is unset and ~/.ray/auth_token is there",
                rule="the next `ray start --head` there demands a token that joining nodes do not send",
                remedy="set RAY_AUTH_MODE=token everywhere, or delete the file",
            )
        ]
    return [Finding(check="tokens", where="all", value=f"RAY_AUTH_MODE={usual or 'unset'}")]


def check_clocks(clocks: Mapping[str, Clock]) -> list[Finding]:
    """Clocks must agree: object stores and tokens refuse what is signed at another time."""
    return [_clock_finding(name, clock) for name, clock in clocks.items()]


def _clock_finding(name: str, clock: Clock) -> Finding:
    off_s = max(0.0, abs(clock.ahead_s) - clock.error_s)
    value = f"{clock.ahead_s:+.3f} s against the driver's (within {clock.error_s:.3f} s)"
    if off_s <= CLOCK_S:
        return Finding(check="clocks", where=name, value=value)
    return Finding(
        check="clocks",
        level="fatal" if off_s > CLOCK_LIMIT_S else "warning",
        where=name,
        value=value,
        rule=f"more than {CLOCK_S:g} s mixes up logs, and at {CLOCK_LIMIT_S:g} s signed requests are refused",
        remedy="let chrony or systemd-timesyncd set the clock there",
    )


def check_shared_memory(reports: Reports, object_stores: Mapping[str, int]) -> list[Finding]:
    """/dev/shm must hold Ray's object store.

    Args:
        object_stores: bytes of each node's, as Ray says; 0 without a cluster.
    """
    return _judged(
        "shared memory",
        {name: _shm_problem(report, object_stores.get(name, 0)) for name, report in reports.items()},
    )


def _shm_problem(report: NodeReport, object_store: int) -> Finding | str:
    size = report.shm_bytes
    if size is None:
        return "no /dev/shm: files instead"
    wanted = max(object_store or int(SHM_SHARE * report.memory_bytes), LEAST_SHM)
    if size >= 0.9 * wanted:
        return f"/dev/shm {_gib(size)}"
    return Finding(
        check="shared memory",
        level="fatal" if size < LEAST_SHM else "warning",
        value=f"/dev/shm {_gib(size)} of {_gib(report.memory_bytes)} memory",
        rule=f"Ray's object store takes {_gib(wanted)}, and goes to disk where that does not fit",
        remedy="give the container --shm-size, or mount /dev/shm with a larger size",
    )


def check_disks(reports: Reports) -> list[Finding]:
    """Ray stops to store at 95% of its disk; a checkpoint needs room too."""
    return _each(reports, "disk", _disk_problem)


def _disk_problem(report: NodeReport) -> Finding | str:
    for folder, disk in report.disks.items():
        used = 1 - disk.free / max(1, disk.total)
        if used >= FULL_SHARE or disk.free < FEW_FREE:
            return Finding(
                check="disk",
                level="fatal" if used >= FULL_SHARE else "warning",
                value=f"{folder}: {_gib(disk.free)} free of {_gib(disk.total)}",
                rule=f"Ray stores nothing on a disk that is {FULL_SHARE:.0%} full, and checkpoints need room",
                remedy="free some space there, or choose another folder (storage_path, RAY_TMPDIR)",
            )
    return ", ".join(f"{folder}: {_gib(disk.free)} free" for folder, disk in report.disks.items())


def check_open_files(reports: Reports) -> list[Finding]:
    """Each actor and object transfer takes file descriptors."""
    return _each(reports, "open files", _files_problem)


def _files_problem(report: NodeReport) -> Finding | str:
    if report.open_files >= ENOUGH_FILES:
        return f"{report.open_files}"
    return Finding(
        check="open files",
        level="fatal" if report.open_files < FEW_FILES else "warning",
        value=f"{report.open_files}",
        rule=f"Ray needs {ENOUGH_FILES} on a busy node, and dies without them",
        remedy="`ulimit -Sn $(ulimit -Hn)` before `ray start`, or LimitNOFILE=65536 in its systemd unit",
    )


def check_devices(reports: Reports, gpus_of_ray: Mapping[str, int]) -> list[Finding]:
    """Ray and torch must see the GPUs that are there.

    Args:
        gpus_of_ray: how many Ray has of each node; empty without a cluster.
    """
    return _judged(
        "devices",
        {
            name: _device_problem(report, gpus_of_ray.get(name, report.gpus))
            for name, report in reports.items()
        },
    )


def _device_problem(report: NodeReport, of_ray: int) -> Finding | str:
    if report.gpus and not report.has_cuda:
        return Finding(
            check="devices",
            level="fatal",
            value=f"{report.gpus} GPUs and torch {report.versions.get('torch')} without CUDA",
            rule="a worker there trains on the CPU",
            remedy="install the build of torch that has CUDA",
        )
    if of_ray != report.gpus:
        return Finding(
            check="devices",
            level="fatal" if of_ray > report.gpus else "warning",
            value=f"Ray has {of_ray} GPUs and the driver shows {report.gpus}",
            rule="a worker waits for a GPU that is not there, or one stays idle",
            remedy="look at nvidia-smi there, then `ray start` without or with the right --num-gpus",
        )
    return f"{report.gpus} GPUs" if report.gpus else "CPU"


def check_left_behind(reports: Reports) -> list[Finding]:
    """A file of Ray that names a cluster which is gone stops every `ray.init()` of others."""
    return _each(reports, "cluster file", _left_behind_problem)


def _left_behind_problem(report: NodeReport) -> Finding | str:
    if report.left_behind is None:
        return "none left behind"
    return Finding(
        check="cluster file",
        level="warning",
        value=f"/tmp/ray/ray_current_cluster names {report.left_behind}, where nothing answers",
        rule="each `ray.init()` without an address fails there (Shoal's own do not)",
        remedy="rm /tmp/ray/ray_current_cluster",
    )


def _each(reports: Reports, check: str, judge: Callable[[NodeReport], Finding | str]) -> list[Finding]:
    return _judged(check, {name: judge(report) for name, report in reports.items()})


def _judged(check: str, found: Mapping[str, Finding | str]) -> list[Finding]:
    """Return findings with the node that each is of; a text is what is as it should be."""
    return [
        Finding(check=check, where=name, value=one)
        if isinstance(one, str)
        else one.model_copy(update={"where": name})
        for name, one in found.items()
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"
