"""The workflow of a sweep: opens what it needs, runs the loop, and finishes with the best model and the report.

A trial calls the same `run_worker` as `jobs/train.py`. All that a later attempt needs is in the trials' folders: the
engine replays what they hold before it trains anything.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from shoal.cluster import session
from shoal.cluster.actor_pool import ActorPool
from shoal.cluster.dataset_cache import DatasetCache
from shoal.cluster.placement import Placement, resources_beside
from shoal.cluster.shard_store import spare_cpus
from shoal.cluster.tune_schedulers import make_scheduler
from shoal.data.dataset_info import DatasetInfo
from shoal.devices import Kind
from shoal.errors import TrainingError
from shoal.runs.data_notes import write_data_report
from shoal.runs.lifecycle import RunLifecycle
from shoal.runs.resolve import as_begun
from shoal.storage.records import Status, SweepResult
from shoal.storage.run_folder import TRIALS, RunFolder
from shoal.tracking.background import TrackerProcess
from shoal.tracking.journal import Journal
from shoal.training.checkpoint.store import CheckpointStore
from shoal.tune.config import SweepConfig
from shoal.tune.engine import Engine, Trial
from shoal.tune.report.write import Findings, write_report
from shoal.tune.validate import SweepPlan
from shoal.workflows.tune.loop import SweepLoop
from shoal.workflows.tune.mlflow_metadata import add_best, sweep_metadata
from shoal.workflows.tune.result import package_best, sweep_result, why_no_trial_is_ranked
from shoal.workflows.tune.state import Listener, SweepState
from shoal.workflows.tune.stopping import Stopping
from shoal.workflows.tune.trial_events import TrialEvents
from shoal.workflows.tune.trial_history import TrialHistory
from shoal.workflows.tune.trial_lifecycle import TrialLifecycle

SETTLE_S = 10.0  # for the tracker, to send the records of all trials before the report takes the CPU


def run_sweep(plan: SweepPlan, folder: RunFolder, listen: Listener = lambda status: None) -> SweepResult:
    """Run a sweep to its end, or on from where an earlier attempt stopped; return what `result.json` holds.

    Raises:
        Interrupted: the folder's stop file appeared; trials have checkpoints and the runs are KILLED.
        ShoalError: the sweep failed; it is recorded as FAILED with the reason.
    """
    plan = replace(plan, config=as_begun(plan.config, folder))
    with _SweepRun(plan, folder, listen) as sweep:
        sweep.train_all()
        return sweep.finish()


class _SweepRun(RunLifecycle):
    """One attempt at a sweep."""

    config: SweepConfig
    tracker: TrackerProcess

    def __init__(self, plan: SweepPlan, folder: RunFolder, listen: Listener) -> None:
        super().__init__(plan.config, folder, is_sweep=True)
        self._plan, self._listen = plan, listen
        self._state = SweepState(plan, folder, self.started_s)
        self._dataset_cache = DatasetCache(plan.config)
        self._is_verified = False
        self._findings: Findings | None = None

    def make_tracker(self) -> TrackerProcess:
        """Track in a separate process: MLflow takes some 50 ms per trial, for which reports would wait."""
        return TrackerProcess(self.folder)

    def train_all(self) -> None:
        """Train all trials; those that the time budget leaves out are trained by the same command later."""
        self.folder.forget_stop()
        base = self._plan.base
        if base.dataset_info is not None:
            # MLflow is imported, and its tables made, while Ray starts.
            self._start_tracking(base.dataset_info)
        self.closing.callback(session.disconnect)
        kind = session.connect(self.config.scale, spare_cpus(base))
        needs = self._plan.actor_resources(kind)
        # Of trials with several workers, each places its own.
        choose = partial(Placement(self.folder.uri).selector, needs, 1)
        selector = choose()
        slots = self._plan.slots(resources_beside(selector), spare_cpus(base), kind)
        # The actors start, and import torch, while the data set is put.
        pool: ActorPool[Trial] = ActorPool(slots, needs, selector, choose)
        with self.stops_at_once():
            dataset_info = self._dataset_cache.put(base)
        if base.dataset_info is None:
            self._start_tracking(dataset_info)
        journal = Journal(self.folder, self.attempt)
        loop = assemble(
            self._state,
            pool,
            self._dataset_cache,
            journal,
            self.attempt,
            kind,
            self._listen,
            self.mark_killed,
        )
        try:
            loop.run()
        except BaseException:
            pool.close()
            self._remove_parts()
            with contextlib.suppress(OSError):  # it may be what failed
                journal.sync()
            raise
        pool.close()
        journal.sync()

    def _remove_parts(self) -> None:
        """Remove what the trials whose processes were ended had written of a checkpoint: it may fill the disk."""
        for progress in self._state.progress.values():
            if progress.outcome is None:
                with contextlib.suppress(OSError):
                    CheckpointStore(progress.folder).remove_parts()

    def finish(self) -> SweepResult:
        """Rank the trials; package the best one's model, and draw the report meanwhile.

        Raises:
            TrainingError: no trial is ranked.
        """
        state, rows = self._state, self._state.rows()
        ranking = state.ranked(rows)
        if not ranking:
            raise TrainingError(why_no_trial_is_ranked(state))
        won, trial = ranking[0], state.trials[ranking[0].number]
        self.tracker.settle(SETTLE_S)
        self._listen(state.status("verifying the best model, drawing the report"))
        metric, mode = self.config.tune.metric, self.config.mode
        name = self.folder.identity().name
        with ThreadPoolExecutor(1) as pool:
            report = pool.submit(write_report, self.folder, rows, name, metric, mode, state.elapsed_s())
            with self.stops_at_once():
                self._is_verified = package_best(state, self._dataset_cache, trial)
            self._findings = report.result()
        self.packaged = state.trial_folder(trial)
        run_id = self.packaged.tracked().run_id
        add_best(self.folder, metric, won, run_id, self._findings.note)
        return self.write_result("FINISHED")

    def write_result(self, status: Status, reason: str | None = None) -> SweepResult:
        result = sweep_result(
            self._state,
            self._findings,
            self._is_verified,
            status=status,
            reason=reason,
            **self.who(),
            attempt=self.attempt,
        )
        self.folder.save(result)
        return result

    def _start_tracking(self, dataset_info: DatasetInfo) -> None:
        self.folder.save(sweep_metadata(self._plan, dataset_info))
        write_data_report(self.folder, self._plan.base.source, dataset_info)
        self.tracker.start()


def assemble(
    state: SweepState,
    pool: ActorPool[Trial],
    dataset_cache: DatasetCache,
    journal: Journal,
    attempt: int,
    kind: Kind,
    listen: Listener = lambda status: None,
    on_interrupt: Callable[[], None] = lambda: None,
) -> SweepLoop:
    """Make the engine of a sweep, in its state, and the loop that runs it.

    Args:
        journal: of the sweep.
        attempt: number of this attempt.
        kind: of the device that each worker has.
        on_interrupt: called when the stop file is found.
    """
    plan, config, tune = state.plan, state.config, state.config.tune
    history = TrialHistory(config, dataset_cache)
    begun = set(state.folder.names(TRIALS))

    def restore(trial: Trial) -> None:
        if trial.name in begun:
            history.restore(trial, state.trial_folder(trial))
        dataset_cache.expect(trial.point)

    evaluations = dataset_cache.most_evaluations(plan.corner_configs)
    engine = state.engine = Engine(
        plan.search(),
        make_scheduler(tune, config.domains, config.mode, evaluations, config.seed),
        tune.repeat,
        lag=tune.lag,
        restore=restore,
        reuse=tune.scheduler != "pbt",  # which moves trials that begin at one point apart
    )
    lifecycle = TrialLifecycle(state, engine, pool, dataset_cache, history, journal, attempt, kind)
    events = TrialEvents(state, engine, pool, lifecycle)
    stopping = Stopping(state, engine, pool, events.handle, lifecycle.close, on_interrupt)
    return SweepLoop(state, engine, pool, lifecycle, events, stopping, listen)
