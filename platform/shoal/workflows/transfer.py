"""Tune narrow, train wide: a sweep at the base width of muP, and one run at the target width with what was best.

The sweep is that of `jobs/run_sweep.py`, the run that of `jobs/train.py`, each in a run folder of its own that is named
after the transfer; the same command goes on where the last one was interrupted. Yang et al. 2022, "Tensor Programs V".
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, model_validator

from shoal.cluster import session
from shoal.config.schema import build_config
from shoal.errors import ConfigError
from shoal.models.config import ModelConfig
from shoal.models.flops import training_flops
from shoal.plots.figure import to_png
from shoal.runs.config import RunConfig
from shoal.runs.job_result import JobResult, log_job_result
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.resolve import finished_result, resolve_run_folder
from shoal.runs.validate import validate
from shoal.storage.records import (
    BestTrial,
    Comparison,
    CostRecord,
    Metadata,
    ModelRecord,
    SweepResult,
    TrainResult,
    TransferResult,
)
from shoal.storage.run_folder import RunFolder
from shoal.tune.analysis.mup_transfer import (
    Cost,
    Savings,
    busy_seconds,
    compare_point,
    cost_of,
    gap,
    predict_savings,
    transfer_figure,
)
from shoal.tune.analysis.width import width_report
from shoal.tune.config import SweepConfig, read_sweep
from shoal.tune.report.text import params_text
from shoal.tune.report.write import LR, WIDTH
from shoal.tune.space.domains import Grid, describe_domain
from shoal.tune.trials import is_number
from shoal.tune.validate import SweepPlan, validate_sweep
from shoal.workflows.train import train
from shoal.workflows.tune.result import finished_sweep
from shoal.workflows.tune.sweep import run_sweep

OCTAVES = range(-4, 5)  # of the rates tried by default, about the config's own

# Shows a stage, "sweep" or "run", that works in a folder: the context gives what listens to its status.
Show = Callable[[str, RunFolder], AbstractContextManager[Callable[[Any], None]]]


class TransferConfig(SweepConfig):
    name_prefix: ClassVar[str] = "transfer-"
    # More trials may find another best, whose run is another one.
    free_on_resume: ClassVar[tuple[str, ...]] = (
        *(key for key in SweepConfig.free_on_resume if key != "tune.num_samples"),
        "compare",
    )

    target_width: int | None = Field(
        None, ge=1, description="the width to train at; --to model.width=N sets it"
    )
    compare: bool = Field(False, description="sweep at the target width too, and tell the gap; as --verify")

    @model_validator(mode="after")
    def _widens(self) -> "TransferConfig":
        if WIDTH in self.space:
            raise ValueError(
                f"{WIDTH} is swept ({self.space[WIDTH]}): a transfer tunes at one width; give it a value, e.g. "
                f"{WIDTH}=64"
            )
        if self.target_width is None or self.target_width <= self.model.width:
            raise ValueError(
                f"the target width is {self.target_width} and the base width {self.model.width}: "
                f"give a wider one, e.g. --to {WIDTH}={8 * self.model.width}"
            )
        return self

    def at(self, width: int, name: str | None = None) -> SweepConfig:
        """Return the config of the sweep at a width; what it finds best is not registered."""
        tree = {key: value for key, value in self.model_dump().items() if key in SweepConfig.model_fields}
        changes = {"run_name": name, "if_exists": "resume", "track.registered_model_name": None}
        return build_config(SweepConfig, tree).replace(changes | {WIDTH: width})


@dataclass(frozen=True)
class TransferPlan:
    """A transfer that was checked at both widths; nothing is started yet."""

    config: TransferConfig
    base: SweepPlan
    target: SweepPlan

    @property
    def widths(self) -> tuple[int, int]:
        """The base width and the target width."""
        return self.base.config.model.width, self.target.config.model.width


def load_transfer(
    path: str | None, settings: Sequence[str], to: str, compare: bool = False
) -> TransferConfig:
    """Build the config of a transfer; without a range, rates about `optim.lr` are swept, a factor of 2 apart.

    Unless they say otherwise, the models are in muP, and the base width is that of the config.

    Args:
        path: of a YAML file.
        settings: `key=value` or `key=range`.
        to: `model.width=N`.
        compare: whether to sweep at the target width too, whatever the settings say.

    Raises:
        ConfigError: a range, key or value is refused.
    """
    key, _, target = to.partition("=")
    if key.strip() != WIDTH:
        raise ConfigError(
            f"--to {to}: it is the width that a rate is transferred to: write --to {WIDTH}=1024"
        )
    tree, space, fixed = read_sweep(path, settings)
    tree["model"] = _in_mup(tree.get("model", {}))
    space = {name: text for name, text in space.items() if name not in fixed} if space else _rates(tree)
    tree |= {"space": space, "target_width": target} | ({"compare": True} if compare else {})
    return build_config(TransferConfig, tree)


def validate_transfer(config: TransferConfig) -> TransferPlan:
    """Check all that can be checked at both widths.

    Raises:
        UserError: the first rule that is broken.
    """
    assert config.target_width is not None
    base, target = (
        validate_sweep(config.at(config.model.width), session.connect),
        validate_sweep(config.at(config.target_width), session.connect),
    )
    return TransferPlan(config, base, target)


def finished_transfer(config: TransferConfig, folder: RunFolder) -> TransferResult | None:
    """Return the result of a transfer that holds all that the config asks for, or None."""
    result = finished_result(folder, TransferResult)
    return result if result and (result.comparison or not config.compare) else None


def run_transfer(plan: TransferPlan, folder: RunFolder, show: Show) -> TransferResult:
    """Sweep narrow, train wide, sweep wide too with `compare`.

    Raises:
        Interrupted: the stage in progress was stopped; the same command goes on there.
        ShoalError: a stage failed.
    """
    name = folder.uri.rpartition("/")[2]
    narrow = _sweep(plan.base, f"{name}-tune", show)
    run = _train(plan, _best(narrow).params, f"{name}-train", show)
    wide = _sweep(plan.target, f"{name}-compare", show) if plan.config.compare else None
    found = _Found(plan, narrow, run, wide)
    return log_job_result(
        folder,
        JobResult(plan.config, found.metadata, found.metrics, found.pictures, TransferResult, found.result),
        plan.config.experiment_name,
        resolve_tracking_uri(plan.config.track),
    )


@dataclass(frozen=True)
class _Found:
    """What the stages' results say together."""

    plan: TransferPlan
    narrow: SweepResult
    run: TrainResult
    wide: SweepResult | None

    @property
    def value(self) -> float:
        """The metric of the run at the target width, of the weights it ends with."""
        return self.run.metrics[self.narrow.metric]

    @property
    def savings(self) -> Savings:
        wide_flops, narrow_flops = _flops(self.run.model), _flops(_best(self.narrow).model)
        training = Cost(
            training_flops(wide_flops, self.run.samples_seen or 0),
            busy_seconds(self.run.seconds or 0.0, self.run.shares),
        )
        search = cost_of(self.narrow.rows)
        if self.wide:
            return Savings(search, training, cost_of(self.wide.rows), is_measured=True)
        return predict_savings(search, wide_flops / narrow_flops, training)

    @property
    def comparison(self) -> Comparison | None:
        """What a sweep at the target width found, beside what was transferred; of several seeds the mean counts."""
        if self.wide is None:
            return None
        params, mode = _best(self.narrow).params, self.narrow.mode
        transferred, best = compare_point(self.wide.rows, params, self.value, mode)
        rows = [
            dataclasses.replace(row, params={**row.params, WIDTH: width})
            for width, found in zip(self.plan.widths, (self.narrow, self.wide), strict=True)
            for row in found.rows
        ]
        report = width_report(rows, LR, WIDTH, mode)
        return Comparison(
            params=best.params,
            value=best.mean,
            transferred_value=transferred,
            gap=gap(transferred, best.mean, mode),
            width_report=report.text() if report else None,
            run_folder=self.wide.run_folder,
        )

    @property
    def result(self) -> dict[str, Any]:
        savings, best = self.savings, _best(self.narrow)
        return {
            "metric": self.narrow.metric,
            "mode": self.narrow.mode,
            "base_width": self.plan.widths[0],
            "target_width": self.plan.widths[1],
            "trials": len(self.narrow.rows),
            "params": best.params,
            "base_value": best.value,
            "target_value": self.value,
            "metrics": self.run.metrics,
            "comparison": self.comparison,
            "cost": {
                name: CostRecord(flops=cost.flops, seconds=cost.seconds)
                for name, cost in savings.by_name().items()
            },
            "is_measured": savings.is_measured,
            "flops_factor": savings.flops_factor,
            "seconds_factor": savings.seconds_factor,
            "sweep_folder": self.narrow.run_folder,
            "train_folder": self.run.run_folder,
        }

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the result that MLflow can draw."""
        savings, compared = self.savings, self.comparison
        metrics = {
            "base_value": float(_best(self.narrow).value or 0.0),
            "target_value": self.value,
            "flops_factor": savings.flops_factor,
            "seconds_factor": savings.seconds_factor,
        }
        for name, cost in savings.by_name().items():
            metrics |= {f"cost/{name}_flops": cost.flops, f"cost/{name}_seconds": cost.seconds}
        return metrics | ({"gap": compared.gap, "best_value": compared.value} if compared else {})

    @property
    def metadata(self) -> Metadata:
        """That of the run at the target width, and where its hyperparameters come from."""
        metadata, best = RunFolder(self.run.run_folder).load(Metadata) or Metadata(), _best(self.narrow)
        base, target = self.plan.widths
        params = {"base_width": base, "target_width": target}
        tags = {
            "shoal.job": "transfer",
            "shoal.transfer.sweep_run_id": self.narrow.mlflow_run_id,
            "shoal.transfer.train_run_id": self.run.mlflow_run_id,
            "mlflow.note.content": f"tuned at width {base}, trained at width {target}: {params_text(best.params)}",
        }
        return metadata.extended(
            params | {f"swept.{key}": text for key, text in self.plan.config.space.items()},
            tags | {f"best.{key}": value for key, value in best.params.items()},
        )

    @property
    def pictures(self) -> dict[str, bytes]:
        best, metric, mode = _best(self.narrow).params, self.narrow.metric, self.narrow.mode
        key = next((key for key in (LR, *best) if is_number(best.get(key)) and best[key] > 0), None)
        if key is None:
            return {}
        base, target = self.plan.widths
        trials = {float(base): self.narrow.rows} | ({float(target): self.wide.rows} if self.wide else {})
        landed = float(target), float(best[key]), self.value
        return {"transfer": to_png(transfer_figure(trials, key, landed, self.savings, metric, mode))}


def _sweep(plan: SweepPlan, name: str, show: Show) -> SweepResult:
    config = plan.config.replace({"run_name": name})
    folder = resolve_run_folder(config)
    done = finished_sweep(folder)
    if done:
        return done
    with show("sweep", folder) as listen:
        return run_sweep(dataclasses.replace(plan, config=config), folder, listen)


def _train(plan: TransferPlan, params: Mapping[str, Any], name: str, show: Show) -> TrainResult:
    """Train at the target width as the trial of a sweep there would be, with its seed."""
    registered = plan.config.track.registered_model_name
    config: RunConfig = plan.target.config.trial(dict(params), name=name)
    config = config.replace({"track.registered_model_name": registered})
    folder = resolve_run_folder(config)
    done = finished_result(folder, TrainResult)
    if done:
        return done
    checked = validate(config, session.connect)
    with show("run", folder) as listen:
        return train(checked, folder, listen)


def _best(sweep: SweepResult) -> BestTrial:
    assert sweep.best is not None, "a sweep without a best trial has failed"
    return sweep.best


def _flops(model: ModelRecord | None) -> int:
    """Return the FLOPs of a forward pass of a sample."""
    assert model is not None, "a training that finished has measured its model"
    return model.flops_per_sample


def _in_mup(model: Any) -> Any:
    """Let the models be in muP and the base width that of the config, unless they say otherwise."""
    if not isinstance(model, dict):
        return model  # which is refused when it is built
    width = model.get("base_width") or model.get("width", ModelConfig().width)
    return {"parametrization": "mup", **model, "base_width": width, "width": width}


def _rates(tree: Mapping[str, Any]) -> dict[str, str]:
    """The default ranges: rates a factor of 2 apart about the config's own."""
    optim = build_config(RunConfig, {"optim": tree.get("optim", {})}).optim
    return {LR: describe_domain(Grid(tuple(optim.lr * 2.0**octaves for octaves in OCTAVES)))}
