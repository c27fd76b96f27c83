"""Where the seconds of a run went: after ten kills they sum to the wall clock, and each attempt has its reason."""

import random
import time
from pathlib import Path
from typing import Protocol

import psutil
import pytest

from host_training import HostTraining, three_hosts
from running import SLOW_MODULE, Place, last_step, mlflow_record, train_workers
from shoal.storage.records import Identity, TrainResult
from shoal.storage.run_folder import RunFolder

pytestmark = pytest.mark.long

STEPS, KILLS = 2400, 10
SETTINGS = (
    "run_name=run",
    "model.name=slow:Net",
    "data.source=synthetic:classification?rows=2000",
    "train.epochs=1000",
    f"train.max_steps={STEPS}",
    "train.evaluate_every_steps=200",
    "checkpoint.every_steps=50",
    "scale.max_failures=100",
    "scale.num_workers=2",
)
DRIVER = (4, 8)  # the kills that hit the driver; the others hit a worker


class Job(Protocol):
    """A training that is begun, and what kills it."""

    folder: RunFolder
    tracking_uri: str

    def start(self) -> None: ...

    def await_step(self, step: int) -> None: ...

    def workers(self) -> list[psutil.Process]: ...

    def kill_driver(self) -> None: ...

    def wait(self) -> str: ...


class LocalTraining:
    """A training with a Ray of its own, on this machine."""

    def __init__(self, place: Place) -> None:
        place.add_module("slow", SLOW_MODULE)
        self._place, self.folder = place, place.folder("run")
        self.tracking_uri = f"sqlite:///{place.path}/mlflow.db"
        self.start()

    def start(self) -> None:
        self._process = self._place.start("train", *SETTINGS)

    def await_step(self, step: int) -> None:
        self._place.wait_for_step(self._process, "run", step)

    def workers(self) -> list[psutil.Process]:
        return train_workers(self._process)

    def kill_driver(self) -> None:
        self._process.kill()
        self._process.communicate()

    def wait(self) -> str:
        done = self._place.wait(self._process)
        assert done.code == 0, done.out + done.err
        return done.out


def test_ten_kills_in_one_run_and_all_seconds_are_accounted_for(place: Place) -> None:
    submitted_s = time.time()
    check_ten_kills(LocalTraining(place), submitted_s)


def test_ten_kills_on_two_hosts_and_all_seconds_are_accounted_for(tmp_path: Path) -> None:
    with three_hosts() as hosts:
        submitted_s = time.time()
        check_ten_kills(HostTraining(hosts, tmp_path / "log", SETTINGS), submitted_s)


def check_ten_kills(job: Job, submitted_s: float) -> None:
    draw = random.Random(0)
    reasons = ["submitted"]
    for number in range(KILLS):
        planned = (number + 1) * STEPS // (KILLS + 2) + draw.randrange(50)
        # On a busy machine the step was made before the last kill: the workers that follow are to make one.
        job.await_step(max(planned, last_step(job.folder) + 20))
        if number in DRIVER:
            job.kill_driver()
            reasons.append("the driver died")
            job.start()
        else:
            workers = job.workers()
            draw.choice(workers).kill()
            reasons.append("lost worker: ")
            psutil.wait_procs(workers, timeout=60)
    printed = job.wait()
    identity, result = job.folder.load(Identity), job.folder.load(TrainResult)
    assert identity is not None
    assert result is not None
    goodput = result.goodput
    assert goodput is not None
    wall_s = (identity.end_ms or 0) / 1000 - submitted_s
    print(goodput.model_dump_json(indent=1), wall_s)
    assert sum(goodput.seconds.values()) == pytest.approx(wall_s, rel=0.01)
    assert goodput.wall_s == pytest.approx(wall_s, rel=0.01)
    assert goodput.share == pytest.approx(goodput.seconds["kept_steps"] / goodput.wall_s)
    begun = goodput.attempts
    assert len(begun) == KILLS + 1
    assert all(one.why.startswith(why) for one, why in zip(begun, reasons, strict=True)), begun
    steps = [one.step for one in begun]
    assert steps == sorted(step for step in steps if step is not None)
    assert goodput.seconds["repeated_steps"] > 0
    assert "goodput" in printed
    run, _ = mlflow_record(job.tracking_uri, job.folder.tracked().run_id)
    assert run.data.metrics["goodput/share"] == pytest.approx(goodput.share)
    assert run.data.metrics["goodput/down_s"] == pytest.approx(goodput.seconds["down"])
    assert "goodput.png" in job.folder.names("pictures")
