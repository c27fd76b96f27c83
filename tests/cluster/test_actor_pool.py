"""Processes of a sweep that are idle when their host is lost, which nobody sees."""

import contextlib
import time
from typing import Any

import psutil
import pytest
import ray

from ray_nodes import Node, head, node
from running import RAY_ENV, eventually
from shoal.cluster.actor_pool import ActorLost, ActorPool
from shoal.cluster.trial_actor import TrialStarted

pytestmark = pytest.mark.long

SIZE = 3


def trial_processes(node: Node) -> list[psutil.Process]:
    found = []
    for one in node.process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [one] * ("ray::TrialActor" in " ".join(one.cmdline()))
    return found


def next_event(pool: ActorPool[str]) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if events := pool.wait(1.0):
            [(_, event)] = events
            return event
    raise AssertionError("no event")


def test_a_trial_is_lost_once_where_all_idle_processes_have_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would cost it a loss of the few that it may have."""
    for name, value in RAY_ENV.items():
        monkeypatch.setenv(name, value)
    with head() as address, node(address, "first", cpus=SIZE) as first:
        ray.init(address, log_to_driver=False)
        pool: ActorPool[str] = ActorPool(SIZE, {"CPU": 1}, None, lambda: None)
        try:
            eventually(lambda: len(trial_processes(first)) == SIZE, 60, "the processes live")
            while pool.wait(2.0):  # until nothing more is heard of their starts
                pass
            for one in trial_processes(first):
                one.kill()
            eventually(lambda: not trial_processes(first), 10, "they are gone")
            pool.begin("trial", None)  # type: ignore[arg-type]  # what it would train is not looked at
            assert isinstance(next_event(pool), ActorLost)
            pool.begin("trial", None)  # type: ignore[arg-type]
            assert isinstance(next_event(pool), TrialStarted)
        finally:
            pool.close()
            ray.shutdown()
