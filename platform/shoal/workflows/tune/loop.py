"""THE LOOP of a sweep: the engine's decisions go to the actors, and the actors' events to the engine."""

import time

from shoal.cluster.actor_pool import ActorPool
from shoal.tune.engine import Engine, Trial
from shoal.workflows.tune.exploit import exploit
from shoal.workflows.tune.state import Listener, SweepState
from shoal.workflows.tune.stopping import EVENT_WAIT_S, Stopping
from shoal.workflows.tune.trial_events import TrialEvents
from shoal.workflows.tune.trial_lifecycle import TrialLifecycle

# After this long without any event, reports no longer wait for trials that no process can run.
PATIENCE_S = 60.0


class SweepLoop:
    """Runs until every trial has ended."""

    def __init__(
        self,
        state: SweepState,
        engine: Engine,
        pool: ActorPool[Trial],
        lifecycle: TrialLifecycle,
        events: TrialEvents,
        stopping: Stopping,
        listen: Listener,
    ) -> None:
        self._state, self._engine, self._pool = state, engine, pool
        self._lifecycle, self._events, self._stopping = lifecycle, events, stopping
        self._listen = listen

    def run(self) -> None:
        """Run all trials.

        Raises:
            Interrupted: the user asked for it.
            TrainingError: the first trials all failed with the same error.
        """
        moved_s = time.monotonic()
        while True:
            has_moved = self._exploit() | self._start_trials() | self._apply_decisions()
            for trial in self._engine.take_reused():
                self._lifecycle.reuse(trial)
            self._stopping.close_abandoned()
            self._listen(self._state.status())
            if self._engine.has_ended and self._pool.free == self._pool.size:
                return
            self._stopping.check_stop_file()
            self._stopping.check_time_budget()
            for trial, event in self._pool.wait(0.0 if has_moved else EVENT_WAIT_S):
                has_moved = True
                self._events.handle(trial, event)
                self._stopping.check_failures(event)
            moved_s = time.monotonic() if has_moved else moved_s
            self._engine.is_impatient = time.monotonic() - moved_s > PATIENCE_S

    def _exploit(self) -> bool:
        """Carry out the exploits that population based training has decided."""
        exploits = self._engine.take_exploits()
        for pending in exploits:
            progress, source = self._state.progress[pending.trial], self._state.progress[pending.source]
            exploit(pending, progress, source, self._state.config)
        return bool(exploits)

    def _start_trials(self) -> bool:
        """Start as many trials as there are idle actors; a replayed trial reserves one."""
        has_started = False
        while self._free_slots() > 0 and (trial := self._engine.choose()) is not None:
            self._lifecycle.start(trial)
            has_started = True
        return has_started

    def _apply_decisions(self) -> bool:
        decisions = self._engine.decisions()
        for trial, decision in decisions:
            self._lifecycle.apply(trial, decision)
        return bool(decisions)

    def _free_slots(self) -> int:
        replayed = sum(
            trial.is_busy and progress.is_replayed for trial, progress in self._state.progress.items()
        )
        return self._pool.free - replayed
