"""Where the seconds of a training go, and what a worker does at the moment."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

# What time is spent on: training proper, and what comes besides.
BUSY = ("data", "compute", "gradient_sync")
BESIDES = ("evaluate", "checkpoint", "tracking")
MOST_STEPS = 500  # whose losses wait to be summed
STORAGE = "storage"  # the section in which a disk or an object store is waited for


@dataclass
class Clock:
    """Seconds by what they were spent on, and the section that a worker is in.

    Another thread may look at the section meanwhile (`shoal.cluster.status_board` says it to the driver).

    Attributes:
        at: the section, and since when (`time.perf_counter`); replaced in one write.
        slowest: seconds of the longest stay in each section that has been left.
        step: of the section.
        finite_step: the last whose loss, over all workers, is known to be finite.
    """

    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    at: tuple[str, float] = field(default_factory=lambda: ("start", time.perf_counter()))
    slowest: dict[str, float] = field(default_factory=dict)
    step: int = 0
    finite_step: int = 0
    _sizes: set[int] = field(default_factory=set)

    def enter(self, section: str) -> float:
        """Leave the section before for this one; return the time, of `time.perf_counter`."""
        now = time.perf_counter()
        before, since = self.at
        if now - since > self.slowest.get(before, -1.0):
            self.slowest[before] = now - since
        self.at = (section, now)
        return now

    def enter_step(self, step: int, samples: int) -> float:
        """Begin an optimizer step; return the time.

        The first with so many samples is a section of its own: there kernels are chosen and graphs compiled.
        """
        self.step = step
        if samples in self._sizes:
            return self.enter("step")
        self._sizes.add(samples)
        return self.enter("first step")

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count seconds for a name, which is the section meanwhile; the one around it goes on afterwards."""
        outer = self.at[0]
        since = self.enter(name)
        yield
        self.spent[name] += self.enter(outer) - since

    @property
    def own_s(self) -> float:
        """Seconds of this worker's own work, without waits for others; any thread may ask."""
        return self.spent.get("data", 0.0) + self.spent.get("compute", 0.0)

    @property
    def busy_s(self) -> float:
        """Seconds of training proper, without evaluation, checkpoints and metric log."""
        return sum(self.spent[name] for name in BUSY)

    def shares(self, seconds: float) -> dict[str, float]:
        """Return the shares of `seconds` by what they were spent on."""
        return {name: self.spent[name] / max(seconds, 1e-9) for name in (*BUSY, *BESIDES)}


class Rate:
    """How many steps fit into a time, from how long the last ones took."""

    def __init__(self) -> None:
        self._since: float | None = None

    def steps_per(self, seconds: float, steps: int) -> int:
        now = time.perf_counter()
        since, self._since = self._since, now
        if since is None:
            return 1
        return max(1, min(MOST_STEPS, int(seconds * steps / max(now - since, 1e-9))))
