"""What each second of a run went to: tables of marks and the seconds by class, which sum to the wall clock."""

import random

import pytest

from shoal.runs.goodput import CLASSES, attempts, measure_goodput, resizes, seconds_by_class
from shoal.runs.timeline import Mark, Timeline, WorkerTimeline, in_order, read_timeline, rising, worker_file
from shoal.storage.records import AttemptBegun, Resize
from shoal.storage.run_folder import RunFolder
from shoal.training.clock import Clock


def mark(at_s, state, step=None, **more):
    return Mark(1000 * at_s, state, step, **more)


SUBMITTED = mark(0, "start", why="submitted")
# An attempt that was at step 10 at 20 s, and had made 6 steps more at 30 s.
BEGUN = [SUBMITTED, mark(8, "restore"), mark(10, "steps", 0), mark(20, "steps", 10), mark(30, "steps", 16)]


def again(at_s, step, why="lost worker", lost="down"):
    """The next attempt, which goes on from a step, 5 s after the failure."""
    failed, then = at_s, at_s + 5
    return [
        mark(failed, "down", lost=lost),
        mark(failed, "start", why=why),
        mark(then - 1, "restore"),
        mark(then, "steps", step),
    ]


@pytest.mark.parametrize(
    ("marks", "end_s", "seconds"),
    [
        pytest.param([SUBMITTED], 7, {"start": 7}, id="nothing has begun"),
        pytest.param(BEGUN, 30, {"start": 8, "restore": 2, "kept_steps": 20}, id="it goes on"),
        pytest.param(BEGUN, 33, {"start": 8, "restore": 2, "kept_steps": 23}, id="no word for a while"),
        pytest.param(
            [*BEGUN[:4], mark(30, "steps", 16, spent={"evaluation": 3, "checkpoint": 1, "tracking": 0.5})],
            30,
            {"start": 8, "restore": 2, "kept_steps": 15.5, "evaluation": 3, "checkpoint": 1, "tracking": 0.5},
            id="besides steps",
        ),
        pytest.param(
            [*BEGUN[:4], mark(30, "steps", 16, spent={"evaluation": 30, "checkpoint": 10})],
            30,
            {"start": 8, "restore": 2, "kept_steps": 10, "evaluation": 7.5, "checkpoint": 2.5},
            id="clocks do not agree",
        ),
        pytest.param(
            [*BEGUN, *again(34, 10), mark(60, "steps", 30)],
            60,
            {"start": 12, "restore": 3, "kept_steps": 31, "repeated_steps": 10, "down": 4},
            id="all since a mark was lost",
        ),
        pytest.param(
            [*BEGUN, *again(34, 13), mark(60, "steps", 30)],
            60,
            {"start": 12, "restore": 3, "kept_steps": 36, "repeated_steps": 5, "down": 4},
            id="a checkpoint between two marks",
        ),
        pytest.param(
            [*BEGUN, *again(34, 0), mark(60, "steps", 30)],
            60,
            {"start": 12, "restore": 3, "kept_steps": 21, "repeated_steps": 20, "down": 4},
            id="no checkpoint",
        ),
        pytest.param(
            [*BEGUN, *again(34, 16), mark(44, "steps", 20), *again(50, 13), mark(60, "steps", 30)],
            60,
            {"start": 16, "restore": 4, "kept_steps": 20, "repeated_steps": 10, "down": 10},
            id="a later attempt goes on from before",
        ),
        pytest.param(
            [*BEGUN, *again(48, 16, lost="hang"), mark(60, "steps", 30)],
            60,
            {"start": 12, "restore": 3, "kept_steps": 27, "hang": 18},
            id="a hang until it was found",
        ),
        pytest.param(
            [
                *BEGUN,
                mark(35, "down", lost="down"),
                mark(35, "start", why="lost worker"),
                mark(36, "waiting"),
                mark(96, "start"),
                mark(100, "restore"),
                mark(101, "steps", 16),
            ],
            101,
            {"start": 13, "restore": 3, "kept_steps": 20, "down": 5, "waiting": 60},
            id="room was waited for",
        ),
        pytest.param(
            [
                *BEGUN,
                mark(31, "checkpoint", 17, spent={"tracking": 0.25}),
                mark(33, "evaluation"),
                mark(36, "delivery"),
                mark(40, "down"),
            ],
            40,
            {
                "start": 8,
                "restore": 2,
                "kept_steps": 20.75,
                "tracking": 0.25,
                "checkpoint": 2,
                "evaluation": 3,
                "delivery": 4,
            },
            id="to the end",
        ),
        pytest.param(
            [
                *BEGUN,
                mark(31, "down"),
                mark(131, "start", why="the driver died", lost="down"),
                mark(135, "steps", 16),
            ],
            135,
            {"start": 12, "restore": 2, "kept_steps": 20, "repeated_steps": 1, "down": 100},
            id="a later submission",
        ),
    ],
)
def test_each_second_is_of_one_class(marks, end_s, seconds):
    found = seconds_by_class(marks, 1000 * end_s)
    assert {name: value for name, value in found.items() if value} == pytest.approx(seconds)
    assert sum(found.values()) == pytest.approx(end_s)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_marks_there_are_the_classes_sum_to_the_wall_clock(seed):
    draw = random.Random(seed)
    states = ["start", "waiting", "restore", "steps", "steps", "steps", "checkpoint", "evaluation", "down"]
    marks = rising(
        [
            Mark(
                draw.randrange(10**6),
                draw.choice(states),
                draw.choice([None, draw.randrange(100)]),
                spent={"checkpoint": draw.random() * 100},
                lost=draw.choice([None, None, "down", "hang"]),
            )
            for _ in range(50)
        ]
    )
    found = seconds_by_class(marks, 2 * 10**6)
    assert set(found) == set(CLASSES)
    assert min(found.values()) >= 0
    assert sum(found.values()) == pytest.approx((2 * 10**6 - marks[0].at_ms) / 1000)


def test_attempts_have_their_reasons_and_steps():
    marks = [
        *BEGUN,
        *again(34, 10, "hang: worker 1"),
        *again(50, 16),
        mark(60, "start", why="the driver died"),
    ]
    assert attempts(marks) == [
        AttemptBegun(at_ms=0, why="submitted", step=0),
        AttemptBegun(at_ms=34000, why="hang: worker 1", step=10),
        AttemptBegun(at_ms=50000, why="lost worker", step=16),
        AttemptBegun(at_ms=60000, why="the driver died"),
    ]


def test_marks_of_workers_lie_between_those_of_the_driver_though_their_clock_is_off():
    driver = [
        SUBMITTED,
        mark(2, "start", workers=0),
        mark(3, "waiting"),
        mark(5, "start"),
        mark(9, "down", lost="down"),
    ]
    late, early = [mark(106, "restore"), mark(107, "steps", 0)], [mark(-94, "restore"), mark(-93, "steps", 0)]
    for workers in (late, early):
        found = rising(in_order(driver, {0: workers}))
        assert [one.state for one in found] == [
            "start",
            "start",
            "waiting",
            "start",
            "restore",
            "steps",
            "down",
        ]
        assert found[-1].at_ms == 9000


def test_marks_are_read_as_they_were_written_and_a_torn_line_is_left_out(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    driver = Timeline(folder, 1)
    driver.mark("start", why="submitted")
    driver.mark("start", workers=0)
    clock = Clock()
    worker = WorkerTimeline(clock, folder, worker_file(1, 0))
    worker.enter("restore")
    worker.enter("steps", 0)
    clock.spent["evaluate"] += 0.25
    worker.steps(3)  # too soon
    worker.enter("checkpoint", 7)
    with (tmp_path / "run" / "timeline" / worker_file(1, 0)).open("ab") as file:
        file.write(b'{"at_ms": 17')
    end_ms = driver.mark("down", lost="down")
    marks = read_timeline(folder)
    assert [one.state for one in marks] == ["start", "start", "restore", "steps", "checkpoint", "down"]
    assert (marks[4].step, marks[4].spent, marks[5].lost) == (7, {"evaluation": 0.25}, "down")
    found = measure_goodput(folder, end_ms)
    assert found is not None
    assert [one.why for one in found.attempts] == ["submitted"]
    assert found.attempts[0].step == 0


def test_a_run_of_an_earlier_version_has_no_goodput(tmp_path):
    assert measure_goodput(RunFolder(str(tmp_path)), 1000) is None


def started(at_s, size, why=""):
    return mark(at_s, "start", workers=0, size=size, why=why)


def test_a_resize_is_a_start_with_another_number_of_workers_that_came_to_a_step():
    marks = [
        SUBMITTED, started(1, 2), mark(8, "restore"), mark(10, "steps", 0), mark(20, "steps", 10),
        mark(21, "down", lost="down"), started(23, 1, "lost worker; with 1 instead of 2 workers"),
        mark(30, "restore"), mark(31, "steps", 5), mark(40, "steps", 12), mark(41, "down", 12),
        started(42, 2, "interrupted: there is room"), mark(43, "down", lost="down"),  # they found no place
        started(45, 1, "the room was taken"), mark(50, "restore"), mark(51, "steps", 12),
        mark(60, "down", lost="down"), mark(61, "start", why="the driver died"),
        started(62, 2), mark(70, "restore"), mark(71, "steps", 12),
    ]  # fmt: skip
    assert resizes(marks) == [
        Resize(at_ms=31000, step=5, before=2, workers=1, why="lost worker; with 1 instead of 2 workers"),
        Resize(at_ms=71000, step=12, before=1, workers=2, why="the driver died"),
    ]


def test_workers_in_a_fixed_number_have_no_resizes():
    assert resizes([*BEGUN, *again(34, 10)]) == []


def test_the_size_of_a_start_is_read_as_it_was_written(place):
    folder = RunFolder(place)
    timeline = Timeline(folder, 1)
    timeline.mark("start", why="submitted")
    timeline.mark("start", workers=0, size=3)
    timeline.mark("start", workers=1)
    assert [one.size for one in read_timeline(folder)] == [None, 3, None]
