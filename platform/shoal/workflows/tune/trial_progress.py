"""What a sweep's driver knows of one trial besides the engine, and the row and result it makes of it."""

from dataclasses import dataclass, field
from typing import Any

from shoal.models.flops import training_flops
from shoal.runs.config import RunConfig
from shoal.runs.worker import OUTCOME
from shoal.storage.records import TrialRow
from shoal.storage.run_folder import ERROR, METADATA, RunFolder
from shoal.tune.analysis.mup_transfer import busy_seconds
from shoal.tune.engine import Decision, Trial


@dataclass
class TrialProgress:
    """Where a trial stands; times are seconds since the sweep began."""

    config: RunConfig
    folder: RunFolder
    curve: list[tuple[int, float]] = field(default_factory=list)
    began_s: float | None = None
    ended_s: float | None = None
    seconds: float = 0.0
    losses: int = 0
    node: str | None = None
    outcome: str | None = None
    reason: str | None = None
    error: dict[str, Any] | None = None
    is_replayed: bool = False  # its reports come from an earlier attempt's journal
    is_freed: bool = False
    parameters: int | None = None
    flops: int | None = None
    training_s: float | None = None
    decisions: dict[int, Decision] = field(default_factory=dict)  # by the step they were given for

    def weigh(self, result: dict[str, Any]) -> None:
        """Take over from a trial's result how large its model is and what training it took."""
        model, samples = result.get("model"), result.get("samples_seen")
        if model:
            self.parameters = model["parameters"]
            self.flops = training_flops(model["flops_per_sample"], samples) if samples else None
            self.training_s = result.get("training_seconds")

    def row(self, trial: Trial) -> TrialRow:
        """Return the trial as a row of the sweep's table."""
        status = self.outcome or {"RUNNING": "running", "PAUSED": "paused"}.get(trial.status, "pending")
        error = self.error
        return TrialRow(
            number=trial.number,
            name=trial.name,
            status=status,
            params=trial.point,
            metric=self.curve[-1][1] if self.curve else None,
            steps=self.curve[-1][0] if self.curve else 0,
            seconds=self.seconds,
            started_s=self.began_s,
            ended_s=self.ended_s,
            curve=tuple(self.curve),
            reason=self.reason,
            node=self.node,
            error=f"{error['type']}: {error['message'].splitlines()[0]}" if error else None,
            log=f"{self.folder.uri}/{ERROR}" if error else None,
            repeat=trial.repeat,
            point=trial.point_number,
            parameters=self.parameters,
            flops=self.flops,
            training_s=self.training_s,
        )

    def result(self, trial: Trial, metric: str, outcome: str, status: str) -> dict[str, Any]:
        """Return what the `result.json` of a trial that ended holds."""
        done = self.folder.read_json(OUTCOME) or {}
        return {
            "status": status,
            "outcome": outcome,
            "reason": self.reason,
            "run_name": trial.name,
            "run_folder": self.folder.uri,
            "params": trial.point,
            "repeat": trial.repeat,
            "metric": metric,
            "value": self.curve[-1][1] if self.curve else None,
            "metrics": done.get("progress", {}).get("metrics", {}) | done.get("test_metrics", {}),
            "steps": done.get("progress", {}).get("step"),
            "samples_seen": done.get("progress", {}).get("samples"),
            "model": (self.folder.read_json(METADATA) or {}).get("model"),
            "seconds": self.seconds,
            "training_seconds": busy_seconds(done) if done else None,
            "began_s": self.began_s,
            "ended_s": self.ended_s,
            "node": self.node,
            "error": self.error,
        }
