"""How often a checkpoint is written, and what failures cost, beside a simulation of them."""

import random

import pytest
from pydantic import ValidationError

from shoal.training.checkpoint.contents import CheckpointConfig
from shoal.training.checkpoint.interval import (
    best_interval_s,
    expected_goodput,
    make_pause,
    mean_time_between_failures_s,
)


def never():
    raise AssertionError("no failures are looked for")


@pytest.mark.parametrize(
    ("config", "is_local", "save_s", "pause_s"),
    [
        ({}, True, 0.01, 1.0),
        ({}, True, 2.0, 40.0),
        ({}, False, 2.0, 300.0),
        ({"every_s": 30}, True, 2.0, 30.0),
        ({"every_s": "auto", "mtbf_s": 3600.0}, True, 2.0, 120.0),
        ({"every_s": "auto", "mtbf_s": 3600.0}, True, 0.5, 60.0),
        ({"every_s": "auto", "mtbf_s": 1.0}, True, 8.0, 8.0),
    ],
)
def test_a_checkpoint_follows_another_after(config, is_local, save_s, pause_s):
    assert make_pause(CheckpointConfig(**config), is_local, never)(save_s) == pytest.approx(pause_s)


def test_failures_of_the_run_itself_decide_where_none_are_expected():
    pause = make_pause(CheckpointConfig(every_s="auto"), True, lambda: 450.0)
    assert pause(1.0) == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("up_s", "failures", "mtbf_s"), [(60, 0, 86400), (10**6, 0, 10**6), (600, 1, 600), (600, 10, 60)]
)
def test_mean_time_between_failures(up_s, failures, mtbf_s):
    assert mean_time_between_failures_s(up_s, failures) == mtbf_s


@pytest.mark.parametrize(
    "bad", [{"every_s": 0}, {"every_s": "often"}, {"mtbf_s": 0}, {"every_s": 5, "every_steps": 5}]
)
def test_what_is_no_pace_is_refused(bad):
    with pytest.raises(ValidationError):
        CheckpointConfig(**bad)


def simulated(interval_s, save_s, restart_s, mtbf_s, intervals=4000):
    """The share of kept time of a job whose failures come at random moments, also while it starts again."""
    draw, wall_s = random.Random(0), 0.0
    for _ in range(intervals):
        needs = interval_s + save_s
        while (fails_s := draw.expovariate(1 / mtbf_s)) < needs:
            wall_s += fails_s
            needs = restart_s + interval_s + save_s
        wall_s += needs
    return intervals * interval_s / wall_s


@pytest.mark.parametrize(
    ("interval_s", "save_s", "restart_s", "mtbf_s"),
    [(100, 5, 0, 500), (30, 1, 60, 3600), (100, 10, 60, 600), (1000, 10, 60, 600)],
)
def test_predicted_goodput_is_that_of_a_simulation(interval_s, save_s, restart_s, mtbf_s):
    predicted = expected_goodput(interval_s, save_s, restart_s, mtbf_s)
    assert simulated(interval_s, save_s, restart_s, mtbf_s) == pytest.approx(predicted, rel=0.06)


@pytest.mark.parametrize(("save_s", "mtbf_s"), [(1, 600), (5, 3600), (30, 86400)])
def test_at_the_best_interval_no_more_than_a_thousandth_is_lost_to_any_other(save_s, mtbf_s):
    best = expected_goodput(best_interval_s(save_s, mtbf_s), save_s, 60, mtbf_s)
    others = [
        expected_goodput(best_interval_s(save_s, mtbf_s) * 2 ** (n / 8), save_s, 60, mtbf_s)
        for n in range(-24, 25)
    ]
    assert best >= max(others) - 1e-3


def test_a_job_that_fails_before_it_has_started_does_nothing():
    assert expected_goodput(100, 1, 10**6, 1) == 0.0
