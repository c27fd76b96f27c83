"""Where the seconds of a run went: after ten kills they sum to the wall clock, and each attempt has its reason."""

import random
import subprocess
import time

import psutil
import pytest

from running import SLOW_MODULE, SLOW_SETTINGS, Place, last_step, mlflow_record, train_workers
from shoal.storage.records import Identity, TrainResult

pytestmark = pytest.mark.long

STEPS, KILLS = 2400, 10
SETTINGS = (
    "run_name=run",
    *SLOW_SETTINGS,
    f"train.max_steps={STEPS}",
    "train.evaluate_every_steps=200",
    "checkpoint.every_steps=50",
    "scale.max_failures=100",
    "scale.num_workers=2",
)
DRIVER = (4, 8)  # the kills that hit the driver; the others hit a worker


def start(place: Place) -> subprocess.Popen[str]:
    return place.start("train", *SETTINGS)


def test_ten_kills_in_one_run_and_all_seconds_are_accounted_for(place: Place) -> None:
    draw = random.Random(0)
    place.add_module("slow", SLOW_MODULE)
    process, submitted_s = start(place), time.time()
    reasons = ["submitted"]
    for number in range(KILLS):
        planned = (number + 1) * STEPS // (KILLS + 2) + draw.randrange(50)
        # On a busy machine the step was made before the last kill: the workers that follow are to make one.
        place.wait_for_step(process, "run", max(planned, last_step(place.folder("run")) + 20))
        if number in DRIVER:
            process.kill()
            process.communicate()
            reasons.append("the driver died")
            process = start(place)
        else:
            workers = train_workers(process)
            draw.choice(workers).kill()
            reasons.append("lost worker: ")
            psutil.wait_procs(workers, timeout=60)
    done = place.wait(process)
    assert done.code == 0, done.out + done.err
    folder = place.folder("run")
    identity, result = folder.load(Identity), folder.load(TrainResult)
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
    assert "goodput" in done.out
    run, _ = mlflow_record(f"sqlite:///{place.path}/mlflow.db", folder.tracked().run_id)
    assert run.data.metrics["goodput/share"] == pytest.approx(goodput.share)
    assert run.data.metrics["goodput/down_s"] == pytest.approx(goodput.seconds["down"])
    assert "goodput.png" in folder.names("pictures")
