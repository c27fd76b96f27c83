import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from shoal.data.loader import Batch
from shoal.errors import DivergedError
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.training.loop import TrainConfig, total_steps, update
from shoal.training.lr_schedule import learning_rate
from shoal.training.optimizer import OptimConfig
from training_run import ROWS, STEPS, Net, TrainingRun, assert_same

PATH = os.pathsep.join(sys.path)  # of this process: the library and what the tests share


@pytest.fixture
def make(tmp_path):
    def made(where="run", **kwargs):
        return TrainingRun(tmp_path / where, **kwargs)

    return made


def test_the_loss_falls_and_the_model_generalizes(make):
    run = make(epochs=15)
    run.train()
    losses = list(run.metric_log.of("train/loss").values())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert run.progress.metrics["val/accuracy"] > 0.85


def test_a_training_imports_neither_the_compiler_nor_sympy_which_take_a_second(tmp_path):
    code = """
import sys
from training_run import TrainingRun
TrainingRun(sys.argv[1], epochs=2).train()
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=os.environ | {"PYTHONPATH": PATH})


def test_every_step_is_logged_once_in_order_to_the_last_epoch(make):
    run = make(epochs=3)
    run.train()
    last = 3 * STEPS
    assert [step for step, metrics in run.metric_log.points if "train/loss" in metrics] == list(
        range(1, last + 1)
    )
    assert run.progress.step == last
    assert run.progress.samples == 3 * ROWS


@pytest.mark.parametrize("max_steps", [1, 7, 15])
def test_training_ends_at_max_steps_even_within_an_epoch(make, max_steps):
    run = make(max_steps=max_steps)
    run.train()
    assert run.progress.step == max_steps
    assert [max(run.metric_log.of(key)) for key in ("train/loss", "val/loss")] == [max_steps] * 2
    assert run.saved[-1] == max_steps


def test_epochs_end_training_before_a_later_max_steps(make):
    run = make(epochs=1, max_steps=10_000)
    run.train()
    assert run.progress.step == STEPS


def test_training_ends_as_soon_as_the_target_is_reached(make):
    run = make(epochs=1000, target={"val/accuracy": 0.8}, evaluate_every_steps=4)
    run.train()
    found = run.metric_log.of("val/accuracy")
    assert run.progress.reached_target
    assert list(found) == list(range(4, run.progress.step + 1, 4))
    assert [value >= 0.8 for value in found.values()] == [False] * (len(found) - 1) + [True]
    assert run.saved[-1] == run.progress.step


def test_all_targets_must_be_reached(make):
    run = make(epochs=2, target={"val/accuracy": 0.1, "val/loss": 1e-9})
    run.train()
    assert not run.progress.reached_target
    assert run.progress.step == 2 * STEPS


def test_a_run_that_reached_its_target_trains_no_further_when_resumed(make):
    run = make(target={"val/accuracy": 0.1})
    run.train()
    again = make(target={"val/accuracy": 0.1}).resume()
    again.train()
    assert again.progress.step == run.progress.step
    assert again.metric_log.points == []


def test_a_requested_stop_ends_training_after_a_checkpoint(make):
    run = make(is_stop_requested=lambda step: step >= 4, evaluate_every_steps=2)
    run.train(until="interrupted")
    assert run.progress.step in (4, 5, 6)
    assert run.saved[-1] == run.progress.step
    assert max(run.metric_log.of("train/loss")) == run.progress.step


def test_a_stop_requested_at_the_last_step_is_an_ordinary_end(make):
    run = make(max_steps=5, is_stop_requested=lambda step: step >= 5)
    run.train()


@pytest.mark.parametrize(
    "optim",
    [
        {"name": "adam"},
        {"name": "adamw", "schedule": "cosine", "warmup_steps": 5, "weight_decay": 0.1, "clip_norm": 0.5},
        {"name": "sgd", "schedule": "wsd"},
    ],
    ids=lambda optim: optim["name"],
)
def test_a_run_resumed_within_an_epoch_ends_bit_for_bit_like_its_twin_that_was_never_stopped(make, optim):
    twin = make("twin", optim=optim)
    twin.train()
    stopped = make("run", optim=optim, is_stop_requested=lambda step: step >= 16, evaluate_every_steps=17)
    stopped.train(until="interrupted")
    assert stopped.progress.step % STEPS != 0
    torch.manual_seed(999)  # another process's random numbers
    resumed = make("run", optim=optim, model=Net(seed=5), metric_log=stopped.metric_log).resume()
    resumed.train()
    assert_same(twin.model, resumed.model)
    assert resumed.metric_log.of("train/loss") == twin.metric_log.of("train/loss")
    assert resumed.progress.samples == twin.progress.samples
    assert resumed.progress.metrics == twin.progress.metrics


def test_how_often_it_evaluates_saves_and_logs_changes_no_weight(make):
    plain = make("a", epochs=2)
    busy = make("b", epochs=2, evaluate_every_steps=3, save_every=2, log_every=5)
    for run in (plain, busy):
        torch.manual_seed(0)
        run.train()
    assert_same(plain.model, busy.model)
    last = busy.progress.step
    assert list(busy.metric_log.of("train/loss")) == list(range(5, last + 1, 5))
    assert set(range(3, last + 1, 3)) <= set(busy.metric_log.of("val/loss"))
    assert set(range(2, last + 1, 2)) <= set(busy.saved)


def test_the_best_evaluation_is_logged_and_has_a_checkpoint(make):
    run = make(epochs=4, optim={"lr": 0.3}, save_every=10_000)
    run.train()
    losses = run.metric_log.of("val/loss")
    best = min(losses, key=losses.get)
    assert run.progress.best["best/val_loss"] == losses[best]
    assert run.progress.best["best/step"] == best
    assert best in run.saved


def test_without_a_validation_split_nothing_is_evaluated(make):
    run = make(epochs=1, has_validation=False)
    run.train()
    assert run.progress.metrics == {}
    assert run.metric_log.of("val/loss") == {}
    assert run.saved[-1] == STEPS


class Breaks(nn.Module):
    """Returns NaN after some forward passes."""

    def __init__(self, after):
        super().__init__()
        self.layer, self.passes, self.after = nn.Linear(6, 2), 0, after

    def forward(self, x):
        self.passes += self.training
        return self.layer(x) * (math.nan if self.passes > self.after else 1.0)


@pytest.mark.parametrize("after", [0, 5])
def test_a_loss_that_is_not_finite_ends_training_naming_step_and_remedy_and_is_not_saved(make, after):
    run = make(model=Breaks(after), save_every=1)
    with pytest.raises(
        DivergedError, match=rf"train/loss is nan at step {after + 1}: lower optim.lr \(now 0.01\)"
    ):
        run.train()
    assert run.saved == list(range(1, after + 1))
    assert list(run.metric_log.of("train/loss")) == list(range(1, after + 1))
    assert run.clock.finite_step == after


def test_a_learning_rate_far_too_high_is_an_error_with_the_remedy(make):
    with pytest.raises(DivergedError, match=r"optim\.clip_norm"):
        make(optim={"name": "sgd", "lr": 1e30}, epochs=50).train()


# One update.


def one_step(make, batch=None, lr=0.1, **optim):
    run = make(model=nn.Linear(6, 2), optim={"name": "sgd", "lr": lr, **optim})
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    batch = batch or next(run.loop.shard.batches(0, 0))
    loss = update(run.loop, batch, 0, run.clock)
    moved = [b - p.detach() for p, b in zip(run.model.parameters(), before, strict=True)]
    return run, batch, before, loss, moved


def mean_gradient(before, batch):
    weights = [tensor.requires_grad_() for tensor in before]
    loss = nn.functional.cross_entropy(nn.functional.linear(batch.inputs, *weights), batch.targets)
    return loss, torch.autograd.grad(loss, weights)


def test_an_update_follows_the_gradient_of_the_mean_loss_over_the_batch(make):
    _, batch, before, loss, moved = one_step(make)
    mean, gradient = mean_gradient(before, batch)
    assert loss.item() / batch.count == pytest.approx(mean.item(), rel=1e-6)
    for step, slope in zip(moved, gradient, strict=True):
        torch.testing.assert_close(step, 0.1 * 1.9 * slope, rtol=1e-4, atol=1e-7)  # Nesterov's first step


def test_a_part_of_a_global_batch_counts_by_its_share_of_it(make):
    run = make(model=nn.Linear(6, 2))
    whole = next(run.loop.shard.batches(0, 0))
    part = Batch(whole.inputs[:4], whole.targets[:4], count=whole.count)
    _, _, before, _, moved = one_step(make, batch=part)
    _, gradient = mean_gradient(before, part)
    for step, slope in zip(moved, gradient, strict=True):
        torch.testing.assert_close(step, 0.1 * 1.9 * slope * 4 / whole.count, rtol=1e-4, atol=1e-7)


def test_a_filler_moves_nothing_and_adds_no_loss(make):
    run = make(model=nn.Linear(6, 2))
    real = next(run.loop.shard.batches(0, 0))
    filler = Batch(real.inputs[:1], real.targets[:1], count=1, is_filler=True)
    _, _, _, loss, moved = one_step(make, batch=filler)
    assert loss == 0
    assert all((step == 0).all() for step in moved)


def test_the_gradient_is_clipped_to_its_whole_norm(make):
    *_, moved = one_step(make, lr=1.0, clip_norm=1e-3)
    norm = torch.cat([step.flatten() for step in moved]).norm()
    assert norm.item() == pytest.approx(1.9e-3, rel=1e-3)


def learning_rates(run):
    """Train; return each step's learning rates, by parameter group."""
    seen = []
    run.loop.optimizer.register_step_pre_hook(
        lambda optimizer, args, kwargs: seen.append([group["lr"] for group in optimizer.param_groups])
    )
    run.train()
    return seen


def test_each_step_uses_the_scheduled_learning_rate(make):
    optim = OptimConfig(name="sgd", lr=0.5, schedule="linear")
    seen = learning_rates(make(epochs=1, optim=optim.model_dump()))
    assert seen == [[learning_rate(optim, step, STEPS)] for step in range(STEPS)]


def test_each_group_of_a_model_in_mup_has_its_share_of_the_scheduled_learning_rate(make):
    config = ModelConfig(width=64, parametrization="mup", base_width=16)
    optim = OptimConfig(lr=0.5, schedule="linear")
    model = build_model(config, (6,), 2, 0)
    rates = [learning_rate(optim, step, STEPS) for step in range(STEPS)]
    assert learning_rates(make(model=model, epochs=1, optim=optim.model_dump())) == [
        [rate, rate / 4] for rate in rates
    ]


def test_the_clock_accounts_for_the_time_by_what_it_was_spent_on(make):
    run = make(epochs=1, save_every=1)
    run.callbacks = replace(run.callbacks, save=lambda progress, is_due: time.sleep(0.02))
    since = time.perf_counter()
    run.train()
    elapsed = time.perf_counter() - since
    spent = run.clock.spent
    assert set(spent) == {"data", "compute", "gradient_sync", "evaluate", "checkpoint", "tracking"}
    assert spent["checkpoint"] > 0.02 * STEPS
    assert 0.8 * elapsed < sum(spent.values()) <= elapsed
    assert sum(run.clock.shares(elapsed).values()) == pytest.approx(sum(spent.values()) / elapsed)
    assert run.clock.busy_s == spent["data"] + spent["compute"] + spent["gradient_sync"]


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(3, None, 30), (3, 12, 12), (3, 99, 30)])
def test_the_planned_steps_are_the_fewer_of_epochs_and_max_steps(epochs, max_steps, expected):
    assert total_steps(TrainConfig(epochs=epochs, max_steps=max_steps), 10) == expected


def test_a_checkpoint_is_written_when_it_is_due_and_not_before(make):
    due = iter([False, True])
    run = make(epochs=1, has_validation=False, is_save_due=lambda: next(due, False))
    run.train()
    assert run.saved == [2, STEPS]
