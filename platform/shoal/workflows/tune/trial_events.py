"""Handles the events of trials' processes: reports go to the engine, and trials that ended are closed."""

import logging

from shoal.cluster.actor_pool import ActorLost, ActorPool, Event
from shoal.cluster.placement import Placement
from shoal.cluster.trial_actor import TrialEnded, TrialReport, TrialStarted
from shoal.errors import StorageError
from shoal.storage.records import ErrorRecord
from shoal.training.checkpoint.store import CheckpointStore
from shoal.tune.engine import Engine, Trial
from shoal.workflows.tune.state import SweepState
from shoal.workflows.tune.stopping import BUDGET_REASON, stop_reason
from shoal.workflows.tune.trial_lifecycle import TrialLifecycle
from shoal.workflows.tune.trial_progress import TrialProgress

logger = logging.getLogger(__name__)


class TrialEvents:
    """Handles the events of all trials."""

    def __init__(
        self,
        state: SweepState,
        engine: Engine,
        pool: ActorPool[Trial],
        lifecycle: TrialLifecycle,
    ) -> None:
        self._state, self._tune = state, state.config.tune
        self._engine, self._pool = engine, pool
        self._lifecycle = lifecycle
        self._placement = Placement(state.folder.uri)

    def handle(self, trial: Trial, event: Event) -> None:
        progress = self._state.progress[trial]
        match event:
            case TrialStarted(node):
                progress.node = node
            case TrialReport(step, metrics):
                self._handle_report(trial, progress, step, metrics[self._tune.metric])
            case TrialEnded():
                progress.seconds += event.seconds
                self._handle_end(trial, progress, event)
            case ActorLost():
                self._handle_loss(trial, progress, event)

    def _handle_report(self, trial: Trial, progress: TrialProgress, step: int, value: float) -> None:
        progress.add_value(step, value)
        if self._tune.scheduler == "none":
            return
        if step in progress.decisions:  # evaluated again, after a lost process: the same decision
            self._pool.answer(trial, progress.decisions[step])
        else:
            self._engine.report(trial, progress.report(step, value))

    def _handle_end(self, trial: Trial, progress: TrialProgress, event: TrialEnded) -> None:
        match event.how:
            case "finished":
                self._handle_finish(trial, progress, event)
            case "stop":
                assert event.outcome is not None
                progress.select(event.outcome, self._tune.metric)
                self._engine.stop(trial)
                self._lifecycle.close(trial, stop_reason(trial, self._tune))
            case "pause":
                self._engine.release(trial)
            case "left":
                logger.warning(
                    "trial %s left host %s, which is being drained, with a checkpoint; it goes on elsewhere",
                    trial.name, progress.node,
                )  # fmt: skip
                self._engine.release(trial)
            case "interrupted":
                self._engine.fail(trial, "killed")
                self._lifecycle.close(trial, BUDGET_REASON if self._state.is_out_of_time else "interrupted")
            case "infeasible" | "failed":
                assert event.error is not None
                progress.error = event.error
                self._engine.fail(trial, event.how)
                self._lifecycle.close(trial, f"{event.error.type}: {event.error.message}")

    def _handle_finish(self, trial: Trial, progress: TrialProgress, event: TrialEnded) -> None:
        assert event.outcome is not None
        at = event.outcome.progress
        value = at.metrics[self._tune.metric]
        progress.add_value(at.step, value)
        progress.select(event.outcome, self._tune.metric)
        result = value if progress.selected is None else progress.selected
        self._lifecycle.close(trial, None, "finished")
        self._engine.report(trial, progress.report(at.step, result), is_last=True)

    def _handle_loss(self, trial: Trial, progress: TrialProgress, event: ActorLost) -> None:
        """Let a trial that lost its process go on from its last checkpoint, unless it happens too often."""
        if event.was_drained:
            logger.warning(
                "trial %s lost its process on host %s, which was drained; it goes on from its last checkpoint",
                trial.name, progress.node,
            )  # fmt: skip
            self._engine.release(trial)
            return
        progress.lose_process(_checkpoint_step(progress))
        if not (event.was_out_of_memory or self._state.folder.is_stop_requested(by_others=False)):
            self._placement.charge(progress.node, "hang" if event.is_hang else "lost worker", event.reason)
        most = self._state.config.scale.max_failures
        if not event.was_out_of_memory and progress.times_lost <= most:
            logger.warning(
                "trial %s lost its process (%s); it goes on from its last checkpoint, %d of %d",
                trial.name, event.reason, progress.times_lost, most,
            )  # fmt: skip
            self._engine.release(trial)
            return
        kind = "OutOfMemoryError" if event.was_out_of_memory else "WorkerLost"
        times = "" if event.was_out_of_memory else f"its process was lost {progress.times_lost} times: "
        progress.error = ErrorRecord(type=kind, message=f"{times}{event.reason}", host=progress.node)
        progress.folder.save(progress.error)
        self._engine.fail(trial, "infeasible" if event.was_out_of_memory else "failed")
        self._lifecycle.close(trial, f"{kind}: {times}{event.reason}")


def _checkpoint_step(progress: TrialProgress) -> int | None:
    try:
        return CheckpointStore(progress.folder).newest_step
    except (OSError, StorageError):
        return None
