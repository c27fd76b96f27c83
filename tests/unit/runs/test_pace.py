"""Which worker is slow, from what workers say of their own work."""

import pytest

from shoal.runs.hang import WorkerStatus
from shoal.runs.pace import STEPS, WINDOW_S, Pace


def said(step, *busy_s, section="step"):
    return [
        WorkerStatus(rank, f"w{rank}", "n", 1, "", section, step, 0.0, 0.0, busy_s=own)
        for rank, own in enumerate(busy_s)
    ]


def looks(own_s, steps=STEPS, every_s=WINDOW_S, count=4):
    """Let workers work for some windows, and return all lines."""
    pace, lines = Pace(), []
    for number in range(count):
        step = 1 + number * steps
        lines += pace.slow(said(step, *(step * own for own in own_s)), len(own_s), number * every_s)
    return lines


def test_a_worker_that_takes_twice_as_long_is_named_once():
    [line] = looks([0.010, 0.021, 0.012])
    assert line.startswith(
        "worker 1 on w1 takes 21 ms for its own work of a step, 2.1 times as long as worker 0 on w0"
    )
    assert f"over {STEPS} steps" in line


@pytest.mark.parametrize(
    ("own_s", "options"),
    [
        ([0.010, 0.019], {}),
        ([0.010], {}),
        ([0.0, 0.0], {}),
        ([0.0001, 0.0009], {}),
        ([0.010, 0.030], {"count": 2}),  # the first window warms up
        ([0.010, 0.030], {"steps": STEPS - 1, "every_s": WINDOW_S / 4, "count": 4}),
        ([0.010, 0.030], {"every_s": WINDOW_S / 10, "count": 6}),
    ],
)
def test_nobody_is_named_for_less(own_s, options):
    assert looks(own_s, **options) == []


def test_a_worker_that_has_not_begun_is_waited_for():
    pace = Pace()
    for number in range(4):
        step, at_s = 1 + number * STEPS, number * WINDOW_S
        assert pace.slow(said(step, 0.01 * step, 0.03 * step), 3, at_s) == []
        assert pace.slow(said(step, 0.01 * step, 0.03 * step, section="ended"), 2, at_s) == []
