"""A user's own callbacks: when they are called, that they move nothing, and that their state survives."""

import subprocess
import sys

import pytest

from shoal.errors import UserError
from shoal.training.user_callbacks import UserCallbacks, check_callbacks
from training_run import STEPS, TrainingRun, assert_resumes_exactly, assert_same

MODULE = """
import random
import numpy
import torch
from torch import nn

calls = []

class Recorder:
    pass

def record(name):
    return lambda self, context, *args: calls.append((name, context.step, context.epoch, *args))

for name in ("on_train_begin", "on_step_end", "on_epoch_end", "on_evaluate_end", "on_train_end"):
    setattr(Recorder, name, record(name))

class Noisy:
    '''Does to a training all that must not matter: draws, evaluates, leaves gradients.'''

    def on_train_begin(self, context):
        self._disturb(context)

    def on_step_end(self, context):
        self._disturb(context)

    def on_epoch_end(self, context):
        self._disturb(context)

    def on_evaluate_end(self, context, metrics):
        metrics["val/loss"] = 0.0
        self._disturb(context)

    def on_train_end(self, context):
        self._disturb(context)

    def _disturb(self, context):
        random.random(), numpy.random.rand(), torch.rand(2)
        nn.functional.dropout(context.model.eval()(torch.randn(4, 6)), 0.5).sum().backward()

class Counts:
    '''Its state decides what it logs, and when it stops.'''

    def __init__(self):
        self.steps, self.mean = 0, torch.zeros(2)

    def on_step_end(self, context):
        self.steps += 1
        self.mean.lerp_(torch.rand(2) * self.steps, 0.1)
        context.log("mean", self.mean[0])

    def state_dict(self):
        return {"steps": self.steps, "mean": self.mean, "words": ["a", {"b": None}]}

    def load_state_dict(self, state):
        self.steps, self.mean = state["steps"], state["mean"]

class Stops:
    def on_step_end(self, context):
        if context.step == 3:
            context.stop()

class StopsWithAnEpoch:
    def on_epoch_end(self, context):
        context.stop()

class StopsWithAnEvaluation:
    def on_evaluate_end(self, context, metrics):
        if context.step == 8:
            context.stop()

def logs(context, metrics):
    context.log("twice_the_loss", 2 * metrics["val/loss"])

def logs_under_shoals_name(context, metrics):
    context.log("val/loss", 0.0)

class Fails:
    def on_epoch_end(self, context):
        raise KeyError("who")

class HoldsAnArray(Counts):
    def state_dict(self):
        return {"mean": numpy.zeros(2)}

class Misspelled:
    def on_evaluation_end(self, context):
        pass

class NothingToCall:
    pass

class NeedsAnArgument(Counts):
    def __init__(self, every):
        super().__init__()

class Slow(Counts):
    def __init__(self, every=2):
        super().__init__()

an_object = Slow(every=5)
a_number = 3
"""


@pytest.fixture
def make(tmp_path, user_module):
    module = user_module(MODULE)

    def made(where="run", callbacks=(), **settings):
        return TrainingRun(tmp_path / where, callbacks=[f"{module}:{name}" for name in callbacks], **settings)

    made.module = module
    return made


def test_each_moment_comes_in_its_order_with_the_step_and_the_epoch_of_it(make):
    run = make(callbacks=["Recorder"], epochs=2, evaluate_every_steps=STEPS + 2)
    run.train()
    calls = sys.modules[make.module].calls
    assert calls[0] == ("on_train_begin", 0, 0)
    steps = [(step, epoch) for name, step, epoch, *_ in calls if name == "on_step_end"]
    assert steps == [(step, (step - 1) // STEPS) for step in range(1, 2 * STEPS + 1)]
    assert [call[:3] for call in calls if call[0] == "on_epoch_end"] == [
        ("on_epoch_end", STEPS, 0),
        ("on_epoch_end", 2 * STEPS, 1),
    ]
    evaluated = {
        step: metrics for name, step, _, *rest in calls if name == "on_evaluate_end" for metrics in rest
    }
    assert {step: metrics["val/loss"] for step, metrics in evaluated.items()} == run.metric_log.of("val/loss")
    assert [call[0] for call in calls[-4:]] == [
        "on_step_end",
        "on_evaluate_end",
        "on_epoch_end",
        "on_train_end",
    ]


def test_what_a_callback_draws_and_computes_changes_no_bit(make):
    plain, disturbed = make("plain").train(), make("disturbed", ["Noisy"]).train()
    assert_same(plain.model, disturbed.model)
    assert plain.losses == disturbed.losses
    assert plain.metric_log.of("val/loss") == disturbed.metric_log.of("val/loss")


def test_state_and_what_follows_from_it_survive_a_stop_to_the_bit(make):
    stopping = {"metric": "val/accuracy", "patience": 3, "min_delta": 0.01}
    twin, resumed = assert_resumes_exactly(
        lambda where, **more: (
            make(where, ["Counts", "Noisy"], epochs=8, early_stopping=stopping, **more)
            if where == "run"
            else make(where, ["Counts", "Noisy"], epochs=8, early_stopping=stopping, evaluate_every_steps=5)
        )
    )
    assert resumed.progress.ended_by == "early_stopping"
    assert resumed.progress.step == twin.progress.step < 8 * STEPS
    first = min(resumed.metric_log.of("mean"))
    later = {step: value for step, value in twin.metric_log.of("mean").items() if step >= first}
    assert resumed.metric_log.of("mean") == later
    assert resumed.loop.user_callbacks.state_dict().keys() == {f"{make.module}:Counts"}


@pytest.mark.parametrize(
    ("name", "step"), [("Stops", 3), ("StopsWithAnEpoch", STEPS), ("StopsWithAnEvaluation", 8)]
)
def test_a_callback_ends_training_with_an_evaluation_and_a_checkpoint(make, name, step):
    run = make(callbacks=[name], epochs=5, evaluate_every_steps=4).train()
    assert (run.progress.step, run.progress.ended_by) == (step, "callback")
    assert max(run.metric_log.of("val/loss")) == run.progress.step == run.saved[-1]
    again = make(callbacks=[name], epochs=5, evaluate_every_steps=4).resume().train()
    assert again.metric_log.points == []


def test_a_function_is_called_after_each_evaluation_and_logs(make):
    run = make(callbacks=["logs"]).train()
    assert run.metric_log.of("twice_the_loss") == {
        step: 2 * value for step, value in run.metric_log.of("val/loss").items()
    }


def test_an_object_of_a_module_is_copied_for_each_training(make):
    path = f"{make.module}:an_object"
    one, other = UserCallbacks([path]), UserCallbacks([path])
    one.load_state_dict({path: {"steps": 7, "mean": 0.0}})
    assert [found.state_dict()[path]["steps"] for found in (one, other)] == [7, 0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Fails", r":Fails' raised KeyError in on_epoch_end\(\) at step 13: 'who': fix it"),
        ("HoldsAnArray", r"state_dict\(\) of '.*:HoldsAnArray', \['mean'\] is a ndarray: keep tensors"),
        ("logs_under_shoals_name", r"names that begin with train/, val/, .* are Shoal's own"),
    ],
)
def test_what_a_callback_raises_names_it_and_the_moment(make, name, says):
    run = make(callbacks=[name])
    with pytest.raises(UserError, match=says):
        run.train()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["Misspelled"], r"has 'on_evaluation_end', which is no moment .did you mean 'on_evaluate_end'"),
        (["NothingToCall"], "has none of on_train_begin, on_step_end"),
        (["a_number"], "has none of on_train_begin, on_step_end"),
        (["NeedsAnArgument"], "needs every, and is made without arguments"),
        (["Counts", "Counts"], "twice"),
        (["Count"], "has no 'Count' .did you mean 'Counts'"),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_starts(make, names, says):
    with pytest.raises(UserError, match=says):
        check_callbacks([f"{make.module}:{name}" for name in names])


def test_a_name_without_a_module_is_refused_with_the_colon_it_lacks():
    with pytest.raises(UserError, match=r"'mine\.Callback', which is no .*did you mean 'mine:Callback'"):
        check_callbacks(["mine.Callback"])


def test_what_is_a_callback_passes_the_check(make):
    check_callbacks([f"{make.module}:{name}" for name in ("Counts", "Slow", "an_object", "logs", "Noisy")])


TWO_WORKERS = """
import sys
import torch
import torch.distributed as dist
from shoal.data.loader import ResidentShard, Rows
from shoal.data.sampler import VALIDATION, Lanes
from shoal.distributed.parallelism import make_group
from shoal.models.mlp import MLP
from shoal.runs.config import ScaleConfig
from shoal.tasks.classification import Classification
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.clock import Clock
from shoal.training.loop import Callbacks, TrainConfig, train
from shoal.training.optimizer import OptimConfig

class OneStops:
    def on_step_end(self, context):
        if dist.get_rank() == 1 and context.step == 3:
            context.stop()

class Log:
    def log(self, *args): pass
    def flush(self): pass

def work(rank, root):
    dist.init_process_group("gloo", f"file://{root}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    rows = Rows(torch.randn(8, 6), torch.randint(0, 2, (8,)))
    group = make_group(torch.device("cpu"), ScaleConfig(num_workers=2))
    loop = assemble_loop(
        MLP((6,), 2, width=16), Classification(2), ResidentShard(Lanes(16, 4, 0, rank, 2), rows, {VALIDATION: rows}),
        OptimConfig(), TrainConfig(callbacks=["__main__:OneStops"]), group, torch.device("cpu"),
    )
    progress = TrainingProgress()
    assert train(loop, Callbacks(Log()), progress, Clock()) == "finished"
    sys.stdout.write(f"{rank} {progress.step} {progress.ended_by}\\n")
    group.gather(None)
    dist.destroy_process_group()

if __name__ == "__main__":
    context = torch.multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(rank, sys.argv[1])) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))
"""


@pytest.mark.long
def test_one_worker_that_asks_to_stop_ends_all_at_the_same_step(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_WORKERS)
    run = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split("\n")[:2]) == ["0 3 callback", "1 3 callback"]
