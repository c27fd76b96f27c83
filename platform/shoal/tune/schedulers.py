"""Which trials are stopped early: no rule, successive halving (ASHA), the median rule.

They decide as Ray Tune's `ASHAScheduler` and `MedianStoppingRule` do, which a test compares with them. Those go through
the results of all trials at each report; here each result is put in its place once. The schedulers that pause trials
are Ray Tune's own (`shoal.cluster.tune_schedulers`).
"""

import math
from bisect import insort
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from shoal.training.loop import Decision
from shoal.tune.engine import PendingExploit, Report, Trial
from shoal.tune.trials import Mode

# The median rule stops no trial before so many others have reported: Ray Tune's default.
MEDIAN_SAMPLES = 3


class Fifo:
    """No early stopping: trials run in their order, each to its end. The base of schedulers that pause none."""

    is_ordered = False

    def __init__(self) -> None:
        self._waiting: deque[Trial] = deque()
        self._begun: list[Trial] = []  # and not ended: one of them waits again when its process was lost

    def add(self, trial: Trial) -> None:
        self._waiting.append(trial)

    def decide(self, trial: Trial, report: Report) -> Decision:
        return "continue"

    def complete(self, trial: Trial, report: Report) -> None:
        pass

    def drop(self, trial: Trial) -> None:
        pass

    def choose(self) -> Trial | None:
        self._begun = [trial for trial in self._begun if not trial.has_ended]
        for trial in self._begun:
            if trial.status in ("PENDING", "PAUSED"):
                return trial
        while self._waiting:
            trial = self._waiting.popleft()
            if not trial.has_ended:
                self._begun.append(trial)
                return trial
        return None

    def take_stopped(self) -> list[Trial]:
        return []

    def take_exploits(self) -> list[PendingExploit]:
        return []


class Asha(Fifo):
    """Asynchronous successive halving (Li et al. 2018): a rung's worse trials end there."""

    is_ordered = True

    def __init__(self, mode: Mode, first: int, last: int, factor: int) -> None:
        """Set up.

        Args:
            first: evaluation of the lowest rung.
            last: evaluation at which every trial ends.
            factor: how many times higher each next rung is, and of how many trials one goes on.
        """
        super().__init__()
        self._sign = 1.0 if mode == "max" else -1.0
        self._last, self._share = last, (1 - 1 / factor) * 100 / 100  # rounded as a percentile is
        count = int(np.log(last / first) / np.log(factor) + 1)
        self._rungs = [_Rung(first * factor**number) for number in reversed(range(count))]

    def decide(self, trial: Trial, report: Report) -> Decision:
        if report.iteration < self._last and not self._loses(trial, report):
            return "continue"
        self._forget(trial)
        return "stop"

    def complete(self, trial: Trial, report: Report) -> None:
        self._loses(trial, report)
        self._forget(trial)

    def drop(self, trial: Trial) -> None:
        self._forget(trial)

    def _loses(self, trial: Trial, report: Report) -> bool:
        """Record a report in the highest rung that the trial has reached; whether its value is below the cutoff."""
        for rung in self._rungs:
            if report.iteration >= rung.iteration and trial not in rung.trials:
                value = self._sign * report.value
                cutoff = quantile(rung.values, self._share)
                rung.trials.add(trial)
                if not math.isnan(value):
                    insort(rung.values, value)
                return value < cutoff
        return False

    def _forget(self, trial: Trial) -> None:
        for rung in self._rungs:
            rung.trials.discard(trial)


class _Rung:
    """The values of the trials that have reached an evaluation, in order.

    Attributes:
        trials: those of them that have not ended.
    """

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration
        self.trials: set[Trial] = set()
        self.values: list[float] = []


class MedianStopping(Fifo):
    """The median rule (Golovin et al. 2017): a trial ends if its best is worse than the median of others' means."""

    is_ordered = True

    def __init__(self, mode: Mode, first: int) -> None:
        """Set up; `first` is the evaluation from which on trials are stopped, and from which means are taken."""
        super().__init__()
        self._better = max if mode == "max" else min
        self._first = first
        self._values: dict[Trial, list[float]] = {}  # of the trials that have not ended
        self._means: dict[int, list[float]] = defaultdict(list)  # by evaluation, in order

    def decide(self, trial: Trial, report: Report) -> Decision:
        others = self._means[report.iteration]
        middle = median(others) if len(others) >= MEDIAN_SAMPLES else None
        values = self._add(trial, report)
        if report.iteration < self._first or middle is None:
            return "continue"
        best = self._better(values)
        if self._better(middle, best) == best:
            return "continue"
        del self._values[trial]
        return "stop"

    def complete(self, trial: Trial, report: Report) -> None:
        self._add(trial, report)
        del self._values[trial]

    def drop(self, trial: Trial) -> None:
        self._values.pop(trial, None)

    def _add(self, trial: Trial, report: Report) -> list[float]:
        values = self._values.setdefault(trial, [])
        values.append(report.value)
        if report.iteration >= self._first:
            mean = float(np.mean(values[-(report.iteration - self._first + 1) :]))
            if math.isfinite(mean):
                insort(self._means[report.iteration], mean)
        return values


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return what `numpy.quantile` returns for values that are in order: linear between two of them; NaN of none."""
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    below, above, part = ordered[low], ordered[min(low + 1, len(ordered) - 1)], place - low
    return below + (above - below) * part if part < 0.5 else above - (above - below) * (1 - part)


def median(ordered: Sequence[float]) -> float:
    """Return the median of values that are in order."""
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
