"""The life of one trial as the driver sees it: opened, replayed from its records, started, closed.

A trial is a run folder below the sweep's, with a journal and checkpoints of its own. What an earlier attempt recorded
is replayed through the engine before a process works on the trial, so nothing is trained twice.
"""

from shoal.cluster.actor_pool import ActorPool
from shoal.cluster.dataset_cache import DatasetCache
from shoal.cluster.trial_actor import TrialSpec
from shoal.config.loading import to_yaml
from shoal.errors import DamagedFileError, ShoalError, StorageError
from shoal.runs.worker import WorkerSpec
from shoal.storage.lease import now_ms
from shoal.storage.records import ErrorRecord, Identity, Metadata, TrialResult
from shoal.storage.run_folder import CONFIG, RunFolder
from shoal.tasks.open_data import preprocessing_spec
from shoal.tracking.journal import Journal
from shoal.training.loop import Decision
from shoal.tune.engine import Engine, Trial
from shoal.tune.trials import best
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
        use_gpu: bool,
    ) -> None:
        """Set up.

        Args:
            journal: of the sweep, which logs its best value.
            attempt: number of the sweep's attempt.
            use_gpu: whether each worker has a GPU.
        """
        self._state, self._config = state, state.config
        self._engine, self._pool = engine, pool
        self._dataset_cache, self._history, self._journal = dataset_cache, history, journal
        self._attempt, self._use_gpu = attempt, use_gpu

    def start(self, trial: Trial) -> None:
        """Replay what an earlier attempt recorded of a trial, then train what is missing."""
        try:
            progress = self._state.progress.get(trial) or self._open(trial)
        except ShoalError as error:
            if isinstance(error, StorageError) and not isinstance(error, DamagedFileError):
                raise  # the disk or the store fails, for every trial
            self._refuse(trial, error)
            return
        progress.is_replayed = True
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
        if not progress.is_replayed:
            self._pool.answer(trial, decision)
        elif decision == "continue":
            self._replay_next(trial)
        else:
            self._end_replay(trial, decision)

    def close(self, trial: Trial, reason: str | None, outcome: str | None = None) -> None:
        """Write a trial's result into its folder, log the sweep's best, and free the checkpoints not needed any more.

        Args:
            outcome: where the engine does not have it yet.
        """
        progress, outcome = self._state.progress[trial], outcome or trial.outcome
        assert outcome is not None
        progress.ended_s, progress.outcome, progress.reason = self._state.elapsed_s(), outcome, reason
        folder = progress.folder
        if folder.exists(Identity.file):
            result = progress.result(trial, self._config.tune.metric, outcome)
            progress.set_cost(result)
            folder.save(result)
            folder.update(Identity, status=result.status, reason=reason, end_ms=now_ms())
        self._log_best()
        free_checkpoints(self._state)

    def reuse(self, trial: Trial) -> None:
        """Record a trial that took the result of an earlier one at the same point; it was not trained."""
        source = trial.same_as
        assert source is not None, "the engine says whose result it is"
        state, origin, now_s = self._state, self._state.progress[source], self._state.elapsed_s()
        reason = f"the same point as {source.name}, whose result it takes"
        folder = state.trial_folder(trial)
        progress = TrialProgress(
            origin.config, folder, curve=origin.curve[-1:], began_s=now_s, ended_s=now_s, outcome="reused",
            reason=reason, is_freed=True,
        )  # fmt: skip
        state.progress[trial] = progress
        self._log_best()
        metadata = origin.folder.load(Metadata)
        if metadata is None:  # it failed before anything of it was recorded
            return
        result = progress.result(trial, self._config.tune.metric, "reused")
        folder.save(result)
        if folder.exists(Identity.file):  # by an earlier attempt
            return
        folder.save(metadata.extended(tags={SAME_AS_TAG: source.name}))
        folder.write(CONFIG, to_yaml(self._config.trial(trial.point, trial.repeat, trial.name)).encode())
        if progress.curve:
            step, value = progress.curve[-1]
            journal = Journal(folder, self._attempt)
            journal.log(step, {self._config.tune.metric: value})
            journal.sync()
        # Last: the trial's MLflow run is made when its identity is there.
        folder.create_identity(
            name=trial.name, experiment=self._config.experiment_name, point=trial.point, repeat=trial.repeat,
            status=result.status, reason=reason, end_ms=now_ms(),
        )  # fmt: skip

    def _open(self, trial: Trial) -> TrialProgress:
        """Make the progress of a trial from its config and what an earlier attempt left."""
        config = self._config.trial(trial.point, trial.repeat, trial.name)
        folder = self._state.trial_folder(trial)
        progress = TrialProgress(config, folder, began_s=self._state.elapsed_s())
        earlier = folder.load(TrialResult)
        if earlier:
            progress.seconds = earlier.seconds or 0.0
            progress.node, progress.reason, progress.error = earlier.node, earlier.reason, earlier.error
            progress.set_cost(earlier)
        if trial.recorded_outcome:
            progress.outcome = trial.recorded_outcome
            progress.began_s = earlier.began_s if earlier else None
            progress.ended_s = earlier.ended_s if earlier else None
        progress.curve = [(report.step, report.value) for report in self._history.reports(folder)]
        self._state.progress[trial] = progress
        return progress

    def _replay_next(self, trial: Trial) -> None:
        """Pass the engine the next recorded report; after the last one, end or train the trial."""
        progress = self._state.progress[trial]
        if trial.recorded:
            report = trial.recorded.popleft()
            is_last = not trial.recorded and trial.recorded_outcome == "finished"
            progress.is_replayed = not is_last
            self._engine.report(trial, report, is_last)
        elif trial.recorded_outcome:
            self._end_replay(trial, "stop")
        else:
            progress.is_replayed = False
            self._train(trial)

    def _end_replay(self, trial: Trial, decision: Decision) -> None:
        """Leave a trial paused or ended by its records, without a process."""
        self._state.progress[trial].is_replayed = False
        if decision == "pause":
            self._engine.release(trial)
        elif trial.recorded_outcome == "infeasible":
            self._engine.fail(trial, "infeasible")
        else:
            self._engine.stop(trial)
            if trial.recorded_outcome is None:
                self.close(trial, stop_reason(trial, self._config.tune))

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
        self._pool.begin(trial, spec)

    def _create(self, trial: Trial, folder: RunFolder) -> None:
        folder.create()
        folder.create_identity(
            name=trial.name, experiment=self._config.experiment_name, point=trial.point, repeat=trial.repeat
        )

    def _spec(self, progress: TrialProgress) -> TrialSpec:
        config = progress.config
        cached = self._dataset_cache.get(config)
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, cached.plan.source)
        worker = WorkerSpec(config, progress.folder.uri, self._attempt, cached.info, preprocessing)
        return TrialSpec(
            worker,
            cached.shard_refs,
            waits_for_decision=self._config.tune.scheduler != "none",
            use_gpu=self._use_gpu,
            is_distributed=self._config.is_distributed,
        )

    def _refuse(self, trial: Trial, error: ShoalError) -> None:
        """Close a trial with a point that cannot be trained at all."""
        state = self._state
        if trial not in state.progress:
            state.progress[trial] = TrialProgress(
                state.plan.base.config, state.trial_folder(trial), began_s=state.elapsed_s()
            )
        state.progress[trial].error = ErrorRecord(type=type(error).__name__, message=str(error))
        self._create(trial, state.progress[trial].folder)  # it is a trial in MLflow too
        self._engine.fail(trial, "infeasible")
        self.close(trial, str(error))

    def _log_best(self) -> None:
        """Log the sweep's best value so far; the step is the number of ended trials."""
        won = best(self._state.rows(), self._config.mode)
        ended = sum(progress.outcome is not None for progress in self._state.progress.values())
        metrics = {"trials/ended": float(ended)}
        if won and won.metric is not None:
            metrics[f"best/{self._config.tune.metric.replace('/', '_')}"] = won.metric
        self._journal.log(ended, metrics)
        self._journal.flush()
