"""Metrics of torchmetrics and of a user's own: the same numbers however rows are divided among workers."""

import itertools
import sys
from types import SimpleNamespace

import pytest
import torch
import torchmetrics
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_percentage_error, roc_auc_score
from torchmetrics import Metric

from shoal.data.config import DataConfig
from shoal.data.labels import Label
from shoal.data.loader import Batch
from shoal.data.preprocessing import Column, Transform
from shoal.errors import ConfigError
from shoal.tasks.accumulator import Accumulator
from shoal.tasks.objective import ObjectiveConfig
from shoal.tasks.registry import make_task

CPU = torch.device("cpu")
ROWS = 203


class Largest(Metric):
    """A metric as a user writes one: of the state, the maximum over workers."""

    higher_is_better = True

    def __init__(self):
        super().__init__()
        self.add_state("largest", torch.tensor(-1.0), dist_reduce_fx="max")

    def update(self, predictions, targets):
        self.largest = torch.maximum(self.largest, predictions.max())

    def compute(self):
        return {"of_all": self.largest, "half": self.largest / 2}


def margin(outputs, targets):
    return outputs.gather(1, targets[:, None])[:, 0]


margin.higher_is_better = True


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    held = SimpleNamespace(
        Largest=Largest,
        margin=margin,
        weighted=torchmetrics.classification.MulticlassF1Score(num_classes=3, average="weighted"),
        mean=lambda outputs, targets: outputs.mean(),
        Thing=SimpleNamespace,
    )
    monkeypatch.setitem(sys.modules, "mine", held)


def task(metrics, kind="classification", classes=(0, 1, 2)):
    label = (
        Label(name="y", classes=classes, counts=(1,) * len(classes))
        if classes
        else Label(name="y", mean=9, std=2)
    )
    transform = Transform(columns=(Column(name="x", kind="number"),), label=label)
    return make_task(kind, transform, DataConfig(), 0, ObjectiveConfig(metrics=tuple(metrics)))


def rows(classes):
    torch.manual_seed(0)
    outputs = 3 * torch.randn(ROWS, max(1, classes))
    outputs[::5] = outputs[0]  # ties
    targets = torch.randint(0, classes, (ROWS,)) if classes else torch.randn(ROWS) + 0.1 * outputs[:, 0]
    return outputs, targets


class Group:
    """Workers' states, gathered."""

    size, data_rank = 2, 0

    def __init__(self, states, sums):
        self.states, self.sums = states, sums

    def all_reduce(self, vector):
        return self.sums

    def gather(self, value):
        return self.states


def measured(made, outputs, targets, cuts, step=7):
    """Metrics as workers measure them that hold the rows between cuts, in batches."""
    workers = []
    for first, last in itertools.pairwise(cuts):
        worker = Accumulator(made, CPU)
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            batch = Batch(torch.zeros(len(outputs[part]), 1), targets[part], ROWS)
            worker.add(worker.part(outputs[part], batch))
        workers.append(worker)
    if len(workers) == 1:
        return workers[0].results()
    states = [(rank, [m.state() for m in worker.measures]) for rank, worker in enumerate(workers)]
    total = sum(worker.sums for worker in workers)
    for worker in workers:
        worker.reduce(Group(states, total))
    found = [worker.results() for worker in workers]
    assert all(other == found[0] for other in found)
    return found[0]


CUTS = [(0, ROWS), (0, 101, ROWS), (0, 3, 3, 150, ROWS)]  # one worker; two; four, one of them without a row


@pytest.mark.parametrize("cuts", CUTS)
def test_metrics_of_two_classes_are_those_of_scikit_learn(cuts):
    outputs, targets = rows(2)
    found = measured(task(["auroc", "f1", "average_precision"], classes=(0, 1)), outputs, targets, cuts)
    scores = outputs.double().softmax(1)[:, 1].numpy()
    assert found["auroc"] == pytest.approx(roc_auc_score(targets, scores), rel=1e-6)
    assert found["f1"] == pytest.approx(f1_score(targets, scores > 0.5), rel=1e-6)
    assert found["average_precision"] == pytest.approx(average_precision_score(targets, scores), rel=1e-6)


@pytest.mark.parametrize("cuts", CUTS)
def test_metrics_of_more_classes_average_over_classes(cuts):
    outputs, targets = rows(3)
    made = task(["auroc", "f1_score", "mine:weighted", "mine:margin", "mine:Largest"])
    found = measured(made, outputs, targets, cuts)
    scores, predicted = outputs.double().softmax(1), outputs.argmax(1)
    assert found["auroc"] == pytest.approx(
        roc_auc_score(targets, scores.numpy(), multi_class="ovr", average="macro"), rel=1e-6
    )
    assert found["f1_score"] == pytest.approx(f1_score(targets, predicted, average="macro"), rel=1e-6)
    assert found["weighted"] == pytest.approx(f1_score(targets, predicted, average="weighted"), rel=1e-6)
    assert found["margin"] == pytest.approx(float(margin(outputs, targets).double().mean()), rel=1e-12)
    assert found["Largest_of_all"] == 2 * found["Largest_half"] == float(scores.max())
    assert found["accuracy"] == float((predicted == targets).double().mean())


@pytest.mark.parametrize("cuts", CUTS)
def test_metrics_of_numbers_are_in_the_unit_of_the_label(cuts):
    outputs, targets = rows(0)
    made = task(
        ["pearson_corr_coef", "spearman_corr_coef", "mean_absolute_percentage_error"], "regression", ()
    )
    found = measured(made, outputs, targets, cuts)
    x, y = outputs[:, 0].double(), targets.double()
    assert found["pearson_corr_coef"] == pytest.approx(
        float(torch.corrcoef(torch.stack([x, y]))[0, 1]), rel=1e-6
    )
    expected = mean_absolute_percentage_error((y * 2 + 9).numpy(), (x * 2 + 9).numpy())
    assert found["mean_absolute_percentage_error"] == pytest.approx(expected, rel=1e-9)


def test_a_metric_says_whether_higher_is_better():
    said = task(["auroc", "hinge_loss", "mine:margin", "mine:Largest", "mine:mean"]).directions
    assert said == {"auroc": True, "hinge_loss": False, "margin": True, "Largest": True}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auroq", r"no metric of torchmetrics for a multiclass task \(did you mean 'auroc'\?\)"),
        ("mean_squared_error", "no metric of torchmetrics for a multiclass task"),
        ("f_beta", "cannot be built without arguments .*name a metric of your own"),
        ("mine:Thing", "is the class SimpleNamespace, which is no torchmetrics.Metric"),
    ],
)
def test_what_is_no_metric_is_refused_with_the_remedy(name, message):
    with pytest.raises(ConfigError, match=message):
        task([name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:mean", r"returned shape \(\) for 7 samples: return a tensor \[7\]"),
        ("confusion_matrix", r"'confusion_matrix' is a tensor of shape \(3, 3\): a metric is one number"),
    ],
)
def test_what_is_no_number_is_refused_with_the_remedy(name, message):
    with pytest.raises(ConfigError, match=message):
        measured(task([name]), *rows(3), (0, ROWS))
