"""Hosts on one machine, as namespaces: each has a network address, a hostname, processes, /dev/shm and a home.

Needs root and the permission to make namespaces; `Hosts.reason` says why not. Nothing has a way out of the machine, and
nothing is made in the machine's own network. All hosts see one folder at /mnt, as if a file server exported it.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import psutil
import pytest

from running import ROOT, eventually

PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
TOOLS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
SSH_TOOLS = {"sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
SHARED = "/mnt"
CLONE_NEWNET = 0x40000000
# Pid 1 of a host: reaps what is orphaned, and waits. All processes of a host end with it.
INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"
SETUP = """
hostname {name}
mount -t tmpfs -o size=4g shm /dev/shm
mount -t tmpfs run /run && mkdir -m 755 /run/sshd
mkdir -p /tmp/ray && mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder}/passwd /etc/passwd
mount --bind {shared} /mnt
exec env -i PATH={path} {python} -c '{init}'
"""
SSHD = """Port 22
HostKey {home}/.ssh/host
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv PATH={path}
"""


def missing(tools: dict[str, str]) -> str | None:
    """What has to be installed to have these tools, in words; None: nothing."""
    packages = {package: tool for tool, package in tools.items() if shutil.which(tool, path=PATH) is None}
    if not packages:
        return None
    return f"{', '.join(packages.values())} not found: apt-get install {' '.join(packages)}"


class Hosts:
    """A bridge and the hosts on it; leaving the context ends all their processes and removes all their files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._prefix = folder, f"sh{uuid.uuid4().hex[:5]}"
        self._pids: dict[str, int] = {}
        self._parents: dict[str, subprocess.Popen[bytes]] = {}
        self._lines: dict[str, str] = {}
        self._networks = set[int]()
        self.addresses: dict[str, str] = {}
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)

    @staticmethod
    @cache
    def reason() -> str | None:
        """Why there are no such hosts here; None: there are."""
        if absent := missing(TOOLS):
            return absent
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
        return None if done.returncode == 0 else f"unshare --net is not permitted: {done.stderr.strip()}"

    def __enter__(self) -> "Hosts":
        self._at_sigterm = signal.signal(signal.SIGTERM, _leave)
        try:
            _run("ip", "netns", "add", self._switch)
            _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", self._switch, "link", "set", "br0", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._parents):
            self.off(name)
        for name in [*self.addresses, "switch"]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", self._space(name))
        shutil.rmtree(self._folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, self._at_sigterm)

    def remains(self) -> list[str]:
        """What is left on the machine when all is over: processes, namespaces, links, mounts, the folder."""
        found = [f"process {pid}" for pid in psutil.pids() if _network_of(pid) in self._networks]
        for command in (["ip", "netns"], ["ip", "link"], ["cat", "/proc/self/mounts"]):
            listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
            found += [line for line in listed if self._prefix in line or str(self._folder) in line]
        return [*found, str(self._folder)] if self._folder.exists() else found

    @property
    def _switch(self) -> str:
        return self._space("switch")

    def _space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _link(self, name: str) -> str:
        return f"{self._prefix}{name}"[-15:]

    def home(self, name: str) -> Path:
        """Where a host's home is; it outlives a power-off."""
        return self._folder / name / "home"

    def on(self, name: str, address: str | None = None, hosts: str | None = None) -> None:
        """Start a host, the first time with its address.

        Args:
            hosts: its line of /etc/hosts for itself; by default its address.
        """
        if address is not None:
            self.addresses[name] = address
            self._lines[name] = hosts if hosts is not None else f"{address} {name}"
            self._write_files(name)
        self._connect(name)
        setup = SETUP.format(
            name=name,
            folder=self._folder / name,
            shared=self.shared,
            path=PATH,
            python=sys.executable,
            init=INIT,
        )
        enter = ["ip", "netns", "exec", self._space(name)]
        enter += ["unshare", "-m", "-u", "-p", "-f", "--kill-child", "--mount-proc"]
        parent = subprocess.Popen(
            [*enter, "bash", "-ec", setup],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._parents[name] = parent
        eventually(lambda: self._is_up(name, parent), 20, f"host {name} starts")

    def _write_files(self, name: str) -> None:
        folder, home = self._folder / name, self.home(name)
        for inner in (home / "tmp", folder / "ray"):
            inner.mkdir(parents=True)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{self._lines[name]}\n")
        users = Path("/etc/passwd").read_text().splitlines()
        root = f"root:x:0:0:root:{home}:/bin/bash"
        others = [line for line in users if not line.startswith("root:")]
        (folder / "passwd").write_text("\n".join([root, *others, ""]))

    def _connect(self, name: str) -> None:
        """Make a host's network; that of its earlier life goes away by itself only after a while."""
        space, link = self._space(name), self._link(name)
        for remains in (("ip", "-n", self._switch, "link", "del", link), ("ip", "netns", "del", space)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(*remains)
        _run("ip", "netns", "add", space)
        self._networks.add(os.stat(f"/run/netns/{space}").st_ino)
        pair = ["link", "add", link, "netns", self._switch, "type", "veth", "peer", "name", "eth0"]
        _run("ip", *pair, "netns", space)
        _run("ip", "-n", self._switch, "link", "set", link, "master", "br0", "up")
        _run("ip", "-n", space, "addr", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")

    def _is_up(self, name: str, parent: "subprocess.Popen[bytes]") -> bool:
        assert parent.poll() is None, f"host {name} did not start"
        for child in psutil.Process(parent.pid).children():
            if child.cmdline()[:2] == [sys.executable, "-c"]:
                self._pids[name] = child.pid
        return name in self._pids

    def off(self, name: str) -> None:
        """Power a host off, or one that has not started: all its processes end at once."""
        parent = self._parents.pop(name)
        if name in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pids.pop(name), signal.SIGKILL)  # the parent waits for all that run there
        else:
            parent.kill()
        parent.wait(timeout=30)

    def is_on(self, name: str) -> bool:
        return name in self._pids

    def set_link(self, name: str, state: str) -> None:
        """Set the switch's side of a host's cable "up" or "down", which the host does not notice."""
        _run("ip", "-n", self._switch, "link", "set", self._link(name), state)

    def processes(self, name: str, word: str) -> list[psutil.Process]:
        """The living processes of a host, not started from here, whose command has a word in it."""
        found = []
        for one in psutil.Process(self._pids[name]).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def serve_ssh(self, name: str, public_key: str) -> None:
        """Start a host's sshd, which lets root in by a key."""
        keys = self.home(name) / ".ssh"
        keys.mkdir(mode=0o700, exist_ok=True)
        (keys / "authorized_keys").write_text(public_key)
        if not (keys / "host").exists():
            self.run(name, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "host"))
        (keys / "sshd_config").write_text(SSHD.format(home=self.home(name), path=PATH))
        self.run(name, "/usr/sbin/sshd", "-f", str(keys / "sshd_config"), "-E", str(keys / "sshd.log"))

    @contextlib.contextmanager
    def network(self, name: str) -> Iterator[None]:
        """Connect from a host's network, in this thread and those that it starts."""
        with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{self._space(name)}") as there:
            _set_network(there.fileno())
            try:
                yield
            finally:
                _set_network(own.fileno())

    def run(
        self, name: str, *command: str, check: bool = True, folder: Path | None = None, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on a host, to its end."""
        done = subprocess.run(
            self._entered(name, command, folder),
            env=self._env(name, env),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 or not check, (command, done.stdout + done.stderr)
        return done

    def start(
        self, name: str, *command: str, folder: Path | None = None, log: Path | None = None, **env: str
    ) -> "subprocess.Popen[str]":
        """Start a command on a host.

        Args:
            log: where its output goes; a pipe each by default.
        """
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(log.open("w")) if log else None
            return subprocess.Popen(
                self._entered(name, command, folder),
                env=self._env(name, env),
                stdout=file or subprocess.PIPE,
                stderr=file or subprocess.PIPE,
                text=True,
            )

    def start_ray(self, name: str, head: str, cpus: int = 1, **env: str) -> None:
        """Start Ray's processes of a host: of the head if it is the head."""
        place = ["--head", "--port=6379", "--include-dashboard=false"]
        if name != head:
            place = [f"--address={self.addresses[head]}:6379"]
        options = [*place, f"--num-cpus={cpus}", "--disable-usage-stats", "--object-store-memory=100000000"]
        self.run(name, sys.executable, "-m", "ray.scripts.scripts", "start", *options, **env)

    def _entered(self, name: str, command: Sequence[str], folder: Path | None) -> list[str]:
        place = f"--wd={folder or self.home(name)}"
        return ["nsenter", "-t", str(self._pids[name]), "-m", "-u", "-n", "-p", place, *command]

    def _env(self, name: str, more: dict[str, str]) -> dict[str, str]:
        home = self.home(name)
        own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PATH": PATH, "LANG": "C.UTF-8"}
        own["RAY_TMPDIR"] = "/tmp"  # its sockets lie there, whose paths may have 107 characters
        own |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT / "platform")}
        own |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if name == "PYTHONDONTWRITEBYTECODE"}
        return {**own, **kept, **more}


def _leave(*_: object) -> None:
    """End the tests as Ctrl-C does: what fixtures opened is closed."""
    pytest.exit("ended by SIGTERM", returncode=143)


def _network_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def _set_network(file: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
