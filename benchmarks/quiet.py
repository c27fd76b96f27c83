"""Timing on a machine that others use too: wait until it is quiet, and time again what was disturbed.

What others use is the CPU time of the whole machine less that of this process and all that descend from it. A
timing that they disturbed is taken again, peer's and ours alike, whatever it came to.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

SAMPLE_S = 0.5
TOLERATED = 0.10  # share of all CPUs that others may use while something is timed
ATTEMPTS = 3


@dataclass(frozen=True)
class Timing:
    """A measured value, and the wall clock's window in which it was measured."""

    value: float
    since_s: float
    until_s: float


class Quiet:
    """Takes timings and remembers how much others disturbed those it kept.

    Attributes:
        patience_s: how long each timing waits for a quiet machine; 0 takes every timing as it comes, once.
    """

    patience_s = 180.0

    def __init__(self) -> None:
        self.disturbances: list[float] = []
        self._repeated = 0

    def value(self, measure: Callable[[], Timing]) -> float:
        """Return the value of the first timing on a quiet machine, or of the one with the least disturbance."""
        kept: tuple[float, Timing] | None = None
        for attempt in range(ATTEMPTS):
            wait_for_quiet(self.patience_s)
            with Neighbours() as neighbours:
                timing = measure()
            share = neighbours.share(timing.since_s, timing.until_s)
            if kept is None or share < kept[0]:
                kept = (share, timing)
            if share <= TOLERATED or not self.patience_s:
                break
            if attempt + 1 < ATTEMPTS:
                self._repeated += 1
                print(f"others used {share:.0%} of the machine: measured again", file=sys.stderr, flush=True)
        assert kept is not None
        self.disturbances.append(kept[0])
        return kept[1].value

    @property
    def note(self) -> str:
        """A sentence for the report."""
        return (
            f"Other people's processes used {max(self.disturbances):.0%} of the machine at most during a timing "
            f"that was kept; {self._repeated} were disturbed by more than {TOLERATED:.0%} and taken again."
        )


class Neighbours:
    """Samples what others use, while it is open."""

    def __init__(self) -> None:
        self._own: dict[tuple[int, float], float] = {}  # CPU seconds by process; of those that ended too
        self._samples = [self._sample()]
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Neighbours":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()
        self._samples.append(self._sample())

    def share(self, since_s: float, until_s: float) -> float:
        """Return which share of all CPUs others used within a window."""
        before = [sample for sample in self._samples if sample[0] <= since_s] or self._samples[:1]
        after = [sample for sample in self._samples if sample[0] >= until_s] or self._samples[-1:]
        (first_s, first_all, first_own), (last_s, last_all, last_own) = before[-1], after[0]
        others_s = (last_all - first_all) - (last_own - first_own)
        return max(0.0, others_s / max(last_s - first_s, 1e-9) / (os.cpu_count() or 1))

    def _work(self) -> None:
        while not self._quit.wait(SAMPLE_S):
            self._samples.append(self._sample())

    def _sample(self) -> tuple[float, float, float]:
        """Return the time, and the CPU seconds spent so far by the machine and by this process's family."""
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                self._own[process.pid, process.create_time()] = spent.user + spent.system
        total = psutil.cpu_times()
        return time.time(), total.user + total.nice + total.system, sum(self._own.values())


def wait_for_quiet(patience_s: float) -> None:
    """Return once others leave the machine alone for two seconds, or when patience ends."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        with Neighbours() as neighbours:
            time.sleep(2)
        if neighbours.share(0.0, time.time()) <= TOLERATED:
            return
