"""Rounds: a job is started and disturbed at a random moment, run again if it ended, and compared with its twin.

The twin is the same job, uninterrupted, once for each strategy on each site: this machine or a cluster of hosts.
"""

import contextlib
import random
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from mlflow import MlflowClient

from disturbances import Disturbance, TooLateError
from running import TRACKED, mlflow_record
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import JournalReader
from sites import Site, Storage

STEPS = 600
SETTINGS = (
    "run_name=run",
    "model.name=slow:Net",
    "data.source=synthetic:classification?rows=1000",
    "train.epochs=1000",
    f"train.max_steps={STEPS}",
    "train.evaluate_every_steps=100",
    "checkpoint.every_steps=40",
)
TWO = ("scale.num_workers=2",)
# Job and settings, by name.
STRATEGIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ddp": ("train", (*SETTINGS, *TWO)),
    "fsdp": ("train", (*SETTINGS, *TWO, "scale.strategy=fsdp")),
    "sweep": ("tune", (*SETTINGS, "model.args.width=8,16", "optim.lr=0.001,0.01")),
}
ATTEMPT_S = 240.0  # a job takes a sixth of it
LEFT_S = 120.0  # Ray's agents end by themselves a minute after their raylet
MOST_ATTEMPTS = 3
MOST_DRAWS = 8  # of a moment
SHARE = 0.8  # of the twin's seconds, from which moments are drawn: later ones are often too late
WEIGHTS = "model/data/weights/model.safetensors"


class LostError(AssertionError):
    """A round did not end as it must."""


@dataclass(frozen=True)
class Remains:
    """What a job left, of each run: a trial by its name, or the only one.

    Attributes:
        weights: of the model; of a sweep, the best trial has one.
        tracked: status and points in MLflow.
    """

    weights: dict[str, bytes]
    points: dict[str, dict[tuple[str, int], float]]
    tracked: dict[str, dict[tuple[str, int], float]]

    @classmethod
    def of(cls, storage: str, tracking_uri: str, experiment: str) -> "Remains":
        folder = RunFolder(f"{storage}/{experiment}/run")
        names = folder.names("trials")
        inner = {name: RunFolder(f"{folder.uri}/trials/{name}") for name in names} or {"": folder}
        points = {name: _points(one) for name, one in inner.items()}
        client = MlflowClient(tracking_uri, tracking_uri)
        runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
        if len(runs) != len(names) + 1:
            raise LostError(f"{len(runs)} runs in MLflow instead of {len(names) + 1}")
        tracked = {
            name: mlflow_record(tracking_uri, str(one.tracked().run_id))[1] for name, one in inner.items()
        }
        if {run.info.status for run in runs} != {"FINISHED"}:
            raise LostError(f"in MLflow: {[run.info.status for run in runs]}")
        weights = {name: one.read(WEIGHTS) for name, one in inner.items() if one.exists(WEIGHTS)}
        return cls(weights, points, tracked)

    def check_like(self, twin: "Remains") -> None:
        """Compare, bit for bit.

        Raises:
            LostError: with the first difference.
        """
        if self.points != twin.points:
            raise LostError(f"points differ: {_first_difference(self.points, twin.points)}")
        for name, points in self.tracked.items():
            if points != twin.tracked[name]:
                raise LostError(f"MLflow differs: {_first_difference(self.tracked, twin.tracked)}")
        if self.weights != twin.weights:
            raise LostError("weights differ")


def _points(folder: RunFolder) -> dict[tuple[str, int], float]:
    read = [point for point in JournalReader(folder).read() if point.key.startswith(TRACKED)]
    points = {(point.key, point.step): point.value for point in read}
    for point in read:
        if points[point.key, point.step] != point.value:
            raise LostError(f"{point.key} at step {point.step} has two values")
    return points


def _first_difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    for name in one.keys() | other.keys():
        its, others = one.get(name, {}), other.get(name, {})
        for key in sorted(its.keys() | others.keys()):
            if its.get(key) != others.get(key):
                return f"{name} {key}: {its.get(key)} instead of {others.get(key)}"
    return "nothing"


@dataclass
class Report:
    """How a round went.

    Attributes:
        when: the moment, as it was drawn.
        codes: exit codes of the attempts.
        problem: why it was not survived; None: it was.
    """

    strategy: str
    disturbance: str
    when: str
    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    problem: str | None = None

    @property
    def has_survived(self) -> bool:
        return self.problem is None


class Rounds:
    """Runs rounds on sites, each with the name of a kind of storage or of itself in `Disturbance.storage`."""

    def __init__(self, sites: Callable[[Disturbance], Site]) -> None:
        """Take what gives the site of a disturbance."""
        self._site_of = sites
        self._twins: dict[tuple[Site, str], tuple[Remains, float]] = {}

    def run(self, strategy: str, disturbance: Disturbance, draw: random.Random) -> Report:
        """Run one round; a moment at which the job had ended is drawn again, a few times."""
        site = self._site_of(disturbance)
        twin, twin_s = self._twin(site, strategy)
        for _ in range(MOST_DRAWS):
            name = f"{strategy}-{uuid.uuid4().hex[:6]}"
            site.make_ready()
            with site.storage(disturbance.storage, name) as storage:
                one = _Round(site, storage, strategy, disturbance, name, draw)
                try:
                    return one.run(twin, twin_s)
                except TooLateError:
                    continue
        return Report(strategy, disturbance.name, "", problem=f"not disturbed at any of {MOST_DRAWS} moments")

    def _twin(self, site: Site, strategy: str) -> tuple[Remains, float]:
        if (site, strategy) not in self._twins:
            name, since = f"twin-{strategy}", time.monotonic()
            site.make_ready()
            with site.storage("disk", name) as storage:
                process = start(site, strategy, storage, name)
                out, err = process.communicate(timeout=ATTEMPT_S)
                assert process.returncode == 0, out + err
                seconds = time.monotonic() - since
                with site.reading():
                    remains = Remains.of(storage.here, site.tracking_uri, name)
            self._twins[site, strategy] = remains, seconds
        return self._twins[site, strategy]


def start(site: Site, strategy: str, storage: Storage, name: str) -> "subprocess.Popen[str]":
    job, settings = STRATEGIES[strategy]
    own = (f"experiment_name={name}", f"storage_path={storage.of_job}")
    return site.start(name, job, *settings, *own, f"track.tracking_uri={site.tracking_uri}")


class _Round:
    def __init__(
        self,
        site: Site,
        storage: Storage,
        strategy: str,
        disturbance: Disturbance,
        name: str,
        draw: random.Random,
    ) -> None:
        self._site, self._storage, self._draw = site, storage, draw
        self._strategy, self._disturbance, self._name = strategy, disturbance, name
        self._said = ""

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(f"{self._storage.here}/{self._name}/run")

    def run(self, twin: Remains, twin_s: float) -> Report:
        """Disturb a job.

        Raises:
            TooLateError: it ended before the moment.
        """
        began_s = time.monotonic()
        report = Report(self._strategy, self._disturbance.name, "")
        try:
            self._attempts(report, twin_s)
            with self._site.reading():
                Remains.of(self._storage.here, self._site.tracking_uri, self._name).check_like(twin)
            self._check_left()
        except (AssertionError, OSError, pytest.fail.Exception) as error:
            report.problem = f"{type(error).__name__}: {error}"
        finally:
            self._site.kill_all(self._name)
        report.seconds = time.monotonic() - began_s
        return report

    def _attempts(self, report: Report, twin_s: float) -> None:
        """Start the job, disturb it, and give the same command again until it has ended with 0."""
        process = start(self._site, self._strategy, self._storage, self._name)
        report.when, wait = self._moment(twin_s)
        wait(process)
        if process.poll() is not None:
            raise TooLateError
        self._disturbance.happens(self._site.target(process, self._draw, self._storage))
        while True:
            code = self._end(process)
            report.codes.append(code)
            if code == 0:
                return
            if not self._disturbance.ends_job or len(report.codes) == MOST_ATTEMPTS:
                raise LostError(f"exit codes {report.codes}: {self._said}")
            self._site.make_ready()
            process = start(self._site, self._strategy, self._storage, self._name)

    def _moment(self, twin_s: float) -> tuple[str, Any]:
        """Draw a second after the start, or a step: steps take a small part of a short job's time."""
        if self._draw.random() < 0.5:
            seconds = self._draw.uniform(0.0, SHARE * twin_s)
            return f"{seconds:.1f} s", lambda process: _sleep_beside(process, seconds)
        step = self._draw.randrange(STEPS - 50)
        return f"step {step}", lambda process: self._wait_for_step(process, step)

    def _wait_for_step(self, process: "subprocess.Popen[str]", step: int) -> None:
        while process.poll() is None:
            inner = [RunFolder(f"{self._folder.uri}/trials/{name}") for name in self._folder.names("trials")]
            for folder in inner[-1:] or [self._folder]:
                if any(point.step >= step for point in JournalReader(folder).read()):
                    return
            time.sleep(0.2)

    def _end(self, process: "subprocess.Popen[str]") -> int:
        try:
            out, err = process.communicate(timeout=ATTEMPT_S)
        except subprocess.TimeoutExpired:
            self._site.kill_all(self._name)
            out, err = process.communicate()
            raise LostError(f"no end within {ATTEMPT_S:.0f} s: {out[-2000:]}{err[-3000:]}") from None
        self._said = err[-3000:]
        if "Traceback" in err:
            raise LostError(f"a traceback: {self._said}")
        return process.returncode

    def _check_left(self) -> None:
        until = time.monotonic() + LEFT_S
        while left := self._site.left(self._name):
            if time.monotonic() > until:
                raise LostError(f"left: {left}")
            time.sleep(0.5)


def _sleep_beside(process: "subprocess.Popen[str]", seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=seconds)
