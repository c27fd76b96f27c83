"""The config of a sweep: that of a run with the ranges of `space` and the section `tune`; makes each trial's config."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shoal.config.loading import read
from shoal.config.schema import Section, build_config, fields
from shoal.config.secrets import hide
from shoal.errors import ConfigError, nearest
from shoal.runs.config import FREE_ON_RESUME, RunConfig, ScaleConfig
from shoal.tasks.metrics import is_higher_better
from shoal.tracking.config import TrackConfig
from shoal.tune.keys import check_range, why_incomparable
from shoal.tune.space.domains import Point, Space, describe_domain
from shoal.tune.space.parsing import parse_block, parse_setting
from shoal.tune.space.sampling import point_seed
from shoal.tune.trials import Mode

# Swept where neither a file nor the command line gives a range.
DEFAULT_SPACE = {"model.width": "grid(32, 64, 128, 256)", "optim.lr": "loguniform(0.0001, 0.1)"}
# These say where a trial runs or is stored, not what it computes.
NOT_SWEPT = ("run_name", "experiment_name", "storage_path", "if_exists", "track.", "scale.", "checkpoint.")
# Keys of the sweep itself, which hold no ranges: `tune.points=[...]` is a value.
SWEEP_KEYS = ("tune", "space", "dry_run")


class TuneConfig(Section):
    """The section `tune`."""

    metric: str = Field(
        "val/loss", description="what trials are compared by: its value for the weights that are their result"
    )
    mode: Mode | None = Field(None, description="null: as the metric says, or its name")
    num_samples: int | None = Field(
        None,
        ge=1,
        description="draws from the random ranges, each tried at every point of the grids; with optuna the number "
        "of points; null: as many as make 16 trials",
    )
    max_concurrent_trials: int | None = Field(None, ge=1, description="null: as many as fit the cluster")
    scheduler: Literal["none", "asha", "hyperband", "median", "pbt"] = Field(
        "none", description="which trials are stopped early"
    )
    search: Literal["random", "grid", "optuna"] = Field("random", description="where points come from")
    lag: int = Field(
        8,
        ge=1,
        description="search=optuna: a point is proposed from the results up to so many points before it, and so many "
        "run side by side at most; another value proposes other points",
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


class TrialScaleConfig(ScaleConfig):
    """The section `scale`, of each trial."""

    num_workers: Annotated[int, Field(ge=1)] | list[int] = Field(
        1, description="Ray Train workers of each trial; [min, max]: as many as there is room for at the time"
    )


class TrialTrackConfig(TrackConfig):
    """The section `track`, with fewer points per trial."""

    every_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="optimizer steps between points of a trial's train/loss; auto: some 1,000 in all"
    )


class SweepConfig(RunConfig):
    """The whole config of a sweep."""

    free_on_resume: ClassVar[tuple[str, ...]] = (
        *FREE_ON_RESUME,
        "dry_run",
        "tune.num_samples",
        "tune.max_concurrent_trials",
        "tune.time_budget_s",
        "tune.keep",
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
        for key, domain in space.items():
            if key not in known and not key.startswith("model.args."):
                raise ConfigError(
                    f"space names an unknown key '{key}'{nearest(key, known)}: `--help` lists every key"
                )
            if key.startswith(NOT_SWEPT):
                raise ConfigError(
                    f"'{key}' cannot be swept: it says where a trial runs or is kept; set it to one value"
                )
            check_range(key, domain)
        if not space:
            raise ConfigError("nothing is swept: give a range, e.g. 'optim.lr=loguniform(1e-4,1e-1)'")
        return {key: describe_domain(domain) for key, domain in space.items()}

    @model_validator(mode="after")
    def _has_a_reported_metric(self) -> "SweepConfig":
        known, metric = self.reported, self.tune.metric
        if not self.may_report(metric):
            raise ValueError(
                f"tune.metric='{metric}' is never reported{nearest(metric, known)}: a {self.task} reports "
                f"{', '.join(known)}"
            )
        if not self.data.validation_fraction:
            raise ValueError(
                f"tune.metric='{metric}' needs a validation split: set data.validation_fraction above 0"
            )
        return self

    @model_validator(mode="after")
    def _has_a_best_trial(self) -> "SweepConfig":
        tune = self.tune
        reason = why_incomparable(self.space, self.task, tune.metric, tune.scheduler != "none")
        if reason:
            raise ValueError(reason)
        better = self._better
        if not self.has_direction(tune.metric):
            if tune.mode is None:
                raise ValueError(
                    f"tune.metric='{tune.metric}': nothing says whether a higher value is better: set tune.mode=max or "
                    "tune.mode=min"
                )
        elif tune.mode not in (None, better):
            raise ValueError(
                f"tune.mode={tune.mode} with tune.metric={tune.metric}: it is better when it is "
                f"{'higher' if better == 'max' else 'lower'}, so the worst trial would win: leave tune.mode out"
            )
        if "seed" in self.space and tune.repeat > 1:
            raise ValueError(
                f"seed is swept ({self.space['seed']}) and tune.repeat={tune.repeat} chooses seeds too: leave "
                "tune.repeat out, or sweep no seed"
            )
        return self

    @model_validator(mode="after")
    def _has_a_scheduler_that_fits(self) -> "SweepConfig":
        tune = self.tune
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
    def mode(self) -> Mode:
        """Whether the metric is minimized or maximized."""
        return self.tune.mode or self._better

    @property
    def _better(self) -> Mode:
        return "max" if is_higher_better(self.tune.metric, self.directions) else "min"

    @property
    def domains(self) -> Space:
        """The parsed space."""
        return parse_block(self.space)

    @property
    def is_distributed(self) -> bool:
        """Whether each trial has Ray Train workers of its own; else it is one process, which is reused."""
        return self.scale.most_workers > 1

    def trial(self, point: Point, repeat: int = 0, name: str | None = None) -> RunConfig:
        """Return the config of the trial at a point.

        Its seed is a function of the sweep's seed, the point and the repeat; all trials hold out the same rows.

        Raises:
            ConfigError: the point is no valid config.
        """
        tree = {key: value for key, value in self.model_dump().items() if key in RunConfig.model_fields}
        base: RunConfig = RunConfig.model_validate(tree)
        seeds = {"seed": point_seed(self.seed, point, repeat)}
        if self.data.split_seed is None:
            seeds["data.split_seed"] = self.seed
        return base.replace({"run_name": name, "track.registered_model_name": None} | seeds | point)


def load_sweep(path: str | None, settings: Sequence[str]) -> SweepConfig:
    """Build the config of a sweep from a file and `key=value` or `key=range` settings.

    Ranges on the command line join those of the file's `space:` block. Where neither gives any, the default ones are
    swept, except the keys that were given a value.

    Raises:
        ConfigError: a range, key or value is refused.
    """
    tree, space, fixed = read_sweep(path, settings)
    if not space:
        space, fixed = dict(DEFAULT_SPACE), fixed | set(_leaves(tree))
    tree["space"] = {key: text for key, text in space.items() if key not in fixed}
    return build_config(SweepConfig, tree)


def read_sweep(path: str | None, settings: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Return what a file and settings say, before any schema checks it.

    Of two settings of a key the last one counts, whether each is a value or a range, and a setting counts more than
    the file. Within a file a range in `space:` counts more than a value.

    Returns:
        values, as a nested mapping; ranges by key; the keys to which settings gave a value, which are not swept.

    Raises:
        ConfigError: the file does not parse, or a range breaks a rule of ranges.
    """
    values: list[str] = []
    ranges: dict[str, str] = {}
    fixed: set[str] = set()
    for setting in settings:
        key, sign, text = (part.strip() for part in setting.partition("="))
        domain = parse_setting(key, hide(text)) if sign and key.partition(".")[0] not in SWEEP_KEYS else None
        if domain is None:
            values.append(setting)
            fixed |= {key, *_leaves(read(None, [setting]))}  # `optim={lr: 0.1}` is a value of optim.lr
        else:
            ranges[key] = describe_domain(domain)
            fixed.discard(key)
    tree = read(path, values)
    block = parse_block(tree.pop("space", {}))
    space = {key: describe_domain(domain) for key, domain in block.items()} | ranges
    return tree, space, fixed


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of the values in a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key
