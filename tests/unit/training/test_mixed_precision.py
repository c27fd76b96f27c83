"""Half precision: full-precision weights, losses within the format's rounding, exact resume."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp.grad_scaler import GradScaler

from shoal.training.loop import update
from shoal.training.mixed_precision import make_scaler
from training_run import Net, TrainingRun, assert_resumes_exactly, mlp


def test_bf16_computes_in_half_precision_and_keeps_weights_in_full(tmp_path):
    half, full = (TrainingRun(tmp_path / kind, mlp(), precision=kind).train() for kind in ("bf16", "fp32"))
    assert {tensor.dtype for tensor in half.model.state_dict().values()} == {torch.float32}
    assert half.losses != full.losses
    assert half.losses[0] == pytest.approx(full.losses[0], rel=0.02)


def test_fp16_computes_in_half_precision_and_keeps_weights_in_full(tmp_path):
    full, half = (TrainingRun(tmp_path / kind, mlp(), precision=kind).train() for kind in ("fp32", "fp16"))
    assert {tensor.dtype for tensor in half.model.state_dict().values()} == {torch.float32}
    assert half.losses != full.losses
    np.testing.assert_allclose(half.losses[:5], full.losses[:5], rtol=0.02)
    assert half.losses[-1] < 0.7 * half.losses[0]


def test_fp16_keeps_gradients_that_would_vanish_without_the_scale():
    def gradient(scaler):
        weight = torch.full((1, 1), 1e-4, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.linear(F.linear(torch.ones(1, 1), weight), torch.tensor([[1e-5]])).float().sum()
        loss.backward(scaler.scale(torch.full_like(loss, 1e-4)))
        optimizer = torch.optim.SGD([weight], 1.0)
        scaler.unscale_(optimizer)
        return weight.grad.item()

    assert gradient(GradScaler(enabled=False)) == 0.0
    assert gradient(make_scaler("fp16", "cpu")) == pytest.approx(1e-9, rel=0.05)


def test_a_step_whose_gradients_overflow_is_skipped_counts_and_halves_the_scale(tmp_path):
    run = TrainingRun(
        tmp_path, mlp(), precision="fp16", max_steps=1, scaler=GradScaler("cpu", init_scale=2.0**40)
    )
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert run.progress.step == 1
    assert run.loop.scaler.get_scale() == 2.0**39


@pytest.mark.parametrize("size", [None, 4])
def test_gradients_are_clipped_in_their_true_size(tmp_path, size):
    optim = {"name": "sgd", "lr": 1.0, "clip_norm": 1e-3}
    run = TrainingRun(tmp_path, mlp(), optim=optim, precision="fp16", micro_batch_size=size)
    before = nn.utils.parameters_to_vector(run.model.parameters()).detach().clone()
    update(run.loop, next(run.loop.shard.batches(0, 0)), 0, run.clock)
    moved = nn.utils.parameters_to_vector(run.model.parameters()) - before
    assert moved.norm().item() == pytest.approx(1.9e-3, rel=1e-3)  # Nesterov's first step


def test_an_fp16_run_resumes_exactly_scale_and_its_growth_included(tmp_path):
    def make(where, **kwargs):
        scaler = GradScaler("cpu", init_scale=2.0**24, growth_interval=7)
        return TrainingRun(
            tmp_path / where, Net(), precision="fp16", scaler=scaler, optim={"clip_norm": 1.0}, **kwargs
        )

    twin, resumed = assert_resumes_exactly(make)
    assert resumed.loop.scaler.state_dict() == twin.loop.scaler.state_dict()
    assert twin.loop.scaler.get_scale() != 2.0**24
