"""The `tune` section of the config."""

from typing import Any, Literal

from pydantic import Field

from shoal.config import Section


class TuneConfig(Section):
    metric: str = Field(
        "val/loss", description="what trials are compared by: the value of their last weights"
    )
    mode: Literal["min", "max"] | None = Field(None, description="null: by the metric's name")
    num_samples: int | None = Field(
        None,
        ge=1,
        description="draws from the random ranges, each tried at every point of the grids; with optuna the number "
        "of points; null: as many as make 16 trials",
    )
    max_concurrent_trials: int | None = Field(None, ge=1, description="null: as many as fit the cluster")
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = Field(
        "none", description="which trials are stopped early; Ray Tune's own"
    )
    search: Literal["random", "grid", "optuna", "bohb"] = Field(
        "random", description="where points come from"
    )
    time_budget_s: float | None = Field(
        None, gt=0, description="seconds after which no more is trained; the same command goes on"
    )
    repeat: int = Field(1, ge=1, description="seeds per point; mean and spread are reported")
    points: list[dict[str, Any]] = Field(
        default_factory=list,
        description="points to try first, e.g. [{optim.lr: 0.001}]; what one lacks is drawn",
    )
    keep: int = Field(1, ge=1, description="of how many of the best trials the checkpoints are kept")
    engine: Literal["auto", "process", "distributed"] = Field(
        "auto", description="process: a trial is one process, reused; distributed: each has its own workers"
    )
