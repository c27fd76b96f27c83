"""The life of one trial as the driver sees it: opened, replayed from its records, started, closed.

A trial is a run folder below the sweep's, with a journal and checkpoints of its own. What an earlier attempt recorded
is replayed through the engine before a process works on the trial, so nothing is trained twice.
"""

from dataclasses import replace

from shoal.cluster.actor_pool import ActorPool
from shoal.cluster.dataset_cache import DatasetCache
from shoal.cluster.trial_actor import TrialSpec
from shoal.config.loading import to_yaml
from shoal.config.objects import pickles, references
from shoal.devices import Kind
from shoal.errors import DamagedFileError, ShoalError, StorageError
from shoal.runs.worker import WorkerSpec
from shoal.storage.lease import now_ms
from shoal.storage.records import ErrorRecord, Identity, Metadata, TrialResult
from shoal.storage.run_folder import CONFIG, RunFolder
from shoal.tasks.open_data import preprocessing_spec
from shoal.tracking.journal import Journal
from shoal.training.loop import Decision
from shoal.tune.engine import Engine, Trial
from shoal.workflows.tune.retention import free_checkpoints
from shoal.workflows.tune.state import SweepState
from shoal.workflows.tune.stopping import stop_reason
from shoal.workflows.tune.trial_history import TrialHistory
from shoal.workflows.tune.trial_progress import TrialProgress

SAME_AS_TAG = "shoal.same_as"


class TrialLifecycle:
    """Takes trials from the engine's choice to their closed records."""

    def __init__(
        self,
        state: SweepState,
        engine: Engine,
        pool: ActorPool[Trial],
        dataset_cache: DatasetCache,
        history: TrialHistory,
        journal: Journal,
        attempt: int,
        kind: Kind,
    ) -> None:
        """Set up.

        Args:
            journal: of the sweep, which logs its best value.
            attempt: number of the sweep's attempt.
            kind: of the device that each worker has.
        """
        self._state, self._config = state, state.config
        self._engine, self._pool = engine, pool
        self._dataset_cache, self._history, self._journal = dataset_cache, history, journal
        self._attempt, self._kind = attempt, kind

    def start(self, trial: Trial) -> None:
        """Replay what an earlier attempt recorded of a trial, then train what is missing."""
        try:
            progress = self._state.progress.get(trial) or self._open(trial)
        except ShoalError as error:
            if isinstance(error, StorageError) and not isinstance(error, DamagedFileError):
                raise  # the disk or the store fails, for every trial
            self._refuse(trial, error)
            return
        self._state.replaying.add(trial)
        # A paused trial that is chosen again continues past the evaluation at which it was paused.
        resumed: dict[Decision, Decision] = {"pause": "continue"}
        progress.decisions = {
            step: resumed.get(decision, decision) for step, decision in progress.decisions.items()
        }
        self._replay_next(trial)

    def apply(self, trial: Trial, decision: Decision) -> None:
        """Carry out the engine's decision on a trial's last report."""
        progress = self._state.progress[trial]
        progress.decisions[trial.reports[-1].step] = decision
        if trial not in self._state.replaying:
            self._pool.answer(trial, decision)
        elif decision == "continue":
            self._replay_next(trial)
        else:
            self._end_replay(trial, decision)

    def close(self, trial: Trial, reason: str | None, outcome: str | None = None) -> None:
        """Write a trial's result into its folder, unless an earlier attempt did, and take it for ended.

        Args:
            outcome: where the engine does not have it yet.
        """
        if trial.recorded_outcome:
            self._end(trial)
            return
        progress, outcome = self._state.progress[trial], outcome or trial.outcome
        assert outcome is not None
        progress.ended_s, progress.outcome, progress.reason = self._state.elapsed_s(), outcome, reason
        folder = progress.folder
        if folder.exists(Identity.file):
            result = progress.result(trial, self._config.tune.metric, outcome)
            progress.set_cost(result)
            folder.save(result)
            folder.update(Identity, status=result.status, reason=reason, end_ms=now_ms())
        self._end(trial)
        self._log_best()

    def reuse(self, trial: Trial) -> None:
        """Record a trial that took the result of an earlier one at the same point; it was not trained."""
        source = trial.same_as
        assert source is not None, "the engine says whose result it is"
        state, now_s, value = self._state, self._state.elapsed_s(), self._state.last_value(source)
        progress = TrialProgress(
            self._config.trial(trial.point, trial.repeat, trial.name),
            state.trial_folder(trial),
            curve=[value] if value else [],
            began_s=now_s,
            ended_s=now_s,
            outcome="reused",
            reason=f"the same point as {source.name}, whose result it takes",
        )
        state.progress[trial] = progress
        self._record_reused(trial, source, progress)
        self._end(trial)
        self._log_best()

    def _record_reused(self, trial: Trial, source: Trial, progress: TrialProgress) -> None:
        """Write the records of a trial that takes another's result: metadata, the final value, its identity."""
        folder = progress.folder
        metadata = self._state.trial_folder(source).load(Metadata)
        if metadata is None:  # it failed before anything of it was recorded
            return
        result = progress.result(trial, self._config.tune.metric, "reused")
        folder.save(result)
        if folder.exists(Identity.file):  # by an earlier attempt
            return
        folder.save(metadata.extended(tags={SAME_AS_TAG: source.name}))
        folder.write(CONFIG, to_yaml(progress.config).encode())
        for step, value in progress.curve:
            journal = Journal(folder, self._attempt)
            journal.log(step, {self._config.tune.metric: value})
            journal.sync()
        # Last: the trial's MLflow run is made when its identity is there.
        folder.create_identity(
            name=trial.name, experiment=self._config.experiment_name, point=trial.point, repeat=trial.repeat,
            status=result.status, reason=progress.reason, end_ms=now_ms(),
        )  # fmt: skip

    def _open(self, trial: Trial) -> TrialProgress:
        """Make the progress of a trial from its config and what an earlier attempt left."""
        config = self._config.trial(trial.point, trial.repeat, trial.name)
        folder = self._state.trial_folder(trial)
        every = self._history.evaluation_steps(config)
        progress = TrialProgress(config, folder, began_s=self._state.elapsed_s(), evaluation_steps=every)
        earlier = folder.load(TrialResult)
        if earlier:
            progress.seconds = earlier.seconds or 0.0
            progress.node, progress.reason, progress.error = earlier.node, earlier.reason, earlier.error
            progress.set_cost(earlier)
        if trial.recorded_outcome:
            progress.outcome = trial.recorded_outcome
            progress.selected = earlier.value if earlier else None
            progress.began_s = earlier.began_s if earlier else None
            progress.ended_s = earlier.ended_s if earlier else None
        progress.curve = self._history.curve(folder) if trial.was_begun else []
        self._state.progress[trial] = progress
        return progress

    def _replay_next(self, trial: Trial) -> None:
        """Pass the engine the next recorded report; after the last one, end or train the trial."""
        if trial.recorded:
            report = trial.recorded.pop(0)
            is_last = not trial.recorded and trial.recorded_outcome == "finished"
            if is_last:
                self._end(trial)
            self._engine.report(trial, report, is_last)
        elif trial.recorded_outcome:
            self._end_replay(trial, "stop")
        else:
            self._state.replaying.discard(trial)
            self._train(trial)

    def _end_replay(self, trial: Trial, decision: Decision) -> None:
        """Leave a trial paused or ended by its records, without a process."""
        self._state.replaying.discard(trial)
        if decision == "pause":
            self._engine.release(trial)
            return
        if trial.recorded_outcome == "infeasible":
            self._engine.fail(trial, "infeasible")
        else:
            self._engine.stop(trial)
        self.close(trial, stop_reason(trial, self._config.tune))

    def _end(self, trial: Trial) -> None:
        """Take a trial for ended, and free the checkpoints and the data that no trial needs any more."""
        state = self._state
        free_checkpoints(state, state.end(trial))
        best = state.ranking.best
        knows_all = self._engine.has_all_points
        self._dataset_cache.release(trial.point, best.params if best else None, knows_all)

    def _train(self, trial: Trial) -> None:
        """Write who the trial is, and start it on an actor."""
        progress = self._state.progress[trial]
        try:
            spec = self._spec(progress)
        except ShoalError as error:
            self._refuse(trial, error)
            return
        progress.error = progress.reason = None
        folder = progress.folder
        self._create(trial, folder)
        folder.update(Identity, status="RUNNING", reason=None)
        folder.delete(TrialResult.file)
        if not folder.exists(CONFIG):
            folder.write(CONFIG, to_yaml(progress.config).encode())
        if not spec.is_distributed:  # the group of workers counts its own starts
            spec = replace(spec, worker=replace(spec.worker, start=folder.begin_start()))
        self._pool.begin(trial, spec)

    def _create(self, trial: Trial, folder: RunFolder) -> None:
        folder.create()
        folder.clear_leftovers()
        folder.create_identity(
            name=trial.name, experiment=self._config.experiment_name, point=trial.point, repeat=trial.repeat
        )

    def _spec(self, progress: TrialProgress) -> TrialSpec:
        config = progress.config
        cached = self._dataset_cache.get(config)
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, cached.plan.source)
        worker = WorkerSpec(
            config,
            progress.folder.uri,
            self._attempt,
            cached.info,
            preprocessing,
            objects=pickles(references(config.model_dump())),
            sweep_folder=self._state.folder.uri,
        )
        return TrialSpec(
            worker,
            cached.shard_refs,
            waits_for_decision=self._config.tune.scheduler != "none",
            kind=self._kind,
            is_distributed=self._config.is_distributed,
        )

    def _refuse(self, trial: Trial, error: ShoalError) -> None:
        """Close a trial with a point that cannot be trained at all."""
        state = self._state
        if not state.has_begun(trial):
            state.progress[trial] = TrialProgress(
                state.plan.base.config, state.trial_folder(trial), began_s=state.elapsed_s()
            )
        state.progress[trial].error = ErrorRecord(type=type(error).__name__, message=str(error))
        self._create(trial, state.progress[trial].folder)  # it is a trial in MLflow too
        self._engine.fail(trial, "infeasible")
        self.close(trial, str(error))

    def _log_best(self) -> None:
        """Log the sweep's best value so far; the step is the number of ended trials."""
        won, ended = self._state.ranking.best, self._state.count()
        metrics = {"trials/ended": float(ended)}
        if won and won.metric is not None:
            metrics[f"trials/best_{self._config.tune.metric.replace('/', '_')}"] = won.metric
        self._journal.log(ended, metrics)
        self._journal.flush()
