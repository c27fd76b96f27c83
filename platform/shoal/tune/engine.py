"""The order of a sweep: which trial runs next, and when a report of one may be judged. No Ray, no clock, no files.

A sweep is a pure function of its points and of what its trials report. To keep it one whatever the number of
trials side by side, a scheduler that compares a trial with those before it (ASHA, median stopping) hears reports
in the order in which a sweep of one trial at a time would bring them: the report of trial n at iteration t is
judged once every earlier trial has been judged at t or has ended. A searcher that learns (Optuna) hears of points in
their order, and point n is asked for knowing exactly the points up to n - lag, whichever end first.

A sweep that is resumed runs through the very same steps. Reports which an earlier attempt left in a trial's journal are
looked at before the trial is run, so that what was done is not done again.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from shoal.tune.space.domains import Point

# How far behind the newest point a searcher is kept: so many trials may run side by side and not change a point.
LAG = 8

Decision = Literal["continue", "stop", "pause"]
Status = Literal["PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"]  # Ray Tune's words


@dataclass(frozen=True)
class Report:
    """What a trial measured at an evaluation."""

    iteration: int  # evaluations so far, from 1
    step: int
    value: float


@dataclass(eq=False)
class Trial:
    """One trial, as the engine sees it."""

    number: int
    point: Point
    point_number: int
    repeat: int = 0
    status: Status = "PENDING"
    is_busy: bool = False  # a process is at it
    reports: list[Report] = field(default_factory=list)  # judged ones
    recorded: deque[Report] = field(default_factory=deque)  # of an earlier attempt, not yet judged
    recorded_end: str | None = None  # how it ended in an earlier attempt
    outcome: str | None = None  # finished, stopped, infeasible, failed, killed

    @property
    def name(self) -> str:
        return f"t{self.number:04d}"

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None

    @property
    def iteration(self) -> int:
        return self.reports[-1].iteration if self.reports else 0

    @property
    def value(self) -> float | None:
        return self.reports[-1].value if self.reports else None


@dataclass(frozen=True)
class Clone:
    """A trial goes on from another's weights at a point of its own (population based training)."""

    trial: Trial
    source: Trial
    report: Report  # the source's, at which both stand
    point: Point


class Scheduler(Protocol):
    """What the engine asks of a scheduler; `shoal.cluster.tune_schedulers` has Ray Tune's."""

    waits_for_decision: bool  # whether trials wait for a verdict at each evaluation
    is_ordered: bool  # whether a verdict depends on which trials were heard before

    def add(self, trial: Trial) -> None: ...

    def decide(self, trial: Trial, report: Report) -> Decision: ...

    def complete(self, trial: Trial, report: Report) -> None:
        """Hear that a trial came to its end."""
        ...

    def drop(self, trial: Trial) -> None:
        """Hear that a trial failed."""
        ...

    def choose(self) -> Trial | None:
        """Return the next of the pending and paused trials to run."""
        ...

    def take_stopped(self) -> list[Trial]:
        """Return the paused trials that it gave up since the last call."""
        ...

    def take_clones(self) -> list[Clone]:
        """Return the exchanges that it ordered since the last call."""
        ...


class Search(Protocol):
    """Where points come from, one by one."""

    total: int
    learns: bool  # whether a point depends on what earlier ones came to

    def suggest(self, number: int) -> Point: ...

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        """Hear what the repeats of a point came to; None for one that failed."""
        ...


class Planned:
    """Points that are all known beforehand."""

    learns = False

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points
        self.total = len(points)

    def suggest(self, number: int) -> Point:
        return dict(self._points[number])

    def tell(self, number: int, values: Sequence[float | None]) -> None:
        pass


class Engine:
    """Holds the trials of a sweep and says what to do next."""

    def __init__(
        self,
        search: Search,
        scheduler: Scheduler,
        repeat: int = 1,
        lag: int = LAG,
        restore: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        """Set up a sweep.

        Args:
            lag: how many points behind a searcher that learns is kept, at least the number of trials side by side.
            restore: fills a new trial's `recorded` and `recorded_end` from an earlier attempt.
        """
        self.trials: list[Trial] = []
        self.clones: list[Clone] = []
        self.is_impatient = False  # whether trials that nobody can run are no longer waited for
        self._search, self._scheduler, self._repeat, self._restore = search, scheduler, repeat, restore
        self._lag = lag
        self._told = 0
        self._waiting: list[tuple[Trial, Report, bool]] = []
        self._closed = False

    @property
    def total(self) -> int:
        return self._search.total * self._repeat

    @property
    def has_ended(self) -> bool:
        is_complete = self._closed or len(self.trials) == self.total
        return is_complete and not self._waiting and all(trial.has_ended for trial in self.trials)

    def close(self, outcome: str) -> None:
        """Ask for no further points, and end what has not begun or is paused."""
        self._closed = True
        for trial in self.trials:
            if not trial.has_ended and not trial.is_busy:
                self._end(trial, outcome)
        self._waiting = [entry for entry in self._waiting if not entry[0].has_ended]

    def choose(self) -> Trial | None:
        """Return the next trial to run, marked as running; None when there is none at present."""
        self._fill()
        if self.clones or self._closed:
            return None
        trial = self._scheduler.choose()
        if trial is None or trial.is_busy:
            return None
        trial.status, trial.is_busy = "RUNNING", True
        return trial

    def report(self, trial: Trial, report: Report, is_last: bool = False) -> None:
        """Hear a report that waits for its verdict; the last one of a trial waits for none."""
        self._waiting.append((trial, report, is_last))

    def decisions(self) -> list[tuple[Trial, Decision]]:
        """Return the verdicts that can be given now."""
        given: list[tuple[Trial, Decision]] = []
        is_moving = True
        while is_moving:
            is_moving = False
            for entry in sorted(self._waiting, key=lambda entry: (entry[1].iteration, entry[0].number)):
                trial, report, is_last = entry
                if not self._may_judge(trial, report):
                    continue
                is_moving = True
                self._waiting.remove(entry)
                trial.reports.append(report)
                if is_last:
                    self._finish(trial)
                else:
                    decision = self._scheduler.decide(trial, report)
                    trial.status = "PAUSED" if decision == "pause" else trial.status
                    given.append((trial, decision))
                self._collect()
        return given

    def release(self, trial: Trial) -> None:
        """Hear that no process is at a trial any more: it was paused, or its process was lost."""
        trial.is_busy = False
        if trial.status == "RUNNING":
            trial.status = "PENDING"
        self._waiting = [entry for entry in self._waiting if entry[0] is not trial]

    def stop(self, trial: Trial) -> None:
        """Hear that a trial which was told to stop did so."""
        self._end(trial, "stopped")

    def fail(self, trial: Trial, outcome: str) -> None:
        """Hear that a trial failed (`failed`, `infeasible`) or was ended (`killed`)."""
        self._waiting = [entry for entry in self._waiting if entry[0] is not trial]
        trial.status = "ERROR"
        self._scheduler.drop(trial)
        self._end(trial, outcome)
        self._collect()

    def take_clones(self) -> list[Clone]:
        """Return the exchanges to carry out, once no process is at any trial they touch; until then nothing starts."""
        if any(clone.trial.is_busy or clone.source.is_busy for clone in self.clones):
            return []
        taken, self.clones = self.clones, []
        return taken

    def _finish(self, trial: Trial) -> None:
        self._scheduler.complete(trial, trial.reports[-1])
        self._end(trial, "finished")

    def _end(self, trial: Trial, outcome: str) -> None:
        trial.outcome, trial.is_busy = outcome, False
        trial.status = "TERMINATED" if trial.status != "ERROR" else "ERROR"

    def _collect(self) -> None:
        """Take over what the scheduler decided about other trials than the one it was asked about."""
        for trial in self._scheduler.take_stopped():
            self._end(trial, "stopped")
        self.clones += self._scheduler.take_clones()

    def _may_judge(self, trial: Trial, report: Report) -> bool:
        if not self._scheduler.is_ordered:
            return True
        return all(
            other.has_ended
            or other.iteration >= report.iteration
            or (self.is_impatient and not other.is_busy)
            for other in self.trials[: trial.number]
        )

    def _fill(self) -> None:
        """Ask for the points that may be asked for now."""
        while not self._closed and len(self.trials) < self.total:
            number = len(self.trials) // self._repeat
            if not self._tell_up_to(number - self._lag):
                return
            point = self._search.suggest(number)
            for repeat in range(self._repeat):
                trial = Trial(len(self.trials), dict(point), number, repeat)
                self.trials.append(trial)
                self._restore(trial)
                self._scheduler.add(trial)

    def _tell_up_to(self, number: int) -> bool:
        """Tell a searcher that learns of the points up to one, in their order; False if they have not all ended."""
        while self._search.learns and self._told <= number:
            first = self._told * self._repeat
            trials = self.trials[first : first + self._repeat]
            if not all(trial.has_ended for trial in trials):
                return False
            is_measured = ("finished", "stopped")
            self._search.tell(
                self._told, [trial.value if trial.outcome in is_measured else None for trial in trials]
            )
            self._told += 1
        return True
