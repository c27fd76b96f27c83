"""The order of a sweep: which trial runs next, and when its report is decided on. No Ray, no clock, no files.

A sweep is a pure function of its points and of what its trials report, whatever the number of trials side by side. For
that, a scheduler that compares a trial with those before it (ASHA, median stopping) receives reports in the order in
which a sweep of one trial at a time would bring them: the report of trial n at iteration t is decided on once every
earlier trial has been decided on at t or has ended. A search that learns (Optuna) receives the results of points in
their order, and is asked for point n when it knows exactly the points up to n - lag, whichever end first. So at most
`lag` of its points run side by side.

A trial at the same point and with the same seed as an earlier one would bring the same result: it waits for that one,
and takes its result.

A resumed sweep goes through the same steps. The reports that an earlier attempt left in a trial's journal are replayed
before the trial is run, so that nothing is trained twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from shoal.training.loop import Decision
from shoal.tune.space.domains import Point
from shoal.tune.space.sampling import point_key

TrialStatus = Literal["PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"]  # Ray Tune's words


@dataclass(frozen=True)
class Report:
    """An evaluation of a trial.

    Attributes:
        iteration: number of the evaluation, from 1.
        step: optimizer steps so far.
        value: of the metric that is tuned.
    """

    iteration: int
    step: int
    value: float


@dataclass(eq=False, slots=True)
class Trial:
    """One trial, as the engine sees it.

    Attributes:
        point_number, repeat: which point of the search, and which of its seeds.
        is_busy: whether a process works on it, or its records are replayed.
        reports: those that were decided on; of one that has ended, the last.
        recorded: reports of an earlier attempt that are not decided on yet.
        recorded_outcome: how it ended in an earlier attempt.
        was_begun: whether an earlier attempt trained it.
        same_as: the earlier trial at the same point, whose result it takes instead of being trained.
        outcome: finished, stopped, infeasible, failed, killed or reused, once it has ended.
    """

    number: int
    point: Point
    point_number: int
    repeat: int = 0
    status: TrialStatus = "PENDING"
    is_busy: bool = False
    reports: list[Report] = field(default_factory=list)
    recorded: list[Report] = field(default_factory=list)
    recorded_outcome: str | None = None
    was_begun: bool = False
    same_as: "Trial | None" = None
    outcome: str | None = None

    @property
    def name(self) -> str:
        return f"t{self.number:04d}"

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None

    @property
    def iteration(self) -> int:
        """The last evaluation that was decided on; 0 before the first."""
        return self.reports[-1].iteration if self.reports else 0

    @property
    def value(self) -> float | None:
        """The metric at that evaluation."""
        return self.reports[-1].value if self.reports else None

    @property
    def result(self) -> float | None:
        """The metric that it ended with; None for one that failed."""
        trial = self.same_as or self
        return trial.value if trial.outcome in ("finished", "stopped") else None


@dataclass(frozen=True)
class PendingExploit:
    """A trial shall go on from another's weights at a new point (population based training).

    Attributes:
        report: of the source, at the evaluation at which both are paused.
        point: the trial's new one.
    """

    trial: Trial
    source: Trial
    report: Report
    point: Point


class Scheduler(Protocol):
    """What the engine asks of a scheduler; `shoal.cluster.tune_schedulers` adapts Ray Tune's.

    Attributes:
        is_ordered: whether a decision depends on the reports before it, so that their order matters.
    """

    is_ordered: bool

    def add(self, trial: Trial) -> None: ...

    def decide(self, trial: Trial, report: Report) -> Decision: ...

    def complete(self, trial: Trial, report: Report) -> None:
        """Note the last report of a trial that finished."""
        ...

    def drop(self, trial: Trial) -> None:
        """Note that a trial failed."""
        ...

    def choose(self) -> Trial | None:
        """Return the next of the pending and paused trials to run."""
        ...

    def take_stopped(self) -> list[Trial]:
        """Return the paused trials that it stopped since the last call."""
        ...

    def take_exploits(self) -> list[PendingExploit]:
        """Return the exploits that it decided on since the last call."""
        ...


class Search(Protocol):
    """Where points come from, one by one.

    Attributes:
        learns: whether a point depends on the results of earlier ones.
    """

    total: int
    learns: bool

    def suggest(self, number: int) -> Point: ...

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        """Report the values of a point's repeats; None for one that failed."""
        ...


class PlannedSearch:
    """A search of points that are all known in advance."""

    learns = False

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points
        self.total = len(points)

    def suggest(self, number: int) -> Point:
        return dict(self._points[number])

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        pass


class Engine:
    """Holds the trials of a sweep and says what to do next.

    Attributes:
        trials: those that have been asked for, by number.
        ended: how many of them have ended.
        is_impatient: set by the driver when nothing has moved for long: reports then no longer wait for trials that
            no process works on.
    """

    def __init__(
        self,
        search: Search,
        scheduler: Scheduler,
        repeat: int = 1,
        lag: int = 8,
        restore: Callable[[Trial], None] = lambda trial: None,
        reuse: bool = True,
    ) -> None:
        """Set up a sweep.

        Args:
            repeat: trials per point, with different seeds.
            lag: how many points behind a search that learns is kept.
            restore: fills in what an earlier attempt left of a new trial: `recorded`, `recorded_outcome`, `was_begun`.
            reuse: whether a trial at the point and seed of an earlier one takes its result instead of being trained.
        """
        self.trials: list[Trial] = []
        self.ended = 0
        self.is_impatient = False
        self._search, self._scheduler, self._repeat, self._restore = search, scheduler, repeat, restore
        self._lag = lag
        self._points_reported = 0
        self._undecided: list[tuple[Trial, Report, bool]] = []  # at most one of each busy trial
        self._first_open = 0  # all trials before this one need not be waited for
        self._stopped: list[Trial] = []
        self._exploits: list[PendingExploit] = []
        self._is_closed = False
        self._reuse = reuse
        self._by_point: dict[tuple[str, int], Trial] = {}
        self._followers: dict[Trial, list[Trial]] = {}  # trials that take another's result
        self._reused: list[Trial] = []

    @property
    def total(self) -> int:
        return self._search.total * self._repeat

    @property
    def has_all_points(self) -> bool:
        """Whether no further point will be asked for."""
        return self._is_closed or len(self.trials) == self.total

    @property
    def has_ended(self) -> bool:
        return self.has_all_points and not self._undecided and self.ended == len(self.trials)

    def close(self, outcome: str) -> None:
        """Ask for no further points, and end what has not begun or is paused."""
        self._is_closed = True
        for trial in self.trials:
            if not trial.has_ended and not trial.is_busy:
                self._end(trial, outcome)
        self._undecided = [entry for entry in self._undecided if not entry[0].has_ended]

    def choose(self) -> Trial | None:
        """Return the next trial to run, marked as running; None when there is none at present."""
        self._add_trials()
        if self._exploits or self._is_closed:
            return None
        trial = self._scheduler.choose()
        if trial is None or trial.is_busy:
            return None
        trial.status, trial.is_busy = "RUNNING", True
        return trial

    def report(self, trial: Trial, report: Report, is_last: bool = False) -> None:
        """Take a report, which waits for its decision; with its last one a trial is finished."""
        self._undecided.append((trial, report, is_last))

    def decisions(self) -> list[tuple[Trial, Decision]]:
        """Return the decisions that can be made now."""
        decided: list[tuple[Trial, Decision]] = []
        has_moved = True
        while has_moved:
            has_moved = False
            for entry in sorted(self._undecided, key=lambda entry: (entry[1].iteration, entry[0].number)):
                trial, report, is_last = entry
                if not self._may_decide(trial, report):
                    continue
                has_moved = True
                self._undecided.remove(entry)
                trial.reports.append(report)
                if is_last:
                    self._finish(trial)
                else:
                    decision = self._scheduler.decide(trial, report)
                    trial.status = "PAUSED" if decision == "pause" else trial.status
                    decided.append((trial, decision))
                self._collect()
        return decided

    def release(self, trial: Trial) -> None:
        """Note that no process works on a trial any more: it was paused, or its process was lost."""
        trial.is_busy = False
        if trial.status == "RUNNING":
            trial.status = "PENDING"
        self._undecided = [entry for entry in self._undecided if entry[0] is not trial]

    def stop(self, trial: Trial) -> None:
        """Note that a trial has ended as its scheduler decided."""
        self._end(trial, "stopped")

    def fail(self, trial: Trial, outcome: str) -> None:
        """Note that a trial failed (`failed`, `infeasible`) or was interrupted (`killed`)."""
        self._undecided = [entry for entry in self._undecided if entry[0] is not trial]
        trial.status = "ERROR"
        self._scheduler.drop(trial)
        self._end(trial, outcome)
        self._collect()

    def take_exploits(self) -> list[PendingExploit]:
        """Return the exploits to carry out, once no process works on any of their trials; until then nothing starts."""
        if any(pending.trial.is_busy or pending.source.is_busy for pending in self._exploits):
            return []
        taken, self._exploits = self._exploits, []
        return taken

    def take_stopped(self) -> list[Trial]:
        """Return the trials that the scheduler stopped while they were paused, since the last call."""
        taken, self._stopped = self._stopped, []
        return taken

    def take_reused(self) -> list[Trial]:
        """Return the trials that took another's result since the last call."""
        taken, self._reused = self._reused, []
        return taken

    def _finish(self, trial: Trial) -> None:
        self._scheduler.complete(trial, trial.reports[-1])
        self._end(trial, "finished")

    def _end(self, trial: Trial, outcome: str) -> None:
        self.ended += trial.outcome is None
        trial.outcome, trial.is_busy = outcome, False
        del trial.reports[:-1]
        trial.status = "TERMINATED" if trial.status != "ERROR" else "ERROR"
        if outcome != "killed":  # one that was killed goes on in the next attempt
            for follower in self._followers.pop(trial, ()):
                self._take_result(follower, trial)

    def _take_result(self, trial: Trial, source: Trial) -> None:
        trial.reports, trial.outcome, trial.status = source.reports, "reused", "TERMINATED"
        self.ended += 1
        self._reused.append(trial)

    def _collect(self) -> None:
        """Take what the scheduler decided about other trials than the one it was asked about."""
        for trial in self._scheduler.take_stopped():
            self._end(trial, "stopped")
            self._stopped.append(trial)
        self._exploits += self._scheduler.take_exploits()

    def _may_decide(self, trial: Trial, report: Report) -> bool:
        """Whether every earlier trial has been decided on at this iteration or has ended."""
        if not self._scheduler.is_ordered:
            return True
        trials = self.trials
        while self._first_open < trial.number and _is_decided(trials[self._first_open]):
            self._first_open += 1
        return all(
            _is_decided(trials[number])
            or trials[number].iteration >= report.iteration
            or (self.is_impatient and not trials[number].is_busy)
            for number in range(self._first_open, trial.number)
        )

    def _add_trials(self) -> None:
        """Ask for the points that may be asked for now."""
        while not self._is_closed and len(self.trials) < self.total:
            number = len(self.trials) // self._repeat
            if not self._tell_up_to(number - self._lag):
                return
            point = self._search.suggest(number)
            for repeat in range(self._repeat):
                trial = Trial(len(self.trials), dict(point), number, repeat)
                self.trials.append(trial)
                self._restore(trial)
                self._add(trial)

    def _add(self, trial: Trial) -> None:
        """Give a trial to the scheduler, unless an earlier one has the same point and seed."""
        first = self._by_point.setdefault((point_key(trial.point), trial.repeat), trial)
        if first is trial or trial.was_begun or not self._reuse:
            self._scheduler.add(trial)
            return
        trial.same_as = first
        if first.outcome in (None, "killed"):
            self._followers.setdefault(first, []).append(trial)
        else:
            self._take_result(trial, first)

    def _tell_up_to(self, number: int) -> bool:
        """Tell a search that learns the results of the points up to one; False if they have not all ended."""
        while self._search.learns and self._points_reported <= number:
            first = self._points_reported * self._repeat
            trials = self.trials[first : first + self._repeat]
            if not all(trial.has_ended for trial in trials):
                return False
            self._search.tell(self._points_reported, [trial.result for trial in trials])
            self._points_reported += 1
        return True


def _is_decided(trial: Trial) -> bool:
    """Whether no report of a trial will be decided on any more."""
    return trial.has_ended or trial.same_as is not None
