"""Where the jobs of rounds run: here, with a Ray of their own, or on three hosts that are made for a round.

It knows neither what happens to a job nor what it must have left.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil

from hosts import Hosts
from running import ROOT, Place

MARK = "SHOAL_ROUND"  # in the environment of all processes of a round
HEAD, ADDRESSES = "head", {"head": "192.168.93.1", "w1": "192.168.93.2", "w2": "192.168.93.3"}
# What lives on in a cluster whose jobs have ended: Ray's own actor, made by its training library.
WORKING = "ray::(RayTrainWorker|TrialActor|TrainController|StatusBoard)"
RAYS_OWN = "AutoscalingCoordinator"
STATE = f"""
import logging
import ray
from ray.util import placement_group_table, state

ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
for actor in state.list_actors(limit=1000):
    if actor.state != "DEAD" and {RAYS_OWN!r} not in actor.class_name:
        print("actor", actor.class_name, actor.state)
for group in placement_group_table().values():
    if group["state"] != "REMOVED":
        print("placement group", group["name"], group["state"])
"""


class Topology(Protocol):
    """Starts the jobs of one round."""

    settings: tuple[str, ...]

    def start(self, job: str, *settings: str) -> "subprocess.Popen[str]": ...

    def processes(self) -> list[psutil.Process]:
        """All processes of the round's jobs that live."""
        ...

    def left(self) -> list[str]:
        """What the round's jobs have left."""
        ...


class OneHost:
    """Each job starts a Ray of its own."""

    settings = ("scale.cpus_per_worker=0.5",)

    def __init__(self, place: Place, name: str) -> None:
        self._place, self._name = place, name

    def start(self, job: str, *settings: str) -> "subprocess.Popen[str]":
        return self._place.start(job, *settings, **{MARK: self._name})

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._name and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def left(self) -> list[str]:
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline())[:80])
        return found


class ThreeHosts(OneHost):
    """A Ray over three hosts of one CPU each, of which a job of two workers leaves one to spare."""

    settings = ("scale.cpus_per_worker=1",)

    def __init__(self, place: Place, name: str, hosts: Hosts) -> None:
        super().__init__(place, name)
        self.hosts = hosts
        self._env = {"PYTHONPATH": f"{place.path}:{ROOT / 'platform'}"}

    @classmethod
    @contextlib.contextmanager
    def made(cls, place: Place, name: str, folder: Path) -> Iterator["ThreeHosts"]:
        with Hosts(folder / name) as hosts:
            made = cls(place, name, hosts)
            for host in ADDRESSES:
                made.power_on(host)
            yield made

    def start(self, job: str, *settings: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *settings]
        address = {"RAY_ADDRESS": f"{ADDRESSES[HEAD]}:6379", MARK: self._name}
        return self.hosts.start(HEAD, *command, **self._env, **address)

    def power_on(self, host: str) -> None:
        self.hosts.on(host, None if host in self.hosts.addresses else ADDRESSES[host])
        self.start_ray(host)

    def start_ray(self, host: str) -> None:
        self.hosts.start_ray(host, HEAD, **self._env)

    def restart_head(self) -> None:
        """Start the head again, and the others' Ray, which lost it: as systemd does."""
        self.power_on(HEAD)
        for host in ADDRESSES:
            if host != HEAD:
                self.hosts.run(
                    host, sys.executable, "-m", "ray.scripts.scripts", "stop", "--force", check=False
                )
                self.start_ray(host)

    def pids(self, host: str, word: str) -> list[str]:
        """Return the processes with a word in their command lines, as their host numbers them."""
        return self.hosts.run(host, "pgrep", "-f", word, check=False).stdout.split()

    def left(self) -> list[str]:
        workers = [
            f"{host}: process {pid}"
            for host in filter(self.hosts.is_on, ADDRESSES)
            for pid in self.pids(host, WORKING)
        ]
        done = self.hosts.run(HEAD, sys.executable, "-c", STATE, **self._env)
        return [*done.stdout.splitlines(), *super().left(), *workers]
