"""What may happen to a job, as a table: what is killed, stopped, cut off or filled, and which storage that needs.

It depends on processes and services alone; `rounds` starts the jobs, and says what they must have left.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from object_store import ObjectStore
from running import Server
from topologies import ADDRESSES, HEAD, ThreeHosts, Topology

AWAY_S, CUT_S, DRAIN_S = 30.0, 90.0, 20.0
WORKERS = ("RayTrainWorker", "TrialActor")  # in the command lines of the processes that train


@dataclass
class Target:
    """A running job and what it depends on.

    Attributes:
        place: where it runs.
        draw: chooses among several processes.
        disk: a small disk, where the job's storage is one.
    """

    process: subprocess.Popen[str]
    place: Topology
    draw: random.Random
    server: Server
    store: ObjectStore
    disk: Path

    def below(self, *words: str) -> list[psutil.Process]:
        """Return the processes below the job with one of the words in their command lines; none once it has ended."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(word in " ".join(child.cmdline()) for word in words):
                        found.append(child)
        return found

    def await_one(self, *words: str) -> psutil.Process:
        """Return one of such processes, as soon as there are any.

        Raises:
            TooLateError: the job ended before.
        """
        while not (found := self.below(*words)):
            if self.process.poll() is not None:
                raise TooLateError
            time.sleep(0.05)
        return self.draw.choice(sorted(found, key=lambda process: process.pid))

    def await_host(self) -> tuple["ThreeHosts", str]:
        """Return a host beside the head that has a worker, as soon as there is one.

        Raises:
            TooLateError: the job ended before.
        """
        assert isinstance(self.place, ThreeHosts)
        while self.process.poll() is None:
            for host in ADDRESSES:
                if host != HEAD and self.place.pids(host, "ray::(RayTrainWorker|TrialActor)"):
                    return self.place, host
            time.sleep(0.2)
        raise TooLateError


class TooLateError(Exception):
    """The job had ended, so nothing was disturbed."""


@dataclass(frozen=True)
class Disturbance:
    """One row.

    Attributes:
        storage: of the job: "disk", "object store" or "small disk".
        ends_job: whether the job may end with an error, after which the same command is run again.
    """

    name: str
    happens: Callable[[Target], None]
    storage: str = "disk"
    ends_job: bool = False


def kill_worker(target: Target) -> None:
    target.await_one(*WORKERS).kill()


def stop_worker(target: Target) -> None:
    target.await_one(*WORKERS).send_signal(signal.SIGSTOP)


def kill_raylet(target: Target) -> None:
    target.await_one("/raylet/raylet").kill()


def kill_driver(target: Target) -> None:
    target.process.kill()


def kill_tracking_server(target: Target) -> None:
    target.server.kill()
    time.sleep(AWAY_S)
    target.server.start()


def cut_off_storage(target: Target) -> None:
    target.store.is_away = True
    try:
        time.sleep(AWAY_S)
    finally:
        target.store.is_away = False


def fill_disk(target: Target) -> None:
    """Fill it until the job ends, and make room then."""
    filler = target.disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            while target.process.poll() is None:
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * 65536):
                        pass
                time.sleep(0.05)
    finally:
        os.remove(filler)


def kill_raylet_of_host(target: Target) -> None:
    place, host = target.await_host()
    place.hosts.run(host, "kill", "-9", *place.pids(host, "raylet/raylet"), check=False)


def power_off(target: Target) -> None:
    place, host = target.await_host()
    place.hosts.off(host)


def cut_off(target: Target) -> None:
    place, host = target.await_host()
    place.hosts.cut(host)


def cut_off_and_heal(target: Target) -> None:
    place, host = target.await_host()
    place.hosts.cut(host)
    time.sleep(CUT_S)
    place.hosts.heal(host)


def drain(target: Target) -> None:
    """Announce the end of a host to Ray, and end it then."""
    place, host = target.await_host()
    node = "import ray; ray.init('auto', log_to_driver=False); print(ray.get_runtime_context().get_node_id())"
    ray = (sys.executable, "-m", "ray.scripts.scripts")
    why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot")
    number = place.hosts.run(host, sys.executable, "-c", node).stdout.split()[-1]
    deadline = ("--deadline-remaining-seconds", str(int(DRAIN_S)))
    place.hosts.run(host, *ray, "drain-node", "--node-id", number, *why, *deadline)
    time.sleep(DRAIN_S)
    place.hosts.off(host)


def power_off_head(target: Target) -> None:
    """The driver's host, which comes back."""
    place, _ = target.await_host()
    place.hosts.off(HEAD)
    place.restart_head()


ON_HOSTS = (
    Disturbance("raylet of a host killed", kill_raylet_of_host),
    Disturbance("host powered off", power_off),
    Disturbance("host silently cut off", cut_off),
    Disturbance("host cut off for 90 s", cut_off_and_heal),
    Disturbance("host drained", drain),
    Disturbance("head powered off and on", power_off_head, ends_job=True),
)
ON_ONE_HOST = (
    Disturbance("worker killed", kill_worker),
    Disturbance("worker stopped", stop_worker),
    Disturbance("raylet killed", kill_raylet, ends_job=True),
    Disturbance("driver killed", kill_driver, ends_job=True),
    Disturbance("tracking server killed for 30 s", kill_tracking_server),
    Disturbance("storage unreachable for 30 s", cut_off_storage, storage="object store"),
    Disturbance("disk full", fill_disk, storage="small disk", ends_job=True),
)
