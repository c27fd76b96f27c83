"""Processes of a sweep that do not start: after half a minute it says why, and after each minute looks elsewhere."""

import pytest

from shoal.cluster import session, start_watch
from shoal.cluster.node_selector import Selector, leaving_out
from shoal.cluster.start_watch import StartWatch

BAD, OTHER = leaving_out(["bad"]), leaving_out(["other"])


class Looks:
    """Counts the looks at the cluster's room, in place of a cluster."""

    made: list[Selector]

    def __init__(self, needs, workers, hosts, say, selector, is_pending):
        self._selector = selector

    def check(self):
        self.made.append(self._selector)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    Looks.made = []
    monkeypatch.setattr(start_watch.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(start_watch, "RoomWatch", Looks)
    monkeypatch.setattr(session, "answers", lambda: True)
    return now


def test_what_is_waited_for_is_said_after_half_a_minute_without_any_that_lives(clock):
    watch = StartWatch({"CPU": 1.0}, BAD, lambda: BAD)
    clock[0] = 29.0
    assert not watch.check()
    watch.rest()
    clock[0] = 58.0
    assert not watch.check()
    assert Looks.made == []
    clock[0] = 60.0
    assert not watch.check()
    assert Looks.made == [BAD]


def test_hosts_are_chosen_again_each_minute_and_only_others_start_anew(clock):
    found = iter([BAD, OTHER])
    watch = StartWatch({"CPU": 1.0}, BAD, lambda: next(found))
    answers = []
    for clock[0] in (59.0, 61.0, 120.0, 122.0):
        answers.append(watch.check())
    assert answers == [False, False, False, True]
    assert watch.selector == OTHER
    clock[0] = 123.0
    assert not watch.check()
    assert Looks.made[-1] == OTHER


def test_a_ray_that_does_not_answer_is_not_asked(clock, monkeypatch):
    monkeypatch.setattr(session, "answers", lambda: False)
    watch = StartWatch({"CPU": 1.0}, BAD, lambda: OTHER)
    clock[0] = 100.0
    assert not watch.check()
    assert watch.selector == BAD


def test_processes_that_need_nothing_wait_for_no_room(clock):
    watch = StartWatch({}, None, lambda: OTHER)
    clock[0] = 1000.0
    assert not watch.check()
    assert Looks.made == []
