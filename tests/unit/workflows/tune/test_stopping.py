"""When a sweep interrupts its trials, on a real engine and run folder; the actors' part is scripted."""

import time
from collections import deque
from dataclasses import dataclass, field

import pytest

from shoal.cluster.actor_pool import Event
from shoal.cluster.session import RayWatch
from shoal.cluster.trial_actor import TrialEnded, TrialReport
from shoal.devices import CPU
from shoal.errors import Interrupted, TrainingError
from shoal.storage.records import ErrorRecord
from shoal.storage.run_folder import STOP, RunFolder
from shoal.tune.config import load_sweep
from shoal.tune.engine import Engine, Trial
from shoal.tune.schedulers import Fifo
from shoal.tune.validate import validate_sweep
from shoal.workflows.tune.state import SweepState
from shoal.workflows.tune.stopping import Stopping, stop_reason
from shoal.workflows.tune.trial_progress import TrialProgress


@dataclass
class ScriptedPool:
    """Trials that end when they are asked to."""

    busy: list[Trial] = field(default_factory=list)
    events: deque[tuple[Trial, Event]] = field(default_factory=deque)

    def interrupt(self, trial: Trial) -> None:
        self.events.append((trial, TrialEnded("interrupted", 1.0)))

    def wait(self, timeout_s: float) -> list[tuple[Trial, Event]]:
        return [self.events.popleft()] if self.events else []

    def holds(self, trial: Trial) -> bool:
        return trial in self.busy


class StopsPaused(Fifo):
    """Stops trials beside the one that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.stopped: list[Trial] = []

    def take_stopped(self) -> list[Trial]:
        taken, self.stopped = self.stopped, []
        return taken


class Sweep:
    """A sweep of four trials, two of which run."""

    def __init__(self, folder: RunFolder, *settings: str) -> None:
        config = load_sweep(None, ["data.source=sklearn:digits", "optim.lr=0.1,0.2,0.3,0.4", *settings])
        plan = validate_sweep(config, lambda scale, spare_cpus: CPU)
        self.scheduler = StopsPaused()
        self.engine, self.pool = Engine(plan.search(), self.scheduler), ScriptedPool()
        self.state = SweepState(plan, folder, attempt_started=0.0)
        self.state.engine = self.engine
        self.closed: dict[str, str | None] = {}
        self.was_noticed = False
        self.stopping = Stopping(self.state, self.engine, self.pool, self.handle, self.close, self.notice)
        self.first, self.second = self.start(), self.start()

    def start(self) -> Trial:
        trial = self.engine.choose()
        assert trial is not None
        folder = self.state.trial_folder(trial)
        folder.create()
        self.state.progress[trial] = TrialProgress(self.state.config.trial(trial.point), folder)
        return trial

    def handle(self, trial: Trial, event: Event) -> None:
        assert isinstance(event, TrialEnded)
        outcome = "killed" if event.how == "interrupted" else event.how
        self.state.progress[trial].error = event.error
        self.engine.fail(trial, outcome)
        self.close(trial, outcome)

    def fail(self, trial: Trial, message: str, where: str) -> None:
        event = TrialEnded("failed", 1.0, error=ErrorRecord(type="ValueError", message=message, where=where))
        self.handle(trial, event)
        self.stopping.check_failures(event)

    def close(self, trial: Trial, reason: str | None) -> None:
        self.closed[trial.name] = reason
        self.state.progress[trial].outcome = trial.outcome
        self.state.end(trial)

    def notice(self) -> None:
        self.was_noticed = True


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(str(tmp_path / "sweep"))
    folder.create()
    folder.acquire_lease()
    return folder


def test_the_stop_file_interrupts_the_running_trials_and_ends_the_sweep(folder):
    sweep = Sweep(folder)
    sweep.stopping.check_stop_file()
    assert not sweep.was_noticed
    folder.write(STOP, b"SIGINT")
    with pytest.raises(Interrupted, match="after 0 of 4 trials"):
        sweep.stopping.check_stop_file()
    assert sweep.was_noticed
    assert sweep.closed == {"t0000": "killed", "t0001": "killed"}
    assert sweep.state.trial_folder(sweep.first).read(STOP) == b"SIGTERM"


def test_trials_that_cannot_end_since_ray_did_are_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr(RayWatch, "gone_for_s", lambda self: 20.0)
    sweep = Sweep(folder)
    monkeypatch.setattr(sweep.pool, "wait", lambda timeout_s: [])
    folder.write(STOP, b"SIGTERM")
    since = time.monotonic()
    with pytest.raises(Interrupted, match="after 0 of 4 trials"):
        sweep.stopping.check_stop_file()
    assert time.monotonic() - since < 5
    assert not sweep.closed


def test_when_the_time_budget_ends_running_trials_are_interrupted_and_no_more_begin(folder):
    sweep = Sweep(folder, "tune.time_budget_s=1")
    sweep.stopping.check_time_budget()
    assert sweep.state.is_out_of_time
    assert sweep.closed == {"t0000": "killed", "t0001": "killed"}
    assert sweep.engine.choose() is None
    assert sweep.engine.has_ended
    sweep.stopping.check_time_budget()  # once


def test_within_the_time_budget_nothing_is_interrupted(folder):
    sweep = Sweep(folder, "tune.time_budget_s=1e12")
    sweep.stopping.check_time_budget()
    assert not sweep.closed


def test_three_trials_that_failed_at_the_same_line_end_the_sweep_with_their_error(folder):
    sweep = Sweep(folder)
    sweep.fail(sweep.first, "a", "model.py:3")
    sweep.fail(sweep.second, "b", "model.py:3")
    third, fourth = sweep.start(), sweep.start()
    with pytest.raises(TrainingError, match=r"first 3 trials failed alike: ValueError: a \(model.py:3\)"):
        sweep.fail(third, "c", "model.py:3")
    assert sweep.closed[fourth.name] == "killed"


def test_trials_that_failed_at_different_lines_or_after_one_that_finished_do_not_end_the_sweep(folder):
    sweep = Sweep(folder)
    sweep.fail(sweep.first, "a", "model.py:3")
    sweep.fail(sweep.second, "b", "model.py:4")
    sweep.fail(sweep.start(), "c", "model.py:3")
    other = Sweep(folder)
    other.state.progress[other.first].outcome = "finished"
    other.state.end(other.first)
    for trial in (other.second, other.start(), other.start()):
        other.fail(trial, "a", "model.py:3")


def test_reports_and_other_ends_are_no_failures(folder):
    sweep = Sweep(folder)
    for event in (TrialReport(1, {}), TrialEnded("finished", 1.0), TrialEnded("interrupted", 1.0)):
        sweep.stopping.check_failures(event)


def test_a_paused_trial_that_the_scheduler_stopped_is_closed_once_no_process_holds_it(folder):
    sweep = Sweep(folder)
    sweep.scheduler.stopped = [sweep.first]
    sweep.engine.fail(sweep.second, "failed")  # the scheduler is asked what it stopped meanwhile
    sweep.pool.busy = [sweep.first]
    sweep.stopping.close_abandoned()
    assert not sweep.closed
    sweep.pool.busy = []
    sweep.stopping.close_abandoned()
    assert sweep.closed == {"t0000": stop_reason(sweep.first, sweep.state.config.tune)}
    assert sweep.closed["t0000"] == "stopped by none at evaluation 0 with val/loss nothing"
