"""What a sweep's driver knows of one trial besides the engine, and the row and the result made from it."""

from dataclasses import dataclass, field

from shoal.models.flops import training_flops
from shoal.runs.config import RunConfig
from shoal.storage.records import ErrorRecord, Metadata, Outcome, Status, TrialResult, TrialRow
from shoal.storage.run_folder import RunFolder
from shoal.training.loop import Decision
from shoal.tune.analysis.mup_transfer import busy_seconds
from shoal.tune.engine import Report, Trial
from shoal.tune.validate import iteration_at

# MLflow's status by the outcome of a trial; all others FAILED.
MLFLOW_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "killed": "KILLED"}


@dataclass
class TrialProgress:
    """The progress of one trial, until it has ended.

    Attributes:
        curve: (step, value of the metric) of each evaluation.
        began_s, ended_s: seconds since the sweep began.
        seconds: of work, over all attempts.
        times_lost: how often this attempt lost the trial's process without a checkpoint later than the last time.
        lost_step: that it is known to have reached when its process was lost the last time.
        outcome: finished, stopped, infeasible, failed, killed or reused, once its records are closed.
        evaluation_steps: optimizer steps between evaluations.
        parameters, flops, training_s: of the model and its training, once known.
        decisions: of the scheduler, by the step of the report.
        selected: value of the weights that are its result, where training has ended.
    """

    config: RunConfig
    folder: RunFolder
    curve: list[tuple[int, float]] = field(default_factory=list)
    began_s: float | None = None
    ended_s: float | None = None
    seconds: float = 0.0
    times_lost: int = 0
    lost_step: int = 0
    node: str | None = None
    outcome: str | None = None
    reason: str | None = None
    error: ErrorRecord | None = None
    evaluation_steps: int = 1
    parameters: int | None = None
    flops: int | None = None
    training_s: float | None = None
    decisions: dict[int, Decision] = field(default_factory=dict)
    selected: float | None = None

    @property
    def value(self) -> float | None:
        """The metric by which the trial is ranked; before it has ended, of its last evaluation."""
        last = self.curve[-1][1] if self.curve else None
        return last if self.selected is None else self.selected

    def select(self, outcome: Outcome, metric: str) -> None:
        """Take the value of the weights that are the result, which may be another trial's (`exploit`)."""
        self.selected = outcome.val_metrics.get(metric)

    def report(self, step: int, value: float) -> Report:
        """Return a value at a step as the engine counts it, in evaluations."""
        return Report(iteration_at(step, self.evaluation_steps), step, value)

    def add_value(self, step: int, value: float) -> None:
        """Add an evaluation to the curve, unless it repeats an earlier one after a lost process."""
        if not self.curve or step > self.curve[-1][0]:
            self.curve.append((step, value))

    def lose_process(self, checkpoint_step: int | None) -> None:
        """Count a loss of the process; those before a later checkpoint count no more."""
        step, evaluated = checkpoint_step or 0, self.curve[-1][0] if self.curve else 0
        self.times_lost = 1 if step > self.lost_step else self.times_lost + 1
        self.lost_step = max(self.lost_step, step, evaluated)

    def set_cost(self, result: TrialResult) -> None:
        """Take the size of the model and the cost of its training from a result."""
        if result.model:
            self.parameters = result.model.parameters
            samples = result.samples_seen
            self.flops = training_flops(result.model.flops_per_sample, samples) if samples else None
            self.training_s = result.training_seconds

    def row(self, trial: Trial) -> TrialRow:
        """Return the trial as a row of the sweep's table."""
        status = self.outcome or {"RUNNING": "running", "PAUSED": "paused"}.get(trial.status, "pending")
        error = self.error
        return TrialRow(
            number=trial.number,
            name=trial.name,
            status=status,
            params=trial.point,
            metric=self.value,
            steps=self.curve[-1][0] if self.curve else 0,
            seconds=self.seconds,
            started_s=self.began_s,
            ended_s=self.ended_s,
            curve=tuple(self.curve),
            reason=self.reason,
            node=self.node,
            error=f"{error.type}: {error.message.splitlines()[0]}" if error else None,
            log=f"{self.folder.uri}/{ErrorRecord.file}" if error else None,
            repeat=trial.repeat,
            point=trial.point_number,
            parameters=self.parameters,
            flops=self.flops,
            training_s=self.training_s,
            same_as=trial.same_as.name if trial.same_as else None,
        )

    def result(self, trial: Trial, metric: str, outcome: str) -> TrialResult:
        """Return what the `result.json` of an ended trial holds."""
        trained, metadata = self.folder.load(Outcome), self.folder.load(Metadata)
        at = trained.progress if trained else None
        source = trial.same_as or trial
        return TrialResult(
            status=MLFLOW_STATUS.get(source.outcome or outcome, "FAILED"),
            outcome=outcome,
            same_as=trial.same_as.name if trial.same_as else None,
            reason=self.reason,
            run_name=trial.name,
            run_folder=self.folder.uri,
            params=trial.point,
            repeat=trial.repeat,
            metric=metric,
            value=self.value,
            metrics=trained.metrics if trained else {},
            steps=at.step if at else None,
            samples_seen=at.samples if at else None,
            model=metadata.model if metadata else None,
            seconds=self.seconds,
            training_seconds=busy_seconds(trained.seconds, trained.shares) if trained else None,
            began_s=self.began_s,
            ended_s=self.ended_s,
            node=self.node,
            error=self.error,
        )
