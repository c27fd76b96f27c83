import math

import numpy as np
import pytest
import torch
from torch import nn

from shoal.data.dataset_info import inspect_source
from shoal.data.loader import Batch, ResidentShard, Rows
from shoal.data.partition import partition_source
from shoal.data.sampler import TRAIN
from shoal.data.sources.function import source_from_value
from shoal.distributed.process_group import SingleProcess
from shoal.errors import DivergedError
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.storage.run_folder import RunFolder
from shoal.tasks.classification import Classification
from shoal.training.checkpoint.contents import TrainingProgress, random_state, set_random_state, snapshot
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.loop import Clock, TrainConfig, TrainingLoop, total_steps, train, update
from shoal.training.lr_schedule import learning_rate
from shoal.training.optimizer import OptimConfig, build_optimizer

CPU = torch.device("cpu")


class Points:
    """A record that keeps its points."""

    def __init__(self):
        self.kept = []

    def log(self, step, metrics, at_s=None):
        self.kept.append((step, dict(metrics)))

    def flush(self):
        pass

    def of(self, key):
        return {step: metrics[key] for step, metrics in self.kept if key in metrics}


class Run:
    """A worker on its own: real data, model, optimiser and checkpoints; `seed` is of the model and dropout."""

    def __init__(
        self,
        preprocessing,
        tmp_path,
        optim=None,
        model=None,
        is_stop_requested=None,
        seed=0,
        record=None,
        **job,
    ):
        train_config = {name: job.pop(name) for name in TrainConfig.model_fields if name in job}
        validation = 0.2 if job.get("has_validation", True) else 0.0
        made = preprocessing(global_batch_size=16, validation_fraction=validation, is_classification=True)
        draw = np.random.default_rng(0)
        x = draw.normal(size=(200, 6))
        block = {"x": x, "target": (x[:, 0] + x[:, 1] > 0).astype(np.int64)}
        source = source_from_value("mine:rows", block)
        dataset_info = inspect_source(source, made)
        rows = {
            name: Rows.of(*arrays, CPU)
            for name, arrays in partition_source(source, made, dataset_info, 1)[0].items()
        }
        self.shard = ResidentShard(dataset_info.lanes(made), rows.pop(TRAIN), rows)
        self.per_epoch = self.shard.lanes.steps
        torch.manual_seed(seed)
        config = ModelConfig(width=16, args={"dropout": 0.2})
        self.model = model or build_model(
            config, dataset_info.transform.input_shape, dataset_info.transform.outputs, seed
        )
        self.optim = OptimConfig(**({"lr": 0.01} | (optim or {})))
        self.optimizer = build_optimizer(self.model, self.optim)
        self.record, self.progress, self.clock = record or Points(), TrainingProgress(), Clock()
        self.store = CheckpointStore(RunFolder(str(tmp_path)), keep=100)
        self.config = TrainConfig(**({"epochs": 3} | train_config))
        steps = total_steps(self.config, self.per_epoch)
        self.job = TrainingLoop(
            config=self.config,
            model=self.model,
            forward=self.model,
            optimizer=self.optimizer,
            learning_rate=lambda step: learning_rate(self.optim, step, steps),
            clip_norm=self.optim.clip_norm,
            task=Classification(2),
            shard=self.shard,
            collective=SingleProcess(),
            metric_log=self.record,
            save=self._save,
            is_stop_requested=lambda: bool(is_stop_requested and is_stop_requested(self.progress.step)),
            **job,
        )

    def _save(self, progress, is_due):
        self.store.save(snapshot(self.model, self.optimizer, progress, [random_state()]), {}, b"{}")

    def resume(self):
        name, _ = self.store.latest()
        self.progress = restore(self.store, name, self.model, self.optimizer)
        set_random_state(self.store.optimizer(name)["random"][0])
        return self

    def train(self):
        return train(self.job, self.progress, self.clock)

    @property
    def saved(self):
        return [int(name.removeprefix("step-")) for name in self.store.names()]


@pytest.fixture
def make(preprocessing, tmp_path):
    def made(where="run", **kwargs):
        return Run(preprocessing, tmp_path / where, **kwargs)

    return made


def test_the_loss_falls_and_the_model_generalises(make):
    run = make(epochs=15)
    assert run.train()
    losses = list(run.record.of("train/loss").values())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert run.progress.metrics["val/accuracy"] > 0.85


def test_every_step_is_recorded_once_in_order_to_the_last_epoch(make):
    run = make(epochs=3)
    assert run.train()
    last = 3 * run.per_epoch
    assert [step for step, metrics in run.record.kept if "train/loss" in metrics] == list(range(1, last + 1))
    assert run.progress.step == last
    assert run.progress.samples == 3 * run.shard.lanes.rows


@pytest.mark.parametrize("max_steps", [1, 7, 13])
def test_training_ends_at_max_steps_even_within_an_epoch(make, max_steps):
    run = make(max_steps=max_steps)
    assert run.per_epoch > 7
    assert run.train()
    assert run.progress.step == max_steps
    assert max(run.record.of("train/loss")) == max(run.record.of("val/loss")) == run.saved[-1] == max_steps


def test_epochs_end_training_before_a_later_max_steps(make):
    run = make(epochs=1, max_steps=10_000)
    run.train()
    assert run.progress.step == run.per_epoch


def test_training_ends_as_soon_as_the_target_is_reached(make):
    run = make(epochs=1000, target={"val/accuracy": 0.8}, evaluate_every_steps=4)
    assert run.train()
    found = run.record.of("val/accuracy")
    assert run.progress.reached_target
    assert list(found) == list(range(4, run.progress.step + 1, 4))
    assert [value >= 0.8 for value in found.values()] == [False] * (len(found) - 1) + [True]
    assert run.saved[-1] == run.progress.step


def test_all_targets_must_be_reached(make):
    run = make(epochs=2, target={"val/accuracy": 0.1, "val/loss": 1e-9})
    run.train()
    assert not run.progress.reached_target
    assert run.progress.step == 2 * run.per_epoch


def test_a_run_that_reached_its_target_trains_no_further_when_resumed(make):
    run = make(target={"val/accuracy": 0.1})
    run.train()
    again = make(target={"val/accuracy": 0.1}).resume()
    assert again.train()
    assert again.progress.step == run.progress.step
    assert again.record.kept == []


def test_a_requested_stop_ends_training_after_a_checkpoint(make):
    run = make(is_stop_requested=lambda step: step >= 4, evaluate_every_steps=2)
    assert run.train() == "interrupted"
    assert run.progress.step in (4, 5, 6)
    assert run.saved[-1] == run.progress.step
    assert max(run.record.of("train/loss")) == run.progress.step


def test_a_stop_requested_at_the_last_step_is_an_ordinary_end(make):
    run = make(max_steps=5, is_stop_requested=lambda step: step >= 5)
    assert run.train() == "finished"


@pytest.mark.parametrize(
    "optim",
    [
        {"name": "adam"},
        {"name": "adamw", "schedule": "cosine", "warmup_steps": 5, "weight_decay": 0.1, "clip_norm": 0.5},
        {"name": "sgd", "schedule": "wsd"},
    ],
    ids=lambda optim: optim["name"],
)
def test_a_run_resumed_in_the_middle_of_an_epoch_ends_bit_for_bit_like_its_undisturbed_twin(make, optim):
    twin = make("twin", optim=optim)
    twin.train()
    stopped = make("run", optim=optim, is_stop_requested=lambda step: step >= 12, evaluate_every_steps=13)
    assert stopped.train() == "interrupted"
    assert stopped.progress.step % stopped.per_epoch != 0
    torch.manual_seed(999)  # another process's random numbers
    resumed = make("run", optim=optim, seed=5, record=stopped.record).resume()
    assert resumed.train()
    for name, tensor in twin.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.record.of("train/loss") == twin.record.of("train/loss")
    assert resumed.progress.samples == twin.progress.samples
    assert resumed.progress.metrics == twin.progress.metrics


def test_how_often_is_evaluated_saved_and_recorded_changes_no_weight(make):
    plain = make("a", epochs=2)
    busy = make("b", epochs=2, evaluate_every_steps=3, save_every=2, log_every=5)
    for run in (plain, busy):
        torch.manual_seed(0)
        run.train()
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, busy.model.state_dict()[name]), name
    last = busy.progress.step
    assert list(busy.record.of("train/loss")) == list(range(5, last + 1, 5))
    assert set(range(3, last + 1, 3)) <= set(busy.record.of("val/loss"))
    assert set(range(2, last + 1, 2)) <= set(busy.saved)


def test_the_best_evaluation_is_recorded_and_has_a_checkpoint(make):
    run = make(epochs=4, optim={"lr": 0.3}, save_every=10_000)
    run.train()
    losses = run.record.of("val/loss")
    best = min(losses, key=losses.get)
    assert run.progress.best["best/val_loss"] == losses[best]
    assert run.progress.best["best/step"] == best
    assert best in run.saved


def test_without_a_validation_split_nothing_is_evaluated(make):
    run = make(epochs=1, has_validation=False)
    assert run.train()
    assert run.progress.metrics == {}
    assert run.record.of("val/loss") == {}
    assert run.saved[-1] == run.per_epoch


class Breaks(nn.Module):
    """Puts out NaN from a given forward pass on."""

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
    assert list(run.record.of("train/loss")) == list(range(1, after + 1))


def test_a_learning_rate_far_too_high_is_told(make):
    with pytest.raises(DivergedError, match=r"optim\.clip_norm"):
        make(optim={"name": "sgd", "lr": 1e30}, epochs=50).train()


# One update.


def one_step(make, batch=None, lr=0.1, **optim):
    run = make(model=nn.Linear(6, 2), optim={"name": "sgd", "lr": lr, **optim})
    before = [parameter.detach().clone() for parameter in run.model.parameters()]
    batch = batch or next(run.shard.batches(0, 0))
    loss = update(run.job, batch, 0, run.clock)
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
    whole = next(run.shard.batches(0, 0))
    part = Batch(whole.inputs[:4], whole.targets[:4], count=whole.count)
    _, _, before, _, moved = one_step(make, batch=part)
    _, gradient = mean_gradient(before, part)
    for step, slope in zip(moved, gradient, strict=True):
        torch.testing.assert_close(step, 0.1 * 1.9 * slope * 4 / whole.count, rtol=1e-4, atol=1e-7)


def test_a_filler_moves_nothing_and_adds_no_loss(make):
    run = make(model=nn.Linear(6, 2))
    real = next(run.shard.batches(0, 0))
    filler = Batch(real.inputs[:1], real.targets[:1], count=1, is_filler=True)
    _, _, _, loss, moved = one_step(make, batch=filler)
    assert loss == 0
    assert all((step == 0).all() for step in moved)


def test_the_gradient_is_clipped_to_its_whole_norm(make):
    *_, moved = one_step(make, lr=1.0, clip_norm=1e-3)
    norm = torch.cat([step.flatten() for step in moved]).norm()
    assert norm.item() == pytest.approx(1.9e-3, rel=1e-3)


def test_each_step_uses_the_scheduled_learning_rate(make):
    run = make(epochs=1, optim={"name": "sgd", "lr": 0.5, "schedule": "linear"})
    seen, step = [], run.optimizer.step
    run.optimizer.step = lambda *a: (seen.append(run.optimizer.param_groups[0]["lr"]), step(*a))
    run.train()
    assert seen == [learning_rate(run.optim, number, run.per_epoch) for number in range(run.per_epoch)]


def test_each_group_of_a_model_in_mup_has_its_share_of_the_scheduled_learning_rate(make):
    config = ModelConfig(width=64, parametrization="mup", base_width=16)
    run = make(model=build_model(config, (6,), 2, 0), epochs=1, optim={"lr": 0.5, "schedule": "linear"})
    seen, step = [], run.optimizer.step
    run.optimizer.step = lambda *a: (seen.append([g["lr"] for g in run.optimizer.param_groups]), step(*a))
    run.train()
    rates = [learning_rate(run.optim, number, run.per_epoch) for number in range(run.per_epoch)]
    assert seen == [[rate, rate / 4] for rate in rates]


def test_bf16_computes_in_half_precision_and_keeps_weights_in_full(make):
    run = make(epochs=3, precision="bf16")
    run.train()
    assert {tensor.dtype for tensor in run.model.state_dict().values()} == {torch.float32}
    full = make("full", epochs=3)
    full.train()
    half_losses, full_losses = (list(r.record.of("train/loss").values()) for r in (run, full))
    assert half_losses != full_losses
    assert half_losses[0] == pytest.approx(full_losses[0], rel=0.02)


def test_the_clock_tells_what_the_time_went_to(make):
    run = make(epochs=1)
    run.train()
    assert {"data", "compute", "evaluate", "checkpoint", "tracking"} <= set(run.clock.spent)
    assert all(seconds >= 0 for seconds in run.clock.spent.values())


@pytest.mark.parametrize(("epochs", "max_steps", "expected"), [(3, None, 30), (3, 12, 12), (3, 99, 30)])
def test_the_planned_steps_are_the_fewer_of_epochs_and_max_steps(epochs, max_steps, expected):
    assert total_steps(TrainConfig(epochs=epochs, max_steps=max_steps), 10) == expected


def test_a_checkpoint_is_written_when_it_is_due_and_not_before(make):
    due = iter([False, True])
    run = make(epochs=1, has_validation=False, is_save_due=lambda: next(due, False))
    run.train()
    assert run.saved == [2, run.per_epoch]
