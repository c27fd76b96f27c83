"""Hosts on one machine, as namespaces: each has a network address, a hostname, processes, /dev/shm and a home.

Needs root and the permission to make namespaces; `Hosts.reason` says why not. Nothing has a way out of the machine, and
nothing is made in the machine's own network.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import psutil

from running import ROOT, eventually

PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
TOOLS = ("ip", "unshare", "nsenter")
# Pid 1 of a host: reaps what is orphaned, and waits. All processes of a host end with it.
INIT = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True: signal.pause()"
SETUP = """
hostname {name}
mount -t tmpfs -o size=2g shm /dev/shm
mkdir -p /tmp/ray && mount --bind {folder}/ray /tmp/ray
mount --bind {folder}/hosts /etc/hosts
exec env -i PATH={path} {python} -c '{init}'
"""


class Hosts:
    """A bridge and the hosts on it; leaving the context ends all their processes."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._prefix = folder, f"sh{uuid.uuid4().hex[:5]}"
        self._pids: dict[str, int] = {}
        self._parents: list[subprocess.Popen[bytes]] = []
        self.addresses: dict[str, str] = {}

    @staticmethod
    @cache
    def reason() -> str | None:
        """Why there are no such hosts here; None: there are."""
        missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
        if missing:
            return f"{', '.join(missing)} is not installed"
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
        return None if done.returncode == 0 else f"unshare --net is not permitted: {done.stderr.strip()}"

    def __enter__(self) -> "Hosts":
        _run("ip", "netns", "add", self._switch)
        _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._pids):
            self.off(name)
        for name in [*self.addresses, "switch"]:
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "del", f"{self._prefix}-{name}")

    @property
    def _switch(self) -> str:
        return f"{self._prefix}-switch"

    def on(self, name: str, address: str, hosts: str | None = None) -> None:
        """Start a host.

        Args:
            hosts: its line of /etc/hosts for itself; by default its address.
        """
        space, link = f"{self._prefix}-{name}", f"{self._prefix}{name}"[-15:]
        folder = self._folder / name
        for inner in ("home", "ray"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        own = hosts if hosts is not None else f"{address} {name}"
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{own}\n")
        self.addresses[name] = address
        _run("ip", "netns", "add", space)
        _run(
            "ip",
            "link",
            "add",
            link,
            "netns",
            self._switch,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            space,
        )
        _run("ip", "-n", self._switch, "link", "set", link, "master", "br0", "up")
        _run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        setup = SETUP.format(name=name, folder=folder, path=PATH, python=sys.executable, init=INIT)
        command = [
            "ip",
            "netns",
            "exec",
            space,
            "unshare",
            "-m",
            "-u",
            "-p",
            "-f",
            "--kill-child",
            "--mount-proc",
        ]
        parent = subprocess.Popen(
            [*command, "bash", "-ec", setup],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._parents.append(parent)
        eventually(lambda: self._is_up(name, parent), 20, f"host {name} starts")

    def _is_up(self, name: str, parent: "subprocess.Popen[bytes]") -> bool:
        assert parent.poll() is None, f"host {name} did not start"
        for child in psutil.Process(parent.pid).children():
            if child.cmdline()[:2] == [sys.executable, "-c"]:
                self._pids[name] = child.pid
        return name in self._pids

    def off(self, name: str) -> None:
        """Power a host off: all its processes end at once."""
        psutil.Process(self._pids.pop(name)).kill()
        for parent in self._parents:
            with contextlib.suppress(subprocess.TimeoutExpired):
                parent.wait(timeout=0.5)

    def run(
        self, name: str, *command: str, check: bool = True, **env: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on a host, to its end."""
        return subprocess.run(
            self._entered(name, command),
            env=self._env(name, env),
            capture_output=True,
            text=True,
            check=check,
        )

    def start(self, name: str, *command: str, **env: str) -> "subprocess.Popen[str]":
        """Start a command on a host."""
        return subprocess.Popen(
            self._entered(name, command),
            env=self._env(name, env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_ray(self, name: str, head: str, cpus: int = 1, **env: str) -> None:
        """Start Ray's processes of a host: of the head if it is the head."""
        place = ["--head", "--port=6379", "--include-dashboard=false"]
        if name != head:
            place = [f"--address={self.addresses[head]}:6379"]
        options = [*place, f"--num-cpus={cpus}", "--disable-usage-stats", "--object-store-memory=100000000"]
        done = self.run(
            name, sys.executable, "-m", "ray.scripts.scripts", "start", *options, check=False, **env
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _entered(self, name: str, command: Sequence[str]) -> list[str]:
        place = f"--wd={self._folder / name / 'home'}"
        return ["nsenter", "-t", str(self._pids[name]), "-m", "-u", "-n", "-p", place, *command]

    def _env(self, name: str, more: dict[str, str]) -> dict[str, str]:
        own = {
            "HOME": str(self._folder / name / "home"),
            "PATH": PATH,
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
        }
        own |= {"PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
        kept = {name: value for name, value in os.environ.items() if name == "PYTHONDONTWRITEBYTECODE"}
        return {**own, **kept, **more}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
