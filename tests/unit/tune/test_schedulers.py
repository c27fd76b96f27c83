"""Successive halving and the median rule decide as Ray Tune's own do, without going through all trials."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from shoal.tune.engine import Report, Trial
from shoal.tune.schedulers import Asha, Fifo, MedianStopping, median, quantile

ITERATIONS = 20


def ray_scheduler(name, mode):
    from ray.tune import schedulers

    common = {"time_attr": "training_iteration", "metric": "value", "mode": mode}
    if name == "asha":
        return schedulers.ASHAScheduler(max_t=ITERATIONS, grace_period=2, reduction_factor=3, **common)
    return schedulers.MedianStoppingRule(grace_period=2, **common)


def decisions(trials, rng, scheduler):
    """Report random curves in a random order; return each decision. Some trials fail."""
    found = []
    at = dict.fromkeys(trials, 0)
    while at:
        trial = rng.choice(sorted(at, key=lambda trial: trial.number))
        at[trial] += 1
        value = rng.choice([rng.random() + trial.number / 100, 0.5, math.nan if rng.random() < 0.1 else 0.6])
        report = Report(at[trial], 10 * at[trial], value)
        if rng.random() < 0.01:
            scheduler.drop(trial)
            del at[trial]
        elif at[trial] == ITERATIONS:
            scheduler.complete(trial, report)
            del at[trial]
        else:
            decision = scheduler.decide(trial, report)
            found.append((trial.number, report.iteration, decision))
            if decision == "stop":
                del at[trial]
    return found


class RayTrial:
    """What Ray Tune's schedulers ask of a trial."""

    status = "RUNNING"

    def __init__(self, trial_id):
        self.trial_id = trial_id


class RayScheduler:
    """Ray Tune's own scheduler, with the interface of Shoal's."""

    def __init__(self, name, mode, trials):
        self.scheduler, self.controller = ray_scheduler(name, mode), SimpleNamespace(get_live_trials=list)
        self.trials = {trial: RayTrial(trial.name) for trial in trials}
        for trial in self.trials.values():
            self.scheduler.on_trial_add(self.controller, trial)

    def decide(self, trial, report):
        decision = self.scheduler.on_trial_result(self.controller, self.trials[trial], result(report))
        return {"CONTINUE": "continue", "STOP": "stop"}[decision]

    def complete(self, trial, report):
        self.scheduler.on_trial_complete(self.controller, self.trials[trial], result(report))

    def drop(self, trial):
        self.scheduler.on_trial_error(self.controller, self.trials[trial])


def result(report):
    return {"training_iteration": report.iteration, "value": report.value}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("name", ["asha", "median"])
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_each_decision_is_that_of_ray_tune(name, mode):
    stops = 0
    for seed in range(8):
        trials = [Trial(number, {}, number) for number in range(30)]
        own = Asha(mode, 2, ITERATIONS, 3) if name == "asha" else MedianStopping(mode, 2)
        expected = decisions(trials, random.Random(seed), RayScheduler(name, mode, trials))
        assert decisions(trials, random.Random(seed), own) == expected
        stops += sum(decision == "stop" for *_, decision in expected)
    assert stops > 50


def test_quantile_and_median_are_numpys():
    rng = random.Random(0)
    for count in range(1, 60):
        values = sorted(rng.choice([rng.random(), 0.25]) for _ in range(count))
        assert quantile(values, (1 - 1 / 3) * 100 / 100) == np.nanpercentile(values, (1 - 1 / 3) * 100)
        assert median(values) == np.median(values)
    assert math.isnan(quantile([], 0.5))


def test_trials_run_in_their_order_and_one_whose_process_was_lost_before_those_that_have_not_begun():
    fifo = Fifo()
    trials = [Trial(number, {}, number) for number in range(4)]
    for trial in trials:
        fifo.add(trial)
    first = fifo.choose()
    assert first is trials[0]
    first.status = "RUNNING"
    trials[1].outcome = "killed"
    second = fifo.choose()
    assert second is trials[2]
    second.status = "RUNNING"
    first.status = "PENDING"
    assert fifo.choose() is first
    first.outcome = "finished"
    assert fifo.choose() is trials[3]
    trials[3].status = "RUNNING"
    assert fifo.choose() is None
