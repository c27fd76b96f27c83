"""Where the jobs of rounds run: this machine, where each job starts a Ray of its own; hosts are in `host_site`."""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from disturbances import Target
from object_store import ObjectStore
from running import Place, Server

SHM = Path("/dev/shm")
MARK = "SHOAL_ROUND"  # in the environment of all processes of a round

# A user's model that takes its time without taking the processor's, and draws random numbers.
MODULE = """
import time

from torch import nn


class Net(nn.Sequential):
    def __init__(self, inputs, outputs, width=16):
        super().__init__(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, outputs))

    def forward(self, x):
        if self.training:
            time.sleep(0.01)
        return super().forward(x)
"""


@dataclass(frozen=True)
class Storage:
    """A `storage_path`: as the job names it, and as this process does."""

    of_job: str
    here: str


class Site(Protocol):
    """A place to run jobs, and to disturb them."""

    @property
    def tracking_uri(self) -> str: ...

    def make_ready(self) -> None:
        """Make good what has been disturbed."""

    def storage(self, kind: str, name: str) -> contextlib.AbstractContextManager[Storage]:
        """Make a round's storage of a kind."""
        ...

    def start(self, name: str, job: str, *settings: str) -> "subprocess.Popen[str]":
        """Start the job of a round."""
        ...

    def target(self, process: "subprocess.Popen[str]", draw: random.Random, storage: Storage) -> Any:
        """Return what a disturbance receives."""

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Connect this process to the tracking server."""
        ...

    def left(self, name: str) -> list[str]:
        """Return what a round has left, in words."""
        ...

    def kill_all(self, name: str) -> None:
        """Kill all processes of a round."""


class Machine:
    """This machine, in a folder, beside an MLflow server and an object store that all jobs share."""

    def __init__(self, path: Path, server: Server, store: ObjectStore) -> None:
        self._server, self._store = server, store
        self._place = Place(path, store.env)
        self._place.add_module("slow", MODULE)
        self._shared = set[Path]()

    @property
    def tracking_uri(self) -> str:
        return self._server.uri

    def make_ready(self) -> None:
        self._shared = set(SHM.iterdir())

    @contextlib.contextmanager
    def storage(self, kind: str, name: str) -> Iterator[Storage]:
        path = self._place.path / name
        with small_disk(path) if kind == "small disk" else contextlib.nullcontext():
            uris = {"small disk": str(path), "object store": f"{ObjectStore.uri}/runs"}
            uri = uris.get(kind, f"{self._place.path}/runs")
            yield Storage(uri, uri)

    def start(self, name: str, job: str, *settings: str) -> "subprocess.Popen[str]":
        share = ("scale.cpus_per_worker=0.5",) if job == "train" else ()
        return self._place.start(job, *settings, *share, **{MARK: name})

    def target(self, process: "subprocess.Popen[str]", draw: random.Random, storage: Storage) -> Target:
        return Target(process, draw, self._server, self._store, Path(storage.here))

    def reading(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def left(self, name: str) -> list[str]:
        files = [path.name for path in set(SHM.iterdir()) - self._shared if path.name.startswith("shoal-")]
        return [*files, *(f"process {one.pid}" for one in marked(name))]

    def kill_all(self, name: str) -> None:
        kill(marked(name))


def marked(name: str) -> list[psutil.Process]:
    """All processes that live of a round, however they were started and whoever adopted them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Make a file system of 24 MB for a while."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
