"""Sweep over ranges of a config: from its config to its best trial."""

from collections.abc import Mapping
from typing import Any

from shoal.api.config import ConfigLike, tree_of
from shoal.api.results import SweepResult
from shoal.api.space import named_values
from shoal.api.train import own_warnings
from shoal.cluster import session
from shoal.config.schema import build_config
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.resolve import resolve_run_folder
from shoal.runs.validate import check_tracking
from shoal.storage import records
from shoal.storage.run_folder import RunFolder
from shoal.terminal.errors import interruptible
from shoal.terminal.progress import SweepTable
from shoal.tune.config import DEFAULT_SPACE, SweepConfig
from shoal.tune.space.domains import Grid, is_domain
from shoal.tune.validate import SweepPlan, validate_sweep
from shoal.workflows.tune.result import covers, finished_sweep
from shoal.workflows.tune.sweep import run_sweep


def tune(config: ConfigLike = None, space: Mapping[str, Any] | None = None, **overrides: Any) -> SweepResult:
    """Try many values of some keys, each in a trial, and verify and register the best trial's model.

        sweep = shoal.tune("digits.yaml", space={"optim.lr": shoal.loguniform(1e-4, 1e-1), "model.width": [16, 32]})
        sweep.best.params, sweep.best.model.predict(frame)

    An unfinished sweep of the same config goes on where it stopped. With a `run_name`, a sweep that has finished is
    returned at once.

    Args:
        config: as in `shoal.train`.
        space: ranges by key: `shoal.loguniform(...)`, ..., or a list, of which every value is tried. None: those of the
            config, else widths and learning rates.
        overrides: as in `shoal.train`; those of the sweep itself are `tune.*`, e.g. `**{"tune.num_samples": 20}`.

    Raises:
        UserError: the config, a range, the data or the model cannot be used; nothing was started.
        Interrupted: Ctrl-C; trials have checkpoints, and the same call goes on from them.
        TrainingError: no trial came to a result.
    """
    with own_warnings():
        return SweepResult(run_tuning(make_sweep_config(config, space or {}, overrides)))


def make_sweep_config(
    config: ConfigLike, space: Mapping[str, Any], overrides: Mapping[str, Any]
) -> SweepConfig:
    """Return the checked config of a sweep; ranges among the overrides join those of `space`."""
    ranges = {key: value for key, value in overrides.items() if is_domain(value)} | dict(space)
    values = {key: value for key, value in overrides.items() if key not in ranges}
    tree = tree_of(SweepConfig, config, values)
    ranges = dict(tree.pop("space", {})) | {key: _range(value) for key, value in ranges.items()}
    if not ranges:
        ranges = {key: text for key, text in DEFAULT_SPACE.items() if not _holds(tree, key)}
    return build_config(SweepConfig, tree | {"space": ranges})


def run_tuning(config: SweepConfig) -> records.SweepResult:
    """Check and sweep; print what a person should know meanwhile."""
    plan = check_sweep(config)
    folder, done = open_sweep(config, plan)
    return done or sweep_checked(plan, folder)


def check_sweep(config: SweepConfig) -> SweepPlan:
    """Check all that can be checked before anything starts; print the space."""
    plan = validate_sweep(config, session.connect)
    print(f"space   {', '.join(f'{key}: {text}' for key, text in config.space.items())}", flush=True)
    return plan


def open_sweep(config: SweepConfig, plan: SweepPlan) -> tuple[RunFolder, records.SweepResult | None]:
    """Return the folder that a sweep begins or continues, and its result if it has finished, which is said."""
    folder = resolve_run_folder(config, lambda folder: covers(finished_sweep(folder), plan.total))
    done = finished_sweep(folder)
    if not done or not covers(done, plan.total):
        return folder, None
    print(f"sweep {done.run_name} is finished; set if_exists=new to run it again", flush=True)
    return folder, done


def sweep_checked(plan: SweepPlan, folder: RunFolder) -> records.SweepResult:
    """Run all trials, with a table of progress; Ctrl-C writes checkpoints."""
    check_tracking(plan.config.track)
    print(f"sweep   {folder.uri}: {plan.total} trials")
    print(f"mlflow  {resolve_tracking_uri(plan.config.track)}", flush=True)
    with interruptible(folder.interrupt), SweepTable() as progress:
        return run_sweep(plan, folder, progress)


def _range(value: Any) -> Any:
    """Return a list as a grid, with the classes and functions in it by name."""
    return Grid(named_values((value,))) if isinstance(value, list | tuple) else value


def _holds(tree: Mapping[str, Any], key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True
