"""Sweeps survive kills, interrupts, the end of their time budget, and trials that fail in different ways."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest
from sweeps import CONFIG, QUICK, children, points, sweep

from running import SLOW_MODULE, Place, eventually, last_step, still_runs

pytestmark = pytest.mark.long

MINE = """
import os
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, inputs, outputs, mood="fine"):
        super().__init__()
        self.mood = mood
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        if self.training and self.mood == "raise":
            raise ValueError("in a bad mood")
        if self.training and self.mood == "shy" and len(x) > 8:  # more rows than are tried before the start
            raise ValueError("too many")
        if self.training and self.mood == "vanish":
            os.kill(os.getpid(), 9)
        if self.training and self.mood == "hungry":
            torch.empty(2**60)
        return self.layer(x) * (float("nan") if self.mood == "nan" else 1.0)
"""


def test_a_killed_driver_is_resumed_and_ends_as_an_uninterrupted_sweep_of_one_trial_at_a_time(
    place: Place, shared: Place
) -> None:
    command = (CONFIG, "tune.num_samples=2")  # 8 trials
    process = place.start("tune", *command)
    trials = place.path / "runs" / "digits-sweep"

    def has_begun() -> bool:
        return len(list(trials.glob("*/trials/*/result.json"))) >= 2 and process.poll() is None

    eventually(has_begun, 90, "two trials have ended")
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()

    eventually(lambda: not any(still_runs(one, "Trial") for one in below), 30, "no trial goes on")
    seen = time.time()
    done = place.run("tune", *command)
    assert done.code == 0, done.out + done.err
    result, expected = (
        done.result,
        sweep(shared, *command, "tune.max_concurrent_trials=1", "experiment_name=alone"),
    )
    assert points(result) == points(expected)
    assert children(result) == children(expected)
    assert any((trials / result["run_name"] / "trials" / name / "result.json").stat().st_mtime < seen
               for name in points(result)), "what was finished is not run again"  # fmt: skip


def test_losses_of_a_process_before_a_later_checkpoint_count_no_more(place: Place) -> None:
    """Three kills, where one is allowed without a checkpoint between."""
    place.add_module("slow", SLOW_MODULE)
    settings = ("data.source=synthetic:classification?rows=1000", "train.epochs=1000", "train.max_steps=1200")
    settings += ("model.name=slow:Net", "checkpoint.every_steps=50", "optim.lr=0.01,0.02", "run_name=sweep")
    process = place.start("tune", *settings, "tune.max_concurrent_trials=1", "scale.max_failures=1")
    trial = place.folder("sweep/trials/t0000")
    for kill in range(3):
        eventually(lambda at=200 * (kill + 1): last_step(trial) >= at, 120, "the trial has gone further")
        [actor] = [
            one
            for one in psutil.Process(process.pid).children(recursive=True)
            if still_runs(one, "TrialActor")
        ]
        actor.kill()
    done = place.wait(process)
    assert done.code == 0, done.out + done.err
    assert done.err.count("it goes on from its last checkpoint, 1 of 1") == 3
    assert done.result["trials"] == {"planned": 2, "ended": 2, "finished": 2}


def test_an_interrupt_closes_every_run_and_the_sweep_is_extended_and_finished_later(shared: Place) -> None:
    command = (
        *QUICK,
        "train.epochs=30",
        "optim.lr=loguniform(1e-4,1e-2)",
        "run_name=sweep",
        "model.width=64,128",
    )
    process = shared.start("tune", *command, "tune.num_samples=2")
    folder = shared.folder("sweep")
    eventually(lambda: bool(list((shared.path / "runs").rglob("0001.jsonl"))), 60, "a trial trains")
    process.send_signal(signal.SIGINT)
    done = shared.wait(process)
    assert done.code == 130, done.out + done.err
    result = json.loads(folder.read("result.json"))
    assert result["status"] == "KILLED"
    assert {status for status, _ in children(result).values()} <= {"KILLED", "FINISHED"}
    finished = sweep(shared, *command, "tune.num_samples=3")
    assert finished["trials"] == {"planned": 6, "ended": 6, "finished": 6}
    assert len(children(finished)) == 6
    again = shared.run("tune", *command, "tune.num_samples=3")
    assert "is finished" in again.out


def test_when_the_time_budget_ends_the_best_trial_so_far_is_packaged(shared: Place) -> None:
    several = ("optim.lr=loguniform(1e-4,1e-2)", "model.width=32", "tune.num_samples=200", "train.epochs=20")
    result = sweep(shared, *several, "tune.time_budget_s=10")
    assert result["is_out_of_time"]
    assert result["total_seconds"] < 40  # 15 on a quiet machine
    assert 1 <= result["trials"]["ended"] < 200
    assert result["best"]["is_verified"]
    assert {status for status, _ in children(result).values()} <= {"FINISHED", "KILLED"}


def test_trials_of_two_workers_each_are_stopped_early_and_free_their_resources(
    shared: Place, cluster: dict[str, str]
) -> None:
    import ray
    from ray.util import placement_group_table

    two = ("scale.num_workers=2", "scale.cpus_per_worker=0.5")
    result = sweep(shared, *QUICK, *two, "optim.lr=0.003,0.00001", "tune.scheduler=asha")
    assert {row["name"]: row["status"] for row in result["rows"]} == {"t0000": "finished", "t0001": "stopped"}
    ray.init(cluster["address"], log_to_driver=False)
    try:
        assert all(group["state"] == "REMOVED" for group in placement_group_table().values())
    finally:
        ray.shutdown()


def test_trials_that_fail_in_different_ways_are_distinguished_and_do_not_stop_the_sweep(
    shared: Place,
) -> None:
    (shared.path / "mine.py").write_text(MINE)
    moods = "model.args.mood=fine,nan,raise,vanish,hungry"
    result = sweep(shared, *QUICK, "model.name=mine:Net", moods, "scale.max_failures=0")
    status = {row["params"]["model.args.mood"]: row["status"] for row in result["rows"]}
    assert status == {
        "fine": "finished", "nan": "infeasible", "raise": "failed", "vanish": "failed", "hungry": "infeasible",
    }  # fmt: skip
    rows = {row["params"]["model.args.mood"]: row for row in result["rows"]}
    assert all(row["node"] for row in rows.values())
    assert "DivergedError" in rows["nan"]["error"]
    assert rows["raise"]["error"] == "ValueError: in a bad mood"
    assert "bad mood" in Path(rows["raise"]["log"]).read_text()
    assert "lost" in rows["vanish"]["error"]
    found = children(result)
    assert {found[row["name"]][0] for row in result["rows"] if row["status"] != "finished"} == {"FAILED"}


def test_the_same_error_in_the_first_trials_ends_the_sweep_with_that_error(shared: Place) -> None:
    (shared.path / "mine.py").write_text(MINE)
    done = shared.run("tune", *QUICK, "model.name=mine:Net", "model.args.mood=shy", "optim.lr=uniform(0.1,1)")
    assert done.code == 1, done.out + done.err
    assert len(done.errors) == 1
    assert "failed alike: ValueError: too many" in done.errors[0]
    assert done.out.count(" failed ") <= 3 + 3  # and those that ran beside the third: the cluster runs four
