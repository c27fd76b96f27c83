"""Where the seconds of a training go."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

# What time is spent on: training proper, and what comes besides.
BUSY = ("data", "compute", "gradient_sync")
BESIDES = ("evaluate", "checkpoint", "tracking")


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - since

    @property
    def busy_s(self) -> float:
        """Seconds of training proper, without evaluation, checkpoints and metric log."""
        return sum(self.spent[name] for name in BUSY)

    def shares(self, seconds: float) -> dict[str, float]:
        """Return the shares of `seconds` by what they were spent on."""
        return {name: self.spent[name] / max(seconds, 1e-9) for name in (*BUSY, *BESIDES)}
