"""A cluster of three hosts, with MLflow on PostgreSQL on a fourth, for rounds; and what may happen to hosts.

A job runs on the head, as one that is submitted does. Each host has one CPU.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

import tracking_host
from disturbances import Disturbance, TooLateError
from hosts import SHARED, Hosts
from running import ROOT
from sites import MARK, MODULE, Storage, kill, marked
from tracking_host import TrackingHost

HEAD, WORKERS, MLFLOW = "head", ("worker-1", "worker-2"), "mlflow"
TRAINERS = ("RayTrainWorker", "TrialActor")
OURS = ("/jobs/", "/shoal/", *TRAINERS)  # in the command lines of what a job starts
CUT_S = 90.0
DRAIN = ("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot")
RAY = (sys.executable, "-m", "ray.scripts.scripts")
# The living nodes by address, and what jobs hold: placement groups and CPUs.
STATE = """
import json, ray
from ray.util import placement_group_table
ray.init("auto", logging_level="error", log_to_driver=False)
nodes = {node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
groups = [group for group, one in placement_group_table().items() if one["state"] != "REMOVED"]
busy = ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)
print(json.dumps({"nodes": nodes, "groups": groups, "busy": busy}))
"""


class HostSite:
    """Hosts in a folder, which are on while the context is open."""

    tracking_uri: str

    def __init__(self, folder: Path) -> None:
        self.hosts = Hosts(folder)
        self._code = self.hosts.shared / "code"
        self._cut = set[str]()

    @staticmethod
    def reason() -> str | None:
        """Why there are no such hosts here."""
        return Hosts.reason() or tracking_host.reason()

    def __enter__(self) -> "HostSite":
        self.hosts.__enter__()
        try:
            for number, name in enumerate((HEAD, *WORKERS, MLFLOW), start=1):
                self.hosts.on(name, f"10.77.0.{number}")
            self._code.mkdir()
            (self._code / "slow.py").write_text(MODULE)
            self.tracking = TrackingHost(self.hosts, MLFLOW)
            self.tracking.start()
            self.tracking_uri = self.tracking.uri
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.hosts.__exit__()

    @property
    def _env(self) -> dict[str, str]:
        return {
            **self.tracking.env,
            "PYTHONPATH": f"{SHARED}/code:{ROOT}/platform",
            "RAY_worker_niceness": "0",
        }

    def make_ready(self) -> None:
        """All hosts are on and connected, and their nodes are the cluster's."""
        for name in list(self._cut):
            self.reconnect(name)
        names = (HEAD, *WORKERS)
        for name in names:
            if not self.hosts.is_on(name):
                self.hosts.on(name)
        until = time.monotonic() + 120
        while {self.hosts.addresses[name] for name in names} - self._state()["nodes"].keys():
            assert time.monotonic() < until, "the nodes do not join"
            for name in names:
                if not self.hosts.processes(name, "/raylet/raylet"):
                    self.hosts.start_ray(name, HEAD, **self._env)
            time.sleep(1)

    def _state(self) -> dict[str, Any]:
        if not self.hosts.processes(HEAD, "gcs_server"):
            return {"nodes": {}}
        done = self.hosts.run(HEAD, sys.executable, "-c", STATE, RAY_ADDRESS="auto")
        [state] = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray may say more
        return dict(json.loads(state))

    @contextlib.contextmanager
    def storage(self, kind: str, name: str) -> Iterator[Storage]:
        yield Storage(f"{SHARED}/runs", str(self.hosts.shared / "runs"))

    def start(self, name: str, job: str, *settings: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *settings]
        address = f"{self.hosts.addresses[HEAD]}:6379"
        return self.hosts.start(HEAD, *command, **self._env, RAY_ADDRESS=address, **{MARK: name})

    def target(self, process: "subprocess.Popen[str]", draw: random.Random, storage: Storage) -> "HostTarget":
        return HostTarget(self, process, draw)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Enter the network of the head, with the tracking server's password."""
        with mock.patch.dict(os.environ, self.tracking.env), self.hosts.network(HEAD):
            yield

    def left(self, name: str) -> list[str]:
        """Processes and files in /dev/shm of all hosts, and what the cluster still holds for a job."""
        self.make_ready()
        found = [f"process {one.pid}" for one in marked(name)]
        found += [f"process {one.pid} on {host}" for host in (HEAD, *WORKERS) for one in self._ours(host)]
        for host in (HEAD, *WORKERS):
            held = self.hosts.run(host, "ls", "/dev/shm").stdout.split()
            found += [f"/dev/shm/{file} on {host}" for file in held if file.startswith("shoal-")]
        state = self._state()
        busy = [f"{state['busy']:g} CPUs busy"] if state["busy"] else []
        return [*found, *state["groups"], *busy]

    def kill_all(self, name: str) -> None:
        kill(marked(name))
        for host in (HEAD, *WORKERS):
            kill(self._ours(host) if self.hosts.is_on(host) else [])

    def _ours(self, host: str) -> list[psutil.Process]:
        return [one for word in OURS for one in self.hosts.processes(host, word)]

    def cut(self, name: str) -> None:
        """Take a host's network away, silently; its processes go on."""
        self._cut.add(name)
        self.hosts.set_link(name, "down")

    def reconnect(self, name: str) -> None:
        self._cut.discard(name)
        self.hosts.set_link(name, "up")

    def drain(self, name: str, seconds: int = 30) -> None:
        """Tell Ray that a node is about to leave."""
        node = self._state()["nodes"][self.hosts.addresses[name]]
        address = f"--address={self.hosts.addresses[HEAD]}:6379"
        deadline = f"--deadline-remaining-seconds={seconds}"
        self.hosts.run(HEAD, *RAY, "drain-node", address, f"--node-id={node}", *DRAIN, deadline)


@dataclass
class HostTarget:
    """A running job on hosts."""

    site: HostSite
    process: "subprocess.Popen[str]"
    draw: random.Random

    def await_host(self) -> str:
        """Return a host that trains and is not the head, as soon as there is one.

        Raises:
            TooLateError: the job ended before.
        """
        hosts = self.site.hosts
        while True:
            found = [name for name in WORKERS if any(hosts.processes(name, word) for word in TRAINERS)]
            if found:
                return self.draw.choice(found)
            if self.process.poll() is not None:
                raise TooLateError
            time.sleep(0.1)

    def wait(self, seconds: float | None = None) -> None:
        """Wait so long, or until the job ends."""
        until = None if seconds is None else time.monotonic() + seconds
        while self.process.poll() is None and (until is None or time.monotonic() < until):
            time.sleep(0.2)


def kill_raylet(target: HostTarget) -> None:
    for one in target.site.hosts.processes(target.await_host(), "/raylet/raylet"):
        one.kill()


def power_off(target: HostTarget) -> None:
    target.site.hosts.off(target.await_host())


def cut_off(target: HostTarget) -> None:
    """Until the job has ended, with the processes of the host alive."""
    target.site.cut(target.await_host())


def cut_off_for_a_while(target: HostTarget) -> None:
    name = target.await_host()
    target.site.cut(name)
    target.wait(CUT_S)
    target.site.reconnect(name)


def drain(target: HostTarget) -> None:
    target.site.drain(target.await_host())


def power_off_head(target: HostTarget) -> None:
    """With the job itself."""
    target.site.hosts.off(HEAD)


def restart_database(target: HostTarget) -> None:
    target.site.tracking.restart_database()


HOST_DISTURBANCES = (
    Disturbance("raylet of a host killed", kill_raylet, storage="hosts"),
    Disturbance("host powered off", power_off, storage="hosts"),
    Disturbance("host cut off", cut_off, storage="hosts"),
    Disturbance(f"host cut off for {CUT_S:.0f} s", cut_off_for_a_while, storage="hosts"),
    Disturbance("host drained", drain, storage="hosts"),
    Disturbance("head powered off", power_off_head, storage="hosts", ends_job=True),
    Disturbance("PostgreSQL restarted", restart_database, storage="hosts"),
)
