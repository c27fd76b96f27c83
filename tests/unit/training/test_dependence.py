"""What makes a result depend on the number of workers is found in the first step, and said once."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training_run import FEATURES, Net, TrainingRun, mlp


class Own(nn.Module):
    """A model whose forward in training draws in some way."""

    def __init__(self, draw):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.drop, self.leave = nn.Linear(FEATURES, 8), nn.Dropout(0.1), nn.Linear(8, 2)
        self.draw = draw

    def forward(self, x):
        hidden = self.drop(self.enter(x))
        return self.leave(self.draw(hidden) if self.training else hidden)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.leave = nn.MultiheadAttention(FEATURES, 2, dropout=0.1), nn.Linear(FEATURES, 2)

    def forward(self, x):
        x = x[None]
        return self.leave(self.attention(x, x, x)[0][0])


class Normed(nn.BatchNorm1d):
    pass


DRAWS = {
    "one for all rows": lambda x: x + torch.rand(1),
    "permutation": lambda x: x[torch.randperm(len(x))],
    "numpy": lambda x: x * float(np.random.rand()),
    "python": lambda x: x * random.random(),
}


def reason(tmp_path, model, **settings):
    return TrainingRun(tmp_path, model, epochs=1, **settings).train().loop.dependence.reason


@pytest.mark.parametrize("kind", DRAWS)
def test_a_model_that_draws_numbers_of_its_own_is_found(tmp_path, kind):
    assert "random numbers of its own" in reason(tmp_path, Own(DRAWS[kind]))


@pytest.mark.parametrize(
    "draw", [lambda x: x + torch.rand_like(x), lambda x: F.dropout(x, 0.1)], ids=["noise", "dropout"]
)
def test_numbers_that_are_drawn_for_rows_do_not_depend_on_workers(tmp_path, draw):
    assert reason(tmp_path, Own(draw)) is None


def test_dropout_inside_torchs_attention_is_found(tmp_path):
    assert "random numbers of its own" in reason(tmp_path, Attending())


def test_dropout_by_row_is_not_and_leaves_the_generators_as_they_were(tmp_path):
    assert reason(tmp_path, Own(lambda x: x)) is None
    assert reason(tmp_path, mlp(dropout=0.2)) is None
    assert reason(tmp_path, mlp()) is None


def test_rows_that_dropout_does_not_find_are_said_with_the_shape(tmp_path):
    class Odd(nn.Sequential):
        def forward(self, x):
            return self[1](x) + self[0](torch.ones(5, 7)).sum() * 0.0

    assert "[5, 7]" in reason(tmp_path, Odd(nn.Dropout(0.5), nn.Linear(FEATURES, 2)))


@pytest.mark.parametrize(
    ("model", "settings", "depends"),
    [
        (Net, {}, True),
        (Net, {"sync_batchnorm": True}, False),
        (Net, {"sync_batchnorm": True, "micro_batch_size": 4}, True),
        (
            lambda: nn.Sequential(nn.Linear(FEATURES, 4), Normed(4), nn.Linear(4, 2)),
            {"sync_batchnorm": True},
            True,
        ),
        (mlp, {}, False),
    ],
    ids=["own rows", "all rows", "micro-batches", "a user's own class", "none"],
)
def test_batchnorm_over_less_than_the_batch_is_said(tmp_path, model, settings, depends):
    found = reason(tmp_path, model(), **settings)
    assert (found is not None and "BatchNorm" in found) is depends
