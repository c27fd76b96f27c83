"""What may happen to a job, as a table: what is killed, stopped, cut off or filled, and which storage that needs.

It depends on processes and services alone; `rounds` starts the jobs, and says what they must have left.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from object_store import ObjectStore
from running import Server

AWAY_S = 30.0
WORKERS = ("RayTrainWorker", "TrialActor")  # in the command lines of the processes that train


@dataclass
class Target:
    """A running job and what it depends on.

    Attributes:
        draw: chooses among several processes.
        disk: a small disk, where the job's storage is one.
    """

    process: subprocess.Popen[str]
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


class TooLateError(Exception):
    """The job had ended, so nothing was disturbed."""


@dataclass(frozen=True)
class Disturbance:
    """One row.

    Attributes:
        storage: of the job: "disk", "object store", "small disk", or "hosts": what hosts share.
        ends_job: whether the job may end with an error, after which the same command is run again.
    """

    name: str
    happens: Callable[[Any], None]
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


DISTURBANCES = (
    Disturbance("worker killed", kill_worker),
    Disturbance("worker stopped", stop_worker),
    Disturbance("raylet killed", kill_raylet, ends_job=True),
    Disturbance("driver killed", kill_driver, ends_job=True),
    Disturbance("tracking server killed for 30 s", kill_tracking_server),
    Disturbance("storage unreachable for 30 s", cut_off_storage, storage="object store"),
    Disturbance("disk full", fill_disk, storage="small disk", ends_job=True),
)
