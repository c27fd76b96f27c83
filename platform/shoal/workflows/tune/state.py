"""What the driver knows of a sweep's trials: the engine's decisions and each trial's progress, as rows and counts.

It starts, stops and writes nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from shoal.storage.records import TrialRow
from shoal.storage.run_folder import TRIALS, RunFolder
from shoal.tune.config import SweepConfig
from shoal.tune.engine import Engine, Trial
from shoal.tune.trials import best, points, ranked
from shoal.tune.validate import SweepPlan
from shoal.workflows.tune.trial_progress import TrialProgress


@dataclass(frozen=True)
class SweepStatus:
    """The progress of a sweep, for display.

    Attributes:
        rows: of all trials that have begun.
        total: planned trials.
        seconds: since this attempt began.
        note: what is done after the last trial.
    """

    rows: list[TrialRow]
    best: TrialRow | None
    total: int
    running: int
    metric: str
    seconds: float
    note: str = ""


Listener = Callable[[SweepStatus], None]


class SweepState:
    """The trials of a sweep.

    Attributes:
        progress: of the trials that have begun.
        engine: None until the cluster is connected.
        is_out_of_time: whether `tune.time_budget_s` has passed.
        attempt_started: Unix seconds.
    """

    def __init__(self, plan: SweepPlan, folder: RunFolder, attempt_started: float) -> None:
        self.plan, self.folder, self.attempt_started = plan, folder, attempt_started
        self.config: SweepConfig = plan.config
        self.engine: Engine | None = None
        self.progress: dict[Trial, TrialProgress] = {}
        self.is_out_of_time = False
        self._start_s: float | None = None

    @property
    def trials(self) -> list[Trial]:
        return self.engine.trials if self.engine else []

    @property
    def ended(self) -> int:
        """The number of trials that ended by themselves or by the scheduler, and need not run again."""
        return sum(trial.has_ended and trial.outcome != "killed" for trial in self.trials)

    def rows(self) -> list[TrialRow]:
        """Return a row for each trial that has begun, by number."""
        return [self.progress[trial].row(trial) for trial in self.trials if trial in self.progress]

    def ranking(self) -> list[TrialRow]:
        """Return the ranked trials, best first; with several seeds per point, the points' means rank first."""
        rows = self.rows()
        if self.config.tune.repeat == 1:
            return ranked(rows, self.config.mode)
        place = {point.point: number for number, point in enumerate(points(rows, self.config.mode))}
        return sorted(ranked(rows, self.config.mode), key=lambda row: place.get(row.point, len(place)))

    def status(self, note: str = "") -> SweepStatus:
        rows = self.rows()
        return SweepStatus(
            rows=rows,
            best=best(rows, self.config.mode),
            total=self.plan.total,
            running=sum(row.status == "running" for row in rows),
            metric=self.config.tune.metric,
            seconds=time.time() - self.attempt_started,
            note=note,
        )

    def trial_folder(self, trial: Trial) -> RunFolder:
        return self.folder.inner(f"{TRIALS}/{trial.name}")

    def elapsed_s(self) -> float:
        """Return the seconds since the sweep began, over all attempts."""
        if self._start_s is None:
            self._start_s = self.folder.identity().start_ms / 1000
        return time.time() - self._start_s
