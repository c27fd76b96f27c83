"""Losses of a user's own, and how they and their weights are minimized and measured."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.config.import_path import find
from shoal.data.config import DataConfig
from shoal.data.labels import Label
from shoal.data.loader import Batch
from shoal.data.preprocessing import Column, Transform
from shoal.errors import ConfigError
from shoal.tasks.objective import ObjectiveConfig
from shoal.tasks.own_loss import OwnLoss
from shoal.tasks.registry import make_task


class Focal(nn.Module):
    """A loss whose reduction must be switched off."""

    def __init__(self, gamma=2.0, reduction="mean"):
        super().__init__()
        self.gamma, self.reduction = gamma, reduction

    def forward(self, outputs, targets):
        plain = F.cross_entropy(outputs, targets, reduction="none")
        losses = (1 - torch.exp(-plain)) ** self.gamma * plain
        return losses if self.reduction == "none" else losses.mean()


class Learnt(Focal):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def two(outputs, targets, inputs):
    return {"fit": (outputs["mean"] - targets) ** 2, "size": outputs["mean"].abs() + inputs[:, 0]}


@pytest.fixture
def own(monkeypatch):
    """Return a function that makes a loss of what a module `mine` holds."""
    held = SimpleNamespace(
        Focal=Focal,
        Learnt=Learnt,
        focal=Focal(gamma=3.0),
        two=two,
        scalar=lambda outputs, targets: F.mse_loss(outputs, targets),
        short=lambda outputs, targets: (outputs - targets)[:2],
        number=lambda outputs, targets: 1.0,
        whole=lambda outputs, targets: targets.long(),
        nothing=lambda outputs, targets: {},
        sum=lambda outputs, targets: {"loss": targets, "other": targets},
        images=lambda outputs, targets: (outputs - targets) ** 2,
        Thing=SimpleNamespace,
    )
    monkeypatch.setitem(sys.modules, "mine", held)

    def make(name):
        path = name if ":" in name else f"mine:{name}"
        return OwnLoss(path, find(path, "train.loss"))

    return make


@pytest.mark.parametrize(("name", "gamma"), [("Focal", 2.0), ("focal", 3.0)])
def test_a_module_is_built_or_copied_without_its_reduction(own, name, gamma):
    outputs, targets = torch.randn(8, 3), torch.arange(8) % 3
    losses = own(name)(outputs, targets, torch.zeros(8, 2))["loss"]
    expected = Focal(gamma, reduction="none")(outputs, targets)
    torch.testing.assert_close(losses, expected)
    assert sys.modules["mine"].focal.reduction == "mean"


def test_a_function_of_torch_is_called_without_its_reduction_in_full_precision(own):
    outputs, targets = torch.randn(8).bfloat16(), torch.randn(8)
    losses = own("torch.nn.functional:huber_loss")(outputs, targets, targets)["loss"]
    torch.testing.assert_close(losses, F.huber_loss(outputs.float(), targets, reduction="none"))


@pytest.mark.parametrize("name", ["torch.nn.functional:huber_loss", "torch.nn:HuberLoss"])
def test_one_number_a_sample_is_compared_by_torchs_losses_with_its_own_target(own, name):
    outputs, targets = torch.randn(8, 1), torch.randn(8)
    losses = own(name)(outputs, targets, targets)["loss"]
    torch.testing.assert_close(losses, F.huber_loss(outputs[:, 0], targets, reduction="none"))


def test_named_losses_take_what_the_model_returned_and_its_inputs(own):
    mean, targets, inputs = torch.randn(5), torch.randn(5), torch.rand(5, 2)
    losses = own("two")({"mean": mean, "name": "kept"}, targets, inputs)
    assert list(losses) == ["fit", "size"]
    torch.testing.assert_close(losses["size"], mean.abs() + inputs[:, 0])


def test_losses_of_parts_of_a_sample_are_averaged(own):
    outputs, targets = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    losses = own("images")(outputs, targets, outputs)["loss"]
    torch.testing.assert_close(losses, ((outputs - targets) ** 2).mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scalar", r"train.loss='mine:scalar' returned one number for 4 samples: .*reduction='none'"),
        ("short", r"returned a tensor of shape \(2,\) for 4 samples: return \[4\]"),
        ("number", r"returned a float: return a tensor \[4\]"),
        ("whole", "numbers of type torch.int64"),
        ("nothing", "returned a dict of nothing"),
        ("sum", "'loss' is what their sum is called"),
        ("Learnt", "has parameters of its own"),
        ("Thing", "is the class SimpleNamespace, which is no torch.nn.Module"),
    ],
)
def test_what_is_no_loss_for_each_sample_is_refused_with_the_remedy(own, name, message):
    values = torch.zeros(4)
    with pytest.raises(ConfigError, match=message):
        own(name)(values, values, values)


def task(kind="classification", **keys):
    label = (
        Label(name="y", classes=("a", "b", "c"), counts=(60, 30, 10))
        if kind == "classification"
        else Label(name="y")
    )
    transform = Transform(columns=(Column(name="x", kind="number"),), label=label)
    return make_task(kind, transform, DataConfig(), 0, ObjectiveConfig(**keys))


def test_balanced_classes_weigh_the_same_in_all_and_a_row_weighs_1_on_average():
    weights = task(class_weight="balanced").class_weights
    assert weights.tolist() == pytest.approx([100 / 3 / 60, 100 / 3 / 30, 100 / 3 / 10])
    given = task(class_weight={"a": 1, "c": 9}).class_weights
    assert given.tolist() == pytest.approx([1 / 1.8, 1 / 1.8, 9 / 1.8])
    assert float(given @ torch.tensor([60.0, 30, 10]).double()) == pytest.approx(100)


def test_an_unknown_class_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"names the class 'aa' \(did you mean 'a'\?\)"):
        task(class_weight={"aa": 2})


def test_weights_of_classes_and_samples_multiply_in_loss_and_validation():
    made = task(class_weight={"c": 4})
    outputs, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weights = torch.tensor([1.0, 2, 0, 1, 1, 3]).double()
    batch = Batch(torch.zeros(6, 1), targets, 6, weights=weights)
    each = F.cross_entropy(outputs.double(), targets, reduction="none")
    total = made.class_weights[targets] * weights
    torch.testing.assert_close(made.loss(outputs, batch), (each * total).sum())
    measure = made.measures[0].fresh(torch.device("cpu"))
    measure.add(outputs, batch)
    assert measure.results() == pytest.approx({"loss": float((each * total).sum() / total.sum())})


def test_a_tasks_own_metrics_are_reported_where_the_outputs_fit_and_left_out_where_not(own):
    made = task(loss="mine:Focal")
    batch = Batch(torch.zeros(6, 1), torch.arange(6) % 3, 6)
    assert made.metrics(made.sums({"logits": torch.randn(6, 3)}, batch)).keys() == {"loss", "accuracy"}
    sums = made.sums(torch.randn(6, 7), batch)
    assert made.metrics(sums) == {}
    assert sums[0] == 6
    assert made.confusion(sums) is None
