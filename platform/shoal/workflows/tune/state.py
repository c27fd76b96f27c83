"""What the driver knows of a sweep's trials: the progress of those at work, rows and counts of those that ended.

It starts, stops and writes nothing. What it does at an event does not depend on the number of trials.
"""

import dataclasses
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from shoal.runs.config import RunConfig
from shoal.storage.records import ErrorRecord, TrialRow
from shoal.storage.run_folder import TRIALS, RunFolder
from shoal.tune.config import SweepConfig
from shoal.tune.engine import Engine, Trial
from shoal.tune.trials import Ranking, points, ranked
from shoal.tune.validate import SweepPlan
from shoal.workflows.tune.trial_progress import TrialProgress


@dataclass(frozen=True)
class SweepStatus:
    """The progress of a sweep, for display.

    Attributes:
        newly_ended: rows of the trials that have ended since the status before.
        running: rows of the trials that run.
        ended: how many trials have ended.
        replayed: how many of these an earlier attempt had brought to their end.
        total: planned trials.
        seconds: since this attempt began.
        note: what is done after the last trial.
    """

    newly_ended: list[TrialRow]
    running: list[TrialRow]
    best: TrialRow | None
    ended: int
    replayed: int
    total: int
    metric: str
    seconds: float
    note: str = ""


Listener = Callable[[SweepStatus], None]


@dataclass(frozen=True, slots=True)
class _Ended:
    """A trial that has ended, in little memory: its row without the curve, and the curve."""

    row: TrialRow
    steps: "array[int]"
    values: "array[float]"
    seed: int


class SweepState:
    """The trials of a sweep.

    Attributes:
        progress: of the trials that have begun and not ended.
        replaying: those of them whose reports come from an earlier attempt's records.
        ranking: of those that ended.
        failure: the first trial and its error, while all that ended failed with the same one; None since one did not.
        engine: None until the cluster is connected.
        is_out_of_time: whether `tune.time_budget_s` has passed.
        attempt_started: as `time.monotonic` has it.
    """

    def __init__(self, plan: SweepPlan, folder: RunFolder, attempt_started: float) -> None:
        self.plan, self.folder, self.attempt_started = plan, folder, attempt_started
        self.config: SweepConfig = plan.config
        self.engine: Engine | None = None
        self.progress: dict[Trial, TrialProgress] = {}
        self.replaying: set[Trial] = set()
        self.failure: tuple[Trial, ErrorRecord] | None = None
        self.ranking = Ranking(self.config.mode, self.config.tune.repeat, self.config.tune.keep)
        self.is_out_of_time = False
        self._ended: dict[int, _Ended] = {}  # by number
        self._counts: Counter[str] = Counter()
        self._newly_ended: list[TrialRow] = []
        self._replayed = 0
        self._seconds_before: float | None = None

    @property
    def trials(self) -> list[Trial]:
        return self.engine.trials if self.engine else []

    @property
    def ended(self) -> int:
        """The number of trials that ended by themselves or by the scheduler, and need not run again."""
        return sum(trial.has_ended and trial.outcome != "killed" for trial in self.trials)

    def count(self, outcome: str | None = None) -> int:
        """Return how many trials are closed, or are closed with one outcome."""
        return self._counts.total() if outcome is None else self._counts[outcome]

    def end(self, trial: Trial) -> list[int]:
        """Take a trial whose records are closed; return the numbers of those that cannot be among the best any more."""
        progress = self.progress.pop(trial)
        row = progress.row(trial)
        curve = progress.curve
        self._ended[trial.number] = _Ended(
            dataclasses.replace(row, curve=()),
            array("q", [step for step, _ in curve]),
            array("d", [value for _, value in curve]),
            progress.config.seed,
        )
        self._note_failure(trial, progress, row.status)
        self.replaying.discard(trial)
        self._counts[row.status] += 1
        self._newly_ended.append(self._ended[trial.number].row)
        self._replayed += trial.recorded_outcome is not None
        return self.ranking.add(self._ended[trial.number].row)

    def _note_failure(self, trial: Trial, progress: TrialProgress, status: str) -> None:
        error = progress.error if status == "failed" else None
        if status == "reused":
            return
        if self.count() == self.count("reused"):  # the first one
            self.failure = (trial, error) if error else None
        elif self.failure:
            first = self.failure[1]
            if error is None or (error.type, error.where) != (first.type, first.where):
                self.failure = None

    def has_begun(self, trial: Trial) -> bool:
        return trial in self.progress or self.is_closed(trial)

    def is_closed(self, trial: Trial) -> bool:
        """Whether a trial has ended and its records are complete."""
        return trial.number in self._ended

    def last_value(self, trial: Trial) -> tuple[int, float] | None:
        """Return the last step of a trial that ended, and the metric by which it is ranked."""
        ended = self._ended[trial.number]
        metric = ended.row.metric
        return (ended.steps[-1], metric) if ended.steps and metric is not None else None

    def rows(self) -> list[TrialRow]:
        """Return a row for each trial that has begun, by number."""
        rows = {number: _with_curve(ended) for number, ended in self._ended.items()}
        rows |= {trial.number: progress.row(trial) for trial, progress in self.progress.items()}
        return [rows[number] for number in sorted(rows)]

    def ranked(self, rows: list[TrialRow]) -> list[TrialRow]:
        """Return the ranked ones of some rows, best first; of several seeds per point the means rank first."""
        if self.config.tune.repeat == 1:
            return ranked(rows, self.config.mode)
        place = {point.point: number for number, point in enumerate(points(rows, self.config.mode))}
        return sorted(ranked(rows, self.config.mode), key=lambda row: place.get(row.point, len(place)))

    def status(self, note: str = "") -> SweepStatus:
        """Return what is new since the status before."""
        newly_ended, self._newly_ended = self._newly_ended, []
        return SweepStatus(
            newly_ended=newly_ended,
            running=[
                progress.row(trial) for trial, progress in self.progress.items() if trial.status == "RUNNING"
            ],
            best=self.ranking.best,
            ended=self.count(),
            replayed=self._replayed,
            total=self.plan.total,
            metric=self.config.tune.metric,
            seconds=time.monotonic() - self.attempt_started,
            note=note,
        )

    def trial_config(self, trial: Trial) -> RunConfig:
        """Return a trial's config; the seed is that of the point at which it began."""
        if trial in self.progress:
            return self.progress[trial].config
        config = self.config.trial(trial.point, trial.repeat, trial.name)
        return config.replace({"seed": self._ended[trial.number].seed})

    def trial_folder(self, trial: Trial) -> RunFolder:
        return self.folder.inner(f"{TRIALS}/{trial.name}")

    def elapsed_s(self) -> float:
        """Return the seconds since the sweep began, over all attempts."""
        seconds = time.monotonic() - self.attempt_started
        if self._seconds_before is None:  # the clock may have been set back between two attempts
            since = time.time() - self.folder.identity().start_ms / 1000
            self._seconds_before = max(0.0, since - seconds)
        return self._seconds_before + seconds


def _with_curve(ended: _Ended) -> TrialRow:
    return dataclasses.replace(ended.row, curve=tuple(zip(ended.steps, ended.values, strict=True)))
