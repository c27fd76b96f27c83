"""Which weights are the result of a run, also after it was killed and resumed."""

import logging

import pytest
import torch

from shoal.cluster import session
from shoal.config.loading import load
from shoal.data.partition import partition_source
from shoal.distributed.process_group import SingleProcess
from shoal.runs.config import RunConfig
from shoal.runs.resident import resident_shard
from shoal.runs.selection import select_weights
from shoal.runs.validate import validate
from shoal.runs.worker import WorkerSpec, run_worker
from shoal.storage.records import Outcome
from shoal.storage.run_folder import CHECKPOINTS, RunFolder
from shoal.tracking.journal import JournalReader
from shoal.training.assemble import assemble
from shoal.training.checkpoint.contents import WEIGHTS, checkpoint_name
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.resume import resume_or_start
from shoal.tune.config import load_sweep
from shoal.tune.engine import PendingExploit, Report, Trial
from shoal.workflows.tune.exploit import exploit
from shoal.workflows.tune.trial_progress import TrialProgress

CPU = torch.device("cpu")
MODULE = """
import random
import numpy as np
import pandas as pd
import torch

def noisy():
    x = np.random.default_rng(0).normal(size=(400, 3))
    noise = np.random.default_rng(1).normal(size=400)
    return pd.DataFrame(x, columns=list("abc")).assign(target=(x.sum(1) + 2 * noise > 0).astype(int))

def gets_worse(step, total_steps):
    return 1.0 if step < 40 else 100.0

class Draws:
    def __init__(self):
        self.seen, self.total = [], torch.zeros(1)

    def on_step_end(self, context):
        self.total += torch.rand(1)

    def on_evaluate_end(self, context, metrics):
        self.seen.append([context.step, random.random()])

    def state_dict(self):
        return {"seen": self.seen, "total": self.total}

    def load_state_dict(self, state):
        self.seen, self.total = state["seen"], state["total"]
"""


NOISY = ("data.source=HERE:noisy", "train.evaluate_every_steps=5", "train.epochs=10")


class Killed(Exception):
    """What ends a process in the middle."""


@pytest.fixture
def start(tmp_path, user_module):
    """Run an attempt in this process: `start("run", *settings)`; returns its folder, plan and spec."""
    module = user_module(MODULE)

    def started(name, *settings, attempt=1, decide=None):
        base = [
            "data.source=sklearn:iris", "scale.num_workers=0", "train.epochs=30", "optim.lr=0.01", "model.width=16",
            "data.global_batch_size=16", f"optim.schedule={module}:gets_worse",
            f"train.callbacks=[{module}:Draws]",
        ]  # fmt: skip
        given = [setting.replace("HERE", module) for setting in settings]
        config = load(RunConfig, None, [*base, *given])
        plan = validate(config, session.connect)
        folder = RunFolder(str(tmp_path / name))
        if attempt == 1:
            folder.create_identity(name=name, experiment="shoal", tracking_uri="none")
        spec = WorkerSpec(config, folder.uri, attempt, plan.dataset_info, plan.preprocessing)
        rows = partition_source(plan.source, plan.preprocessing, plan.dataset_info, 1)[0]
        shard = resident_shard(spec, rows, 0, 1, CPU)
        run_worker(spec, shard, SingleProcess(), CPU, decide=decide, watches_system=False)
        return folder, config, spec, shard

    return started


def curve(folder, key="val/loss"):
    return {point.step: point.value for point in JournalReader(folder).read() if point.key == key}


def weights(folder, step):
    return CheckpointStore(folder).open(checkpoint_name(step)).weights()


@pytest.mark.parametrize("ema", ["null", "0.8"])
def test_the_best_weights_are_measured_and_the_curve_goes_on_to_the_last(start, ema):
    folder, *_ = start("run", f"train.ema={ema}")
    outcome, losses = folder.load(Outcome), curve(folder)
    best = min(losses, key=losses.__getitem__)
    assert outcome.selected_step == outcome.weights_step == best < outcome.progress.step == max(losses)
    assert outcome.val_metrics["val/loss"] == outcome.metrics["val/loss"] == losses[best]
    assert losses[max(losses)] > 1.2 * losses[best]


@pytest.mark.parametrize("metric", ["auroc", "hinge_loss"])
def test_the_best_weights_are_those_by_the_metric_of_early_stopping_in_its_own_direction(start, metric):
    name = f"val/{metric}"
    folder, *_ = start("run", *NOISY, f"train.metrics=[{metric}]", f"train.early_stopping.metric={name}")
    outcome, values = folder.load(Outcome), curve(folder, name)
    best = (max if metric == "auroc" else min)(values.values())
    assert values[outcome.selected_step] == outcome.val_metrics[name] == best
    assert min(values.values()) < values[max(values)] < max(values.values())


def test_training_ends_once_auroc_has_not_risen_for_some_evaluations(start):
    stopping = "train.early_stopping={metric: val/auroc, patience: 3}"
    folder, *_ = start("run", *NOISY, "train.metrics=[auroc]", stopping)
    outcome, values = folder.load(Outcome), curve(folder, "val/auroc")
    steps = sorted(values)
    assert outcome.ended_because == "early_stopping"
    assert values[outcome.selected_step] == max(values.values()) > values[steps[0]]
    assert steps.index(outcome.selected_step) == len(steps) - 4


def test_the_last_weights_are_the_result_where_they_are_asked_for(start):
    folder, *_ = start("run", "train.select=last")
    outcome, losses = folder.load(Outcome), curve(folder)
    assert outcome.selected_step == outcome.progress.step == max(losses)
    assert outcome.val_metrics["val/loss"] == losses[max(losses)]


def test_without_a_validation_split_the_last_weights_are_the_result(start):
    folder, *_ = start("run", "data.validation_fraction=0")
    outcome = folder.load(Outcome)
    assert outcome.selected_step == outcome.progress.step


@pytest.mark.parametrize("killed_at", [21, 56])
def test_a_killed_and_resumed_run_with_callbacks_and_early_stopping_has_the_same_result(start, killed_at):
    settings = ["train.early_stopping={patience: 4, min_delta: 0.001}", "checkpoint.every_steps=5"]

    def kill(step, metrics):
        if step >= killed_at:
            raise Killed
        return "continue"

    twin, *_ = start("twin", *settings)
    with pytest.raises(Killed):
        start("run", *settings, decide=kill)
    run, *_ = start("run", *settings, attempt=2)
    expected, found = twin.load(Outcome), run.load(Outcome)
    assert expected.ended_because == "early_stopping"
    assert expected.progress.step < expected.steps_planned
    timeless = {"seconds": 0.0}
    assert found.progress.model_copy(update=timeless) == expected.progress.model_copy(update=timeless)
    for field in ("selected_step", "val_metrics", "test_metrics", "confusion", "ended"):
        assert getattr(found, field) == getattr(expected, field), field
    assert curve(run) == curve(twin)
    for step in (found.selected_step, found.progress.step):
        ours, theirs = weights(run, step), weights(twin, step)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    last = checkpoint_name(found.progress.step)
    ours, theirs = (
        next(iter(CheckpointStore(folder).open(last).optimizer()["callbacks"].values()))
        for folder in (run, twin)
    )
    assert ours["seen"] == theirs["seen"] != []
    assert torch.equal(ours["total"], theirs["total"])


@pytest.fixture
def reopened(start):
    """A finished run's loop as another attempt opens it, to select weights from."""
    folder, config, spec, shard = start("run")
    loop = assemble(config, spec.dataset_info.transform, shard, SingleProcess(), CPU)
    store = CheckpointStore(folder)
    progress = resume_or_start(loop, store, 0)
    return folder, loop, store, progress


def test_weights_are_selected_again_by_a_later_attempt(reopened):
    folder, loop, store, progress = reopened
    step = select_weights(loop, store, progress)
    assert step == progress.best["best/step"] < progress.step
    expected = weights(folder, step)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loop.model.state_dict().items())


def test_where_the_best_checkpoint_is_corrupt_the_last_weights_are_the_result_with_a_warning(
    reopened, caplog
):
    folder, loop, store, progress = reopened
    best = int(progress.best["best/step"])
    folder.write(f"{CHECKPOINTS}/{checkpoint_name(best)}/{WEIGHTS}", b"damaged")
    with caplog.at_level(logging.WARNING):
        assert select_weights(loop, store, progress) == progress.step
    assert f"the best weights, of step {best}, cannot be read" in caplog.text


def test_a_trial_that_goes_on_from_anothers_checkpoint_has_the_best_weights_of_both(start, tmp_path):
    folder, config, spec, shard = start("source")
    last = max(curve(folder))
    sweep = load_sweep(None, ["optim.lr=0.1,0.2", "run_name=sweep"])
    trial, source = (Trial(number, {"optim.lr": 0.1}, number) for number in range(2))
    progress = TrialProgress(config, RunFolder(str(tmp_path / "t0000")), began_s=0.0)
    exploit(PendingExploit(trial, source, Report(1, last, 0.0), {"optim.lr": 0.2}), progress, folder, sweep)
    loop = assemble(config, spec.dataset_info.transform, shard, SingleProcess(), CPU)
    store = CheckpointStore(progress.folder)
    step = select_weights(loop, store, resume_or_start(loop, store, 0))
    assert step == min(curve(folder), key=curve(folder).__getitem__) < last
    expected = weights(folder, step)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loop.model.state_dict().items())
