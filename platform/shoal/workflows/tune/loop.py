"""THE LOOP of a sweep: the engine's decisions go to the actors, and the actors' events to the engine."""

import time

from shoal.cluster.actor_pool import ActorLost, ActorPool
from shoal.tune.engine import Engine, Trial
from shoal.workflows.tune.exploit import exploit
from shoal.workflows.tune.state import Listener, SweepState
from shoal.workflows.tune.stopping import EVENT_WAIT_S, Stopping
from shoal.workflows.tune.trial_events import TrialEvents
from shoal.workflows.tune.trial_lifecycle import TrialLifecycle

# After this long without any event, reports no longer wait for trials that no process can run.
PATIENCE_S = 60.0
LOOK_EVERY_S = 0.2  # at the stop file, and for the display: not at each event


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
        self._listen, self._looked_s = listen, 0.0
        self._reused: list[Trial] = []

    def run(self) -> None:
        """Run all trials.

        Raises:
            Interrupted: the user asked for it.
            TrainingError: the first trials all failed with the same error.
        """
        try:
            self._run()
        finally:
            self._listen(self._state.status())

    def _run(self) -> None:
        moved_s = time.monotonic()
        while True:
            if time.monotonic() - self._looked_s > LOOK_EVERY_S:
                self._looked_s = time.monotonic()
                self._listen(self._state.status())
                self._stopping.check_stop_file()
            has_moved = self._exploit() | self._start_trials() | self._apply_decisions()
            self._stopping.close_abandoned()
            has_moved |= self._reuse()
            if self._engine.has_ended and self._pool.free == self._pool.size and not self._reused:
                return
            self._stopping.check_time_budget()
            for trial, event in self._pool.wait(0.0 if has_moved else EVENT_WAIT_S):
                has_moved = True
                self._events.handle(trial, event)
                self._stopping.check_failures(event)
                if isinstance(event, ActorLost):
                    self._looked_s = 0.0  # the signal that ended it may have asked the sweep to stop
            moved_s = time.monotonic() if has_moved else moved_s
            self._engine.is_impatient = time.monotonic() - moved_s > PATIENCE_S

    def _exploit(self) -> bool:
        """Carry out the exploits that population based training has decided."""
        exploits = self._engine.take_exploits()
        for pending in exploits:
            progress, source = self._state.progress[pending.trial], self._state.trial_folder(pending.source)
            exploit(pending, progress, source, self._state.config)
        return bool(exploits)

    def _start_trials(self) -> bool:
        """Start as many trials as there are idle actors; a replayed trial reserves one."""
        has_started = False
        while self._free_slots() > 0 and (trial := self._engine.choose()) is not None:
            self._lifecycle.start(trial)
            has_started = True
        return has_started

    def _reuse(self) -> bool:
        """Record the trials that took another's result, once that one is closed."""
        self._reused += self._engine.take_reused()
        ready = [trial for trial in self._reused if trial.same_as and self._state.is_closed(trial.same_as)]
        for trial in ready:
            self._lifecycle.reuse(trial)
            self._reused.remove(trial)
        return bool(ready)

    def _apply_decisions(self) -> bool:
        decisions = self._engine.decisions()
        for trial, decision in decisions:
            self._lifecycle.apply(trial, decision)
        return bool(decisions)

    def _free_slots(self) -> int:
        return self._pool.free - len(self._state.replaying)
