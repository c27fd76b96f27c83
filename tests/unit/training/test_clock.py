"""Which section a clock is in, and how long each took at most."""

import pytest

from shoal.training import clock as clock_module
from shoal.training.clock import Clock


@pytest.fixture
def clock(monkeypatch):
    """A clock, and what sets its time."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    return Clock(), lambda seconds: now.__setitem__(0, seconds)


def test_the_longest_stay_of_each_section_is_kept_once_it_has_ended(clock):
    clock, at = clock
    at(5.0)
    assert clock.enter("data") == 5.0
    assert clock.slowest == {"start": 5.0}
    for start, end in [(6.0, 8.0), (9.0, 10.0)]:
        at(start)
        clock.enter("step")
        at(end)
        clock.enter("data")
    assert clock.slowest == {"start": 5.0, "data": 1.0, "step": 2.0}
    assert clock.at == ("data", 10.0)


def test_the_section_around_another_goes_on_after_it(clock):
    clock, at = clock
    clock.enter_step(3, samples=8)
    with clock.on("checkpoint"):
        at(1.0)
        with clock.on("storage"):
            assert clock.at == ("storage", 1.0)
            at(4.0)
        assert clock.at == ("checkpoint", 4.0)
    assert clock.at == ("first step", 4.0)
    assert clock.spent == {"storage": 3.0, "checkpoint": 4.0}
    assert clock.step == 3


def test_the_section_that_raised_stays(clock):
    clock, _ = clock
    with pytest.raises(ZeroDivisionError), clock.on("checkpoint"):
        raise ZeroDivisionError
    assert clock.at[0] == "checkpoint"


def test_the_first_step_of_each_size_is_a_section_of_its_own(clock):
    clock, _ = clock
    entered = []
    for samples in (32, 32, 7, 32, 7):
        clock.enter_step(0, samples)
        entered.append(clock.at[0])
    assert entered == ["first step", "step", "first step", "step", "step"]
