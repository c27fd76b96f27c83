"""Which words of workers mean that their group hangs, and which of them is named."""

from dataclasses import replace

import pytest

from shoal.runs.hang import FIRST_S, FLOOR_S, PATIENT_S, WorkerStatus, find_hang, find_trial_hang

WAITING = '  File "/x/shoal/distributed/shm_allreduce.py", line 9, in _wait\n    time.sleep(1e-4)\n'
LOOPING = '  File "/home/me/model.py", line 3, in forward\n    while True: pass\n'


def status(rank=0, section="step", stay_s=0.01, slowest_s=0.02, **more):
    return WorkerStatus(
        **({"host": f"w{rank}", "node": "n", "pid": 1, "log": "", "step": 7} | more),
        rank=rank,
        section=section,
        stay_s=stay_s,
        slowest_s=slowest_s,
    )


MOVING, WAITS = status(), status(stay_s=30.0, stack=WAITING)


@pytest.mark.parametrize(
    ("workers", "root"),
    [
        ([WAITS, status(1, stay_s=29.0, silent_s=29.0)], 1),
        ([WAITS, status(1, stay_s=30.0, stack=LOOPING)], 1),
        ([WAITS, status(1, stay_s=30.0, stack=WAITING, step=6)], 1),
        ([WAITS, status(1, "data", 30.0)], 1),
        ([status(stay_s=1.0, step=8), status(1, "data", 30.0)], 1),
        ([status(stay_s=30.0, stack=LOOPING)], 0),
        ([WAITS, status(1, "storage", 1.0, silent_s=30.0)], 1),
        ([WAITS, status(1, "ended", 1.0, silent_s=30.0)], 0),
    ],
    ids=[
        "stopped",
        "loops",
        "skipped",
        "no data",
        "no data, early",
        "single",
        "stopped as it saves",
        "ended",
    ],
)
def test_the_worker_that_the_others_wait_for_is_named(workers, root):
    hang = find_hang(workers, len(workers))
    assert hang is not None
    assert hang.root is not None
    assert hang.root.rank == root
    assert f"worker {root} on w{root} has been in" in str(hang)


def test_where_all_wait_in_a_collective_none_is_named():
    hang = find_hang([WAITS, replace(WAITS, rank=1)], 2)
    assert hang.root is None
    assert str(hang).startswith("all 2 workers have been in an optimizer step at step 7 for 30 s")


@pytest.mark.parametrize(
    "workers",
    [
        [MOVING, replace(MOVING, rank=1)],
        [status(stay_s=FLOOR_S - 1), status(1, stay_s=FLOOR_S - 1)],
        [status(stay_s=39.0, slowest_s=10.0), status(1, stay_s=39.0, slowest_s=10.0)],
        [status(0, "first step", 1000.0, None), status(1, "first step", 1000.0, None)],
        [status(0, "first step", 1000.0, None), status(1, stay_s=1000.0)],
        [status(0, "evaluate", 300.0, 100.0), status(1, stay_s=300.0)],
        [status(0, "storage", 500.0, 0.01), status(1, stay_s=500.0)],
        [status(0, "on_epoch_end", 500.0, 0.01), status(1, stay_s=500.0)],
        [status(0, "decide", 500.0, 0.01), status(1, "decide", 500.0, 0.01)],
        [status(0, "storage", 500.0, 0.01), status(1, "data", 500.0, stack=WAITING)],
        [MOVING, status(1, silent_s=30.0)],
        [WAITS],
        [status(0, "ended", 30.0), status(1, "ended", 30.0)],
        [status(0, "rows", 10.0, None, silent_s=50.0), status(1, "rows", 10.0, None, silent_s=50.0)],
    ],
    ids=[
        "moving", "floor", "five times", "first", "one's first", "evaluation", "storage", "callback", "decision",
        "a batch is counted",
        "words do not arrive",
        "one has not begun", "all ended", "the interpreter's lock is held at the start",
    ],
)  # fmt: skip
def test_no_alarm(workers):
    assert find_hang(workers, 2) is None


@pytest.mark.parametrize(
    ("section", "slowest_s", "limit_s"),
    [("step", 0.001, FLOOR_S), ("step", 5.0, 20.0), ("storage", 0.1, PATIENT_S), ("step", None, FIRST_S)],
)
def test_a_section_has_a_limit_of_its_own(section, slowest_s, limit_s):
    assert status(section=section, slowest_s=slowest_s).limit_s == limit_s
    assert max(10.0, 5 * (slowest_s or 0)) >= limit_s or section == "storage" or slowest_s is None


def test_a_trial_hangs_where_it_is_stopped_but_not_where_it_waits_for_a_decision():
    assert find_trial_hang(status(7)) is None
    assert find_trial_hang(status(7, "decide", 10 * PATIENT_S)) is None
    for stopped in (status(7, silent_s=30.0), status(7, "decide", 1.0, silent_s=30.0)):
        hang = find_trial_hang(stopped)
        assert hang is not None
        assert "worker 0 on w7 has been in" in str(hang)


def test_the_host_is_asked_of_a_worker_that_is_silent_for_the_first_time_in_a_section():
    assert status(0, "first step", 1.0, None, silent_s=30.0).is_doubtful
    assert not status(0, "first step", 30.0, None).is_doubtful
    assert not status(0, "step", 1.0, silent_s=30.0).is_doubtful
    assert find_hang([replace(status(0, "first step", 1.0, silent_s=30.0), slowest_s=0.0)], 1)
