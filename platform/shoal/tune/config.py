"""The config of a sweep: that of a run, with what is swept and how; makes each trial's config."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shoal.config.loading import read
from shoal.config.schema import Section, build_config, fields
from shoal.errors import ConfigError, nearest
from shoal.runs.config import FREE_ON_RESUME, VALIDATION_METRICS, RunConfig, ScaleConfig
from shoal.tasks.metrics import is_higher_better
from shoal.tracking.config import TrackConfig
from shoal.tune.space.domains import Point, Space, describe_domain
from shoal.tune.space.parsing import parse_block, parse_setting
from shoal.tune.space.sampling import point_seed


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


DEFAULT_SPACE = {"model.width": "grid(32, 64, 128, 256)", "optim.lr": "loguniform(0.0001, 0.1)"}

# What decides where a trial runs or is kept, and not what it learns.
NOT_SWEPT = ("run_name", "experiment_name", "storage_path", "if_exists", "track.", "scale.", "checkpoint.")
OWN_KEYS = ("tune", "space", "dry_run")


class TrialScaleConfig(ScaleConfig):
    num_workers: int = Field(1, ge=1, description="Ray Train workers of each trial")


class TrialTrackConfig(TrackConfig):
    every_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="optimiser steps between points of a trial's train/loss; auto: some 1,000 in all"
    )


class SweepConfig(RunConfig):
    free_on_resume: ClassVar[tuple[str, ...]] = (
        *FREE_ON_RESUME,
        "dry_run",
        "tune.num_samples",
        "tune.max_concurrent_trials",
        "tune.time_budget_s",
        "tune.keep",
        "tune.engine",
    )

    name_prefix: ClassVar[str] = "sweep-"

    scale: TrialScaleConfig = Field(default_factory=TrialScaleConfig)
    track: TrialTrackConfig = Field(default_factory=TrialTrackConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)
    space: dict[str, Any] = Field(
        default_factory=lambda: dict(DEFAULT_SPACE),
        description="ranges by key, e.g. {optim.lr: 'loguniform(1e-4, 1e-1)'}; on the command line key=range",
    )
    dry_run: bool = Field(False, description="print what the sweep would cost, and start nothing")

    @field_validator("space")
    @classmethod
    def _is_a_space(cls, block: dict[str, Any]) -> dict[str, str]:
        space = parse_block(block)
        known = dict(fields(RunConfig))
        for key in space:
            if key not in known and not key.startswith("model.args."):
                raise ConfigError(
                    f"space names an unknown key '{key}'{nearest(key, known)}: `--help` lists every key"
                )
            if key.startswith(NOT_SWEPT):
                raise ConfigError(
                    f"'{key}' cannot be swept: it says where a trial runs or is kept; set it to one value"
                )
        if not space:
            raise ConfigError("nothing is swept: give a range, e.g. 'optim.lr=loguniform(1e-4,1e-1)'")
        return {key: describe_domain(domain) for key, domain in space.items()}

    @model_validator(mode="after")
    def _sweeps_something_that_is_reported(self) -> "SweepConfig":
        known, tune = VALIDATION_METRICS[self.task], self.tune
        if tune.metric not in known:
            raise ValueError(
                f"tune.metric='{tune.metric}' is never reported{nearest(tune.metric, known)}: a {self.task} reports "
                f"{', '.join(known)}"
            )
        if not self.data.validation_fraction:
            raise ValueError(
                f"tune.metric='{tune.metric}' needs a validation split: set data.validation_fraction above 0"
            )
        if tune.engine == "process" and self.scale.num_workers > 1:
            raise ValueError(
                f"tune.engine=process runs a trial in one process, and scale.num_workers={self.scale.num_workers}: "
                "set tune.engine=auto"
            )
        if tune.scheduler == "hyperband" and tune.search == "optuna":
            raise ValueError(
                "tune.scheduler=hyperband halves a set of trials that must all be known beforehand, and "
                "tune.search=optuna brings them one by one: set tune.scheduler=asha, or tune.search=random"
            )
        if tune.scheduler == "pbt" and tune.search == "optuna":
            raise ValueError(
                "tune.scheduler=pbt moves the points itself, and so does tune.search=optuna: set tune.search=random"
            )
        if tune.scheduler == "pbt" and not any(key.startswith("optim.") for key in self.space):
            raise ValueError(
                f"tune.scheduler=pbt perturbs keys of optim, and the space has {', '.join(self.space)}: "
                "add e.g. 'optim.lr=loguniform(1e-4,1e-1)'"
            )
        return self

    @property
    def mode(self) -> str:
        return self.tune.mode or ("max" if is_higher_better(self.tune.metric) else "min")

    @property
    def domains(self) -> Space:
        return parse_block(self.space)

    @property
    def is_distributed(self) -> bool:
        return self.tune.engine == "distributed" or self.scale.num_workers > 1

    def trial(self, point: Point, repeat: int = 0, name: str | None = None) -> RunConfig:
        """Return the config of the trial at a point.

        Its seed is a function of the sweep's and the point; its rows are split as those of all trials.

        Raises:
            ConfigError: the point is no valid config.
        """
        base = {key: value for key, value in self.model_dump().items() if key in RunConfig.model_fields}
        made: RunConfig = RunConfig.model_validate(base)
        seeds = {"seed": point_seed(self.seed, point, repeat)}
        if self.data.split_seed is None:
            seeds["data.split_seed"] = self.seed
        return made.replace({"run_name": name, "track.registered_model_name": None} | seeds | point)


def load_sweep(path: str | None, settings: Sequence[str]) -> SweepConfig:
    """Build the config of a sweep from a file and `key=value` or `key=range` settings.

    Ranges on the command line join those of the file's `space:` block. Where neither gives any, the default ones are
    swept, less the keys that were given a value.

    Raises:
        ConfigError: a range, key or value is refused.
    """
    tree, space, fixed = read_sweep(path, settings)
    if not space:
        space, fixed = dict(DEFAULT_SPACE), fixed | set(_leaves(tree))
    tree["space"] = {key: text for key, text in space.items() if key not in fixed}
    return build_config(SweepConfig, tree)


def read_sweep(path: str | None, settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Return what a file and settings say, which no schema has seen yet.

    Returns:
        values, as a nested mapping; ranges by key; the keys that settings gave a value, which are not swept.

    Raises:
        ConfigError: the file does not parse, or a range breaks a rule of ranges.
    """
    plain, ranges = [], {}
    for setting in settings:
        key, sign, text = (part.strip() for part in setting.partition("="))
        domain = parse_setting(key, text) if sign and key.partition(".")[0] not in OWN_KEYS else None
        if domain is None:
            plain.append(setting)
        else:
            ranges[key] = describe_domain(domain)
    tree = read(path, plain)
    block = parse_block(tree.pop("space", {}))
    space = {key: describe_domain(domain) for key, domain in block.items()} | ranges
    fixed = {setting.partition("=")[0].strip() for setting in plain}
    return tree, space, fixed


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key
