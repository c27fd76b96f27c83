"""How a trial of a sweep is stopped.

- By its scheduler, at an evaluation (`TrialEvents`, and `TrialLifecycle` for replayed reports), or while it is paused
  (`close_abandoned`); `stop_reason` says why.
- By the user: SIGINT and SIGTERM write the stop file, and the sweep is interrupted (`check_stop_file`).
- By `tune.time_budget_s`: the sweep finishes with the trials that have ended (`check_time_budget`).
- Because the first trials all failed with the same error: the sweep fails with it (`check_failures`).

The last three interrupt every running trial, which writes a checkpoint and ends; the same command resumes it.
"""

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from shoal.cluster.actor_pool import ActorLost, ActorPool, Event
from shoal.cluster.session import GONE_PATIENCE_S, RayWatch
from shoal.cluster.trial_actor import TrialEnded
from shoal.errors import Interrupted, StorageError, TrainingError
from shoal.storage.failures import STOPPED_OUTAGE_S
from shoal.storage.records import ErrorRecord
from shoal.storage.run_folder import SAVING
from shoal.tune.config import TuneConfig
from shoal.tune.engine import Engine, Trial
from shoal.workflows.tune.state import SweepState

logger = logging.getLogger(__name__)

EVENT_WAIT_S = 0.25
# For a trial to see that it is to stop; its checkpoint is waited for as long as it takes.
STOP_PATIENCE_S = 30.0
SAY_EVERY_S = 30.0
# If this many trials fail with the same error and none has ended otherwise, the error is the user's, not the point's.
SAME_FAILURES = 3

BUDGET_REASON = "the time budget ended"


def stop_reason(trial: Trial, tune: TuneConfig) -> str:
    """Return why a trial that its scheduler stopped ended."""
    value = f"{trial.value:.6g}" if trial.value is not None else "nothing"
    return f"stopped by {tune.scheduler} at evaluation {trial.iteration} with {tune.metric} {value}"


class Stopping:
    """Decides when trials are interrupted, and interrupts them."""

    def __init__(
        self,
        state: SweepState,
        engine: Engine,
        pool: ActorPool[Trial],
        handle: Callable[[Trial, Event], None],
        close: Callable[[Trial, str], None],
        on_interrupt: Callable[[], None],
    ) -> None:
        """Set up.

        Args:
            handle: `TrialEvents.handle`, for the events that come while trials are interrupted.
            close: `TrialLifecycle.close`.
            on_interrupt: called when the stop file is found, before trials are interrupted.
        """
        self._state, self._engine, self._pool = state, engine, pool
        self._handle, self._close, self._on_interrupt = handle, close, on_interrupt
        self._look_again_s = 0.0
        self._abandoned: list[Trial] = []  # stopped while they were paused

    def close_abandoned(self) -> None:
        """Close the paused trials that the scheduler stopped, once no process writes their checkpoints any more."""
        self._abandoned += self._engine.take_stopped()
        held = [trial for trial in self._abandoned if self._pool.holds(trial)]
        for trial in self._abandoned:
            if trial not in held:
                self._close(trial, stop_reason(trial, self._state.config.tune))
        self._abandoned = held

    def check_stop_file(self) -> None:
        """End the sweep if the user asked for it.

        Raises:
            Interrupted: after all trials have ended.
        """
        if self._state.folder.is_stop_requested(by_others=False):
            self._on_interrupt()
            try:
                self._interrupt_trials()
            except StorageError as error:
                raise Interrupted(f"interrupted without new checkpoints: {error}") from error
            ended, total = self._state.ended, self._state.plan.total
            raise Interrupted(f"interrupted after {ended} of {total} trials; the same command resumes there")

    def check_time_budget(self) -> None:
        """End all trials once `tune.time_budget_s` has passed, and plan no more."""
        state, budget = self._state, self._state.config.tune.time_budget_s
        if budget is None or state.is_out_of_time or time.monotonic() - state.attempt_started < budget:
            return
        logger.warning(
            "tune.time_budget_s=%g is over: running trials write a checkpoint; the same command goes on",
            budget,
        )
        state.is_out_of_time = True
        self._interrupt_trials()
        self._engine.close("killed")
        for trial in list(state.progress):
            if trial.outcome == "killed":
                self._close(trial, BUDGET_REASON)

    def check_failures(self, event: Event) -> None:
        """After a trial that failed, end the sweep if every trial so far failed with the same error.

        Raises:
            TrainingError: with that error, after all trials have ended.
            StorageError: a trial could not write its folder, which no other trial can either.
        """
        if not isinstance(event, TrialEnded) or event.how not in ("failed", "infeasible"):
            return
        if event.error and event.error.type == StorageError.__name__:
            raise StorageError(event.error.message)
        state = self._state
        count = state.count("failed")
        if state.failure is None or count < min(SAME_FAILURES, state.plan.total):
            return
        trial, first = state.failure
        self._interrupt_trials()
        failure = TrainingError(
            f"all of the first {count} trials failed alike: {first.type}: {first.message} "
            f"({first.where}): fix it; the same command goes on. Traceback: "
            f"{state.trial_folder(trial).uri}/{ErrorRecord.file}"
        )
        failure.exit_code = first.exit_code
        raise failure

    def _interrupt_trials(self) -> None:
        """Have every running trial write a checkpoint and end, and wait for it."""
        progress = self._state.progress
        running = {trial for trial in progress if trial.is_busy and trial not in self._state.replaying}
        for trial in running:
            progress[trial].folder.request_stop("SIGTERM")
            self._pool.interrupt(trial)  # for one that waits at a report and does not look for the file
        began_s, ray = time.monotonic(), RayWatch()
        while running and (time.monotonic() - began_s < STOP_PATIENCE_S or self._are_saving(running)):
            if self._is_stopped_without_storage(began_s):
                break
            if (gone_s := ray.gone_for_s()) and gone_s > GONE_PATIENCE_S[self._are_saving(running)]:
                break
            for trial, event in self._pool.wait(EVENT_WAIT_S):
                if isinstance(event, TrialEnded) and event.how == "pause":
                    event = replace(event, how="interrupted")
                if isinstance(event, TrialEnded | ActorLost):
                    running.discard(trial)
                if not isinstance(event, ActorLost):
                    self._handle(trial, event)
                    self.check_failures(event)

    def _is_stopped_without_storage(self, began_s: float) -> bool:
        """Whether the user waits for trials that cannot save, nor learn of the stop, since the store is away."""
        folder = self._state.folder
        return (
            folder.is_away
            and folder.is_stop_requested(by_others=False)
            and time.monotonic() - began_s > STOPPED_OUTAGE_S
        )

    def _are_saving(self, running: Collection[Trial]) -> bool:
        """Whether trials that have not ended write a checkpoint, which may take minutes; says so."""
        if time.monotonic() < self._look_again_s:
            return True
        self._look_again_s = time.monotonic() + SAY_EVERY_S
        names = [trial.name for trial in running if self._state.progress[trial].folder.exists(SAVING)]
        if names:
            logger.info(
                "stopping: %s: the checkpoint is being written; a second Ctrl-C ends the job without it",
                ", ".join(names),
            )
        return bool(names)
