"""Train a model: from its config to its result."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from shoal.api.config import ConfigLike, make_config
from shoal.api.results import TrainResult
from shoal.cluster import session
from shoal.config.secrets import mask
from shoal.runs.config import RunConfig
from shoal.runs.data_notes import data_notes
from shoal.runs.locations import resolve_tracking_uri
from shoal.runs.resolve import finished_result, resolve_run_folder
from shoal.runs.validate import RunPlan, check_tracking, validate
from shoal.storage import records
from shoal.storage.lease import now_ms
from shoal.storage.run_folder import RunFolder
from shoal.terminal.errors import interruptible, warnings_on_stderr
from shoal.terminal.progress import ProgressLine
from shoal.terminal.reports import plan_report
from shoal.workflows import train as workflow


def train(config: ConfigLike = None, **overrides: Any) -> TrainResult:
    """Train a model, verify it, and record everything in MLflow.

    An unfinished run of the same config goes on from its last checkpoint. With a `run_name`, a run that has finished is
    returned at once.

        result = shoal.train("digits.yaml", **{"optim.lr": 0.01})
        result = shoal.train({"data.source": frame, "data.label": "price", "model.name": Net}, task="regression")

    Args:
        config: the path of a YAML file (or the name of one that Shoal has, `digits.yaml`), a dict with nested or dotted
            keys, or a `shoal.Config`; None: all defaults.
        overrides: keys that override it: `seed=1`, `optim={"lr": 0.1}`, `**{"optim.lr": 0.1}`.

    Raises:
        UserError: the config, the data or the model cannot be used; nothing was started.
        Interrupted: Ctrl-C; there is a checkpoint, and the same call goes on from it.
        TrainingError: user code raised, or workers were lost too often.
    """
    with own_warnings():
        return TrainResult(run_training(make_config(RunConfig, config, overrides)))


def run_training(config: RunConfig) -> records.TrainResult:
    """Check and train; print what a person should know meanwhile."""
    folder, done = open_run(config)
    return done or train_checked(check_run(config), folder)


def open_run(config: RunConfig) -> tuple[RunFolder, records.TrainResult | None]:
    """Return the folder that a run begins or continues, and its result if it has finished, which is said."""
    folder = resolve_run_folder(config)
    done = finished_result(folder, records.TrainResult)
    if done:
        print(f"run {done.run_name} is finished; set if_exists=new to train it again", flush=True)
    return folder, done


def check_run(config: RunConfig, trains: bool = True, submitted_ms: int | None = None) -> RunPlan:
    """Check all that can be checked before anything starts; print the data and the model.

    Args:
        trains: large data are then read, and checked, once there is a cluster to train on; else here.
        submitted_ms: when the run was submitted; by default now.
    """
    submitted_ms = submitted_ms or now_ms()
    check_tracking(config.track)
    plan = validate(config, session.connect)
    if plan.dataset_info is None and not trains:
        print(f"reading {mask(config.data.source)} on the cluster, as a training does first", flush=True)
        plan = workflow.read_and_check(plan)
    if plan.dataset_info and plan.size:
        print(plan_report(config, plan.dataset_info, plan.size, data_notes(plan.source, plan.dataset_info)))
    return replace(plan, submitted_ms=submitted_ms)


def train_checked(plan: RunPlan, folder: RunFolder) -> records.TrainResult:
    """Train, with a line of progress; Ctrl-C writes a checkpoint."""
    print(f"run     {folder.uri}")
    print(f"mlflow  {resolve_tracking_uri(plan.config.track)}", flush=True)
    with interruptible(folder.interrupt), ProgressLine() as progress:
        return workflow.train(plan, folder, progress)


@contextlib.contextmanager
def own_warnings() -> Iterator[None]:
    """Show Shoal's warnings, unless the caller's own logging does."""
    if logging.getLogger("shoal").hasHandlers():
        yield
        return
    with warnings_on_stderr():
        yield
