"""What one machine says of itself: versions, names, limits, room. It judges nothing (`shoal.ops.node_checks`)."""

import hashlib
import os
import platform
import resource
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import shoal
from shoal.runs.machine import left_behind
from shoal.version import VERSION

PACKAGES = ("ray", "torch", "mlflow")
LOOPBACK = "127.0.0.1"
GPUS = Path("/proc/driver/nvidia/gpus")  # whatever CUDA_VISIBLE_DEVICES says
INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Disk:
    """The file system that a folder is on."""

    free: int
    total: int


@dataclass(frozen=True)
class NodeReport:
    """One process of a machine, and what it sees there.

    Attributes:
        host: its hostname.
        versions: by package; Shoal's is followed by a digest of its sources.
        gloo_address: what workers on it listen at; None where GLOO_SOCKET_IFNAME names an interface it does not have.
        interface: the value of GLOO_SOCKET_IFNAME.
        auth_mode: the value of RAY_AUTH_MODE.
        has_token: whether `~/.ray/auth_token` is there, which turns tokens on where no mode is set.
        shm_bytes: of /dev/shm; None where there is none.
        memory_bytes: of the machine.
        disks: by folder.
        open_files: that a process may have.
        gpus: NVIDIA cards in the machine.
        has_cuda: whether torch was built for them.
        left_behind: the address in Ray's file of the current cluster, if nothing answers there.
    """

    host: str
    versions: dict[str, str]
    gloo_address: str | None
    interface: str | None
    auth_mode: str | None
    has_token: bool
    shm_bytes: int | None
    memory_bytes: int
    disks: dict[str, Disk]
    open_files: int
    gpus: int
    has_cuda: bool
    left_behind: str | None


def report_node(folders: Sequence[str]) -> NodeReport:
    """Look at the machine that this process runs on.

    Args:
        folders: whose disks matter; those that are not there count as the folder above them.
    """
    interface = os.environ.get(INTERFACE)
    return NodeReport(
        host=socket.gethostname(),
        versions=_versions(),
        gloo_address=_address_of(interface) if interface else _own_address(),
        interface=interface,
        auth_mode=os.environ.get("RAY_AUTH_MODE"),
        has_token=(Path.home() / ".ray" / "auth_token").is_file(),
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        memory_bytes=psutil.virtual_memory().total,
        disks={folder: _disk(Path(folder)) for folder in folders},
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        gpus=len(list(GPUS.iterdir())) if GPUS.is_dir() else 0,
        has_cuda=_has_cuda(),
        left_behind=left_behind(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "shoal": f"{VERSION} ({_source_digest()})"}


def _source_digest() -> str:
    """Return a short digest of Shoal's own sources: two clones of one version may differ."""
    root, digest = Path(shoal.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def _own_address() -> str:
    """Return where gloo listens: the first address of the hostname that can be listened at, else loopback."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return LOOPBACK
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as listening:
                listening.bind(address)
                return str(address[0])
        except OSError:
            continue
    return LOOPBACK


def _address_of(interfaces: str) -> str | None:
    """Return the address of the first of the interfaces that GLOO_SOCKET_IFNAME names."""
    known = psutil.net_if_addrs().get(interfaces.split(",")[0], [])
    return next((one.address for one in known if one.family in (socket.AF_INET, socket.AF_INET6)), None)


def _disk(folder: Path) -> Disk:
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return Disk(usage.free, usage.total)


def _has_cuda() -> bool:
    import torch

    return torch.version.cuda is not None
