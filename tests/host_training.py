"""A training on three hosts: a head without CPUs for workers, on which its driver runs, and two hosts with one each."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from hosts import SHARED, Hosts
from running import ROOT, SLOW_MODULE, eventually, last_step
from shoal.storage.run_folder import RunFolder

HEAD, OTHERS = "head", ("w1", "w2")
MODULES = f"{SHARED}:{ROOT}/platform"


@contextlib.contextmanager
def three_hosts() -> Iterator[Hosts]:
    """Skips the test where there can be no hosts."""
    if reason := Hosts.reason():
        pytest.skip(reason)
    folder = tempfile.mkdtemp(prefix="sh-", dir="/tmp")  # short: Ray's sockets lie below it
    with Hosts(Path(folder)) as hosts:
        for number, name in enumerate((HEAD, *OTHERS), start=1):
            hosts.on(name, f"192.168.93.{number}")
            hosts.start_ray(name, HEAD, cpus=int(name != HEAD), PYTHONPATH=MODULES)
        yield hosts


@dataclass
class HostTraining:
    """A training with `slow:Net` as its model, and with `run_name=run` among its settings.

    Attributes:
        log: what its driver prints.
    """

    hosts: Hosts
    log: Path
    settings: Sequence[str]

    def __post_init__(self) -> None:
        (self.hosts.shared / "slow.py").write_text(SLOW_MODULE)
        self.folder = RunFolder(str(self.hosts.shared / "runs/shoal/run"))
        self.tracking_uri = f"sqlite:///{self.hosts.shared}/mlflow.db"
        own = (f"storage_path={SHARED}/runs", f"track.tracking_uri=sqlite:///{SHARED}/mlflow.db")
        command = [sys.executable, str(ROOT / "jobs/train.py"), *self.settings, *own]
        address = f"{self.hosts.addresses[HEAD]}:6379"
        self.process = self.hosts.start(HEAD, *command, log=self.log, PYTHONPATH=MODULES, RAY_ADDRESS=address)

    def await_step(self, step: int) -> None:
        eventually(self._is_at(step), 100, f"the workers make step {step}")

    def await_worker(self, host: str) -> None:
        eventually(lambda: bool(self.hosts.processes(host, "RayTrainWorker")), 120, f"a worker on {host}")

    def _is_at(self, step: int) -> Callable[[], bool]:
        return lambda: last_step(self.folder) >= step or self.process.poll() is not None

    def wait(self) -> None:
        assert self.process.wait(600) == 0, self.log.read_text()
