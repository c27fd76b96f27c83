"""A user's loss and metrics are computed once before anything starts, as one process and as two would."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import Metric

from shoal.cluster import session
from shoal.config.loading import load
from shoal.errors import UserError
from shoal.runs.config import RunConfig
from shoal.runs.validate import validate


def frame():
    random = np.random.default_rng(0)
    x = random.normal(size=(1500, 3))
    return pd.DataFrame(x, columns=list("abc")).assign(target=(x[:, 0] > 0).astype(int))


class Model(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return {"logits": self.layer(x), "size": self.layer(x).abs()}


def named(outputs, targets):
    fit = F.cross_entropy(outputs["logits"], targets, reduction="none")
    return {"fit": fit, "size": 0.1 * outputs["size"].mean(dim=1)}


def scalar(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets)


def misses(outputs, targets):
    return outputs["logit"].sum(dim=1)


def odd(outputs, targets):
    return {"fit": outputs["logits"].sum(dim=1), "log": torch.log(outputs["logits"][:, 0] * 0)}


def beside(outputs, targets):
    return F.cross_entropy(outputs["logits"] - outputs["logits"].mean(dim=0), targets, reduction="none")


class Forgets(Metric):
    """Takes a mean over workers of what is a sum."""

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="mean")

    def update(self, predictions, targets):
        self.total += predictions.sum()

    def compute(self):
        return self.total


def fails(outputs, targets):
    return outputs["logits"][:, 5]


def gini(outputs, targets):
    return outputs["logits"][:, 1]


def check(*settings):
    here = __name__
    given = [f"data.source={here}:frame", f"model.name={here}:Model", "scale.num_workers=0"]
    return validate(load(RunConfig, None, [*given, *settings]), session.connect)


def test_named_losses_metrics_and_their_targets_pass(caplog):
    with caplog.at_level(logging.WARNING):
        check(
            f"train.loss={__name__}:named",
            "train.metrics=[auroc, f1]",
            "train.target={val/fit: 0.1, val/auroc: 1}",
        )
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("train.loss={}:scalar", ["train.loss='{}:scalar'", "one number for 8 samples", "reduction='none'"]),
        (
            "train.loss={}:misses",
            ["train.loss='{}:misses' raised KeyError", "'logit'", "{{logits: shape (8, 2)"],
        ),
        ("train.loss={}:odd", ["returned -inf for 'log' before the first step", "logarithm of 0"]),
        ("train.loss={}:gone", ["module '{}' has no 'gone'"]),
        ("train.metrics=[auroq]", ["auroq", "did you mean 'auroc'?"]),
        ("train.metrics=['{}:fails']", ["train.metrics='fails' raised IndexError"]),
        ("train.metrics=['{}:Forgets']", ["train.metrics='Forgets' is ", "on two", "dist_reduce_fx"]),
        ("train.metrics=[accuracy]", ["'accuracy', which is reported anyway"]),
        ("train.class_weight={{2: 3}}", ["the class '2'", "are 0, 1"]),
        ("train.target={{val/fitt: 1}} train.loss={}:named", ["'val/fitt' (did you mean 'val/fit'?)"]),
        ("train.target={{val/auroc: 1}}", ["'val/auroc'", "reports val/loss, val/accuracy"]),
        (
            "train.early_stopping.metric=val/fitt train.loss={}:named",
            ["train.early_stopping.metric names 'val/fitt' (did you mean 'val/fit'?)", "val/size"],
        ),
        (
            "train.early_stopping.metric=val/gini train.metrics=['{}:gini']",
            ["names 'val/gini'", "nothing says whether a higher value", "write gini.higher_is_better = True"],
        ),
    ],
)
def test_what_would_fail_is_refused_by_the_name_of_the_function_in_one_line(settings, words):
    with pytest.raises(UserError) as refused:
        check(*settings.format(__name__).replace(" train.", "\0train.").split("\0"))
    assert "\n" not in str(refused.value)
    assert [word for word in words if word.format(__name__) not in str(refused.value)] == []


def test_a_loss_of_a_row_that_depends_on_the_rows_beside_it_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        check(f"train.loss={__name__}:beside")
    assert "the loss of a row depends on the rows beside it" in caplog.text


class Line(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x)


def pinball(outputs, targets):
    error = targets - outputs
    return torch.maximum(0.9 * error, -0.1 * error).mean(dim=1)


def broadcast(outputs, targets):
    return (outputs - targets) ** 2


def squeezed(outputs, targets):
    return (outputs.squeeze(1) - targets) ** 2


def ranked(outputs, targets):
    """Equation 6 of Cox, 1972, with one event in each row: of a row, it is of the rows beside it by design."""
    scores = outputs.squeeze(-1)
    at_risk = targets[None] >= targets[:, None]
    return torch.logsumexp(torch.where(at_risk, scores[None], -torch.inf), dim=1) - scores


def check_number(loss):
    return check("task=regression", f"train.loss={loss}", f"model.name={__name__}:Line")


@pytest.mark.parametrize("name", ["pinball", "broadcast"])
def test_a_loss_that_broadcasts_outputs_over_the_targets_of_all_rows_is_refused(name):
    """It trained without a word, and learnt the mean of all targets."""
    with pytest.raises(UserError, match=r"shape \(8, 1\) and targets of shape \(8,\).*outputs.squeeze\(1\)"):
        check_number(f"{__name__}:{name}")


@pytest.mark.parametrize(
    "loss", [f"{__name__}:squeezed", "torch.nn.functional:huber_loss", "torch.nn:SmoothL1Loss"]
)
def test_a_loss_that_takes_each_row_with_its_own_target_passes(loss, caplog):
    with caplog.at_level(logging.WARNING):
        check_number(loss)
    assert caplog.messages == []


def test_a_loss_over_several_rows_by_design_is_no_mistake_in_shapes(caplog):
    with caplog.at_level(logging.WARNING):
        check_number(f"{__name__}:ranked")
    assert "the loss of a row depends on the rows beside it" in caplog.text
