"""Columns that decide are found by name; explanations that cannot be believed are reported as failed."""

import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from shoal.errors import ModelError
from shoal.explain import checks
from shoal.explain.answers import SeveralLabels
from shoal.explain.attribution import METHODS, MOST_STEPS, STEPS, TOLERANCE, attribute, attribute_once
from shoal.explain.pictures import draw
from shoal.explain.subject import Subject, make_subject
from shoal.inference.evaluation import split_blocks
from shoal.inference.predictor import Predictor
from shoal.tasks.open_data import reopen_source
from trained_model import train

PLANTED = {"x3", "x11", "color"}


def recall(explanation, by="attribution"):
    """Return which share of the columns that decide are among as many of the most important ones."""
    ranked = sorted(explanation.importance, key=lambda one: -getattr(one, by))
    return len(PLANTED & {one.name for one in ranked[: len(PLANTED)]}) / len(PLANTED)


def failed(explanation):
    return {check.name for check in explanation.failed}


@pytest.mark.parametrize("label", ["sold", "price"])
def test_planted_columns_are_found_and_all_checks_pass(trained, explained, label):
    explanation = explained(trained(label))
    assert explanation.failed == []
    assert recall(explanation) >= 0.9
    assert recall(explanation, "permutation") >= 0.9
    assert explanation.curves.is_better_than_random
    # The intervals of columns that decide nothing hold 0, or nearly.
    noise = [one for one in explanation.importance if one.name not in PLANTED]
    assert max(one.permutation_low for one in noise) < 0.01 * explanation.importance[0].permutation


def test_each_label_of_several_is_explained_by_its_own_columns(explained, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(900, 12)).astype(np.float32)
    frame = pd.DataFrame({f"x{number}": x[:, number] for number in range(12)})
    frame["tall"] = (x[:, 2] - x[:, 7] > 0).astype(int)
    frame["red"] = (x[:, 9] + x[:, 4] > 0.5).astype(int)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    labels = ["tall", "red"]
    train(tmp_path, f"csv:{tmp_path}/rows.csv", "multilabel_classification", steps=150, label=labels)
    predictor = Predictor.load_own(tmp_path / "weights")
    for label, planted in zip(labels, ({"x2", "x7"}, {"x9", "x4"}), strict=True):
        explanation = explained(predictor, target=label)
        assert failed(explanation) == set()
        assert {one.name for one in explanation.importance[:2]} == planted
        assert {one.record.target for one in explanation.local} == {label}
        row = explanation.local[0].record
        expected = [name for name in labels if frame_of_row(predictor, row.row)[name]]
        assert row.label == (", ".join(expected) or "none")
    random = explained(predictor, target="tall", model=rows_of_other_weights(explanation.subject))
    assert "learned" in failed(random)


def frame_of_row(predictor, number):
    source = reopen_source(predictor.preprocessing, predictor.task.name)
    block = next(split_blocks(source, predictor.preprocessing, "test"))
    return {name: values[number] for name, values in block.items()}


def rows_of_other_weights(subject):
    return subject.with_redrawn_weights(1).model


@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_them(trained, explained, method):
    assert recall(explained(trained(), method)) >= 0.9


def test_with_random_weights_they_are_not_found_and_it_is_reported(trained, explained, rows_of):
    predictor = trained()
    random = rows_of(predictor).subject.with_redrawn_weights(1).model
    explanation = explained(predictor, model=random)
    assert recall(explanation) < 0.9
    assert "learned" in failed(explanation)


def test_an_untrained_model_is_reported(trained, explained):
    explanation = explained(trained(steps=0), "input_x_gradient")
    assert "learned" in failed(explanation)
    for row in explanation.local:
        assert "learned" in {check.name for check in row.failed}


class WithoutWeights(nn.Module):
    """Answers by the columns that decide, whatever its weights are."""

    def __init__(self, groups, units):
        super().__init__()
        self.ignored = nn.Linear(3, 3)
        self.weights = torch.zeros(len(groups))
        self.weights[groups == units.index("x3")] = 1.0
        self.weights[groups == units.index("x11")] = -1.0

    def forward(self, x):
        score = 3.0 * (x * self.weights).sum(dim=1)
        return torch.stack([-score, score], dim=1) + 0.0 * self.ignored.weight.sum()


def test_a_map_that_does_not_depend_on_the_weights_is_reported_on_each_picture_of_it(
    trained, explained, rows_of
):
    predictor = trained()
    subject = rows_of(predictor).subject
    explanation = explained(predictor, model=WithoutWeights(subject.groups, subject.units))
    assert failed(explanation) == {"randomised_weights"}
    assert explanation.checks[1].value == pytest.approx(1.0)
    pictures = draw(explanation)
    named = {
        name for name, picture in pictures.items() if "randomised_weights 1 (at most 0.3)" in picture.failed
    }
    assert named == set(pictures) - {"permutation"}  # which is no attribution


class Stairs(nn.Module):
    """Jumps, which no gradient sees."""

    def forward(self, x):
        return torch.stack([x.sum(dim=1), -x.sum(dim=1) + 5.0 * (x[:, 3] > 0.2)], dim=1)


def subject_of(model, features, outputs=("a", "b")):
    names = tuple(f"x{number}" for number in range(features))
    answers = SeveralLabels(outputs)
    return Subject("table", model, answers, names, torch.arange(features), torch.zeros(features))


def test_attributions_that_do_not_sum_to_the_output_are_reported():
    inputs = torch.linspace(0.3, 2.0, 20).view(5, 4)
    found = attribute(
        subject_of(Stairs(), 4), "integrated_gradients", inputs, torch.ones(5, dtype=torch.int64)
    )
    check = checks.completeness(found)
    assert (check.name, check.is_passed) == ("completeness", False)
    assert found.steps.tolist() == [MOST_STEPS] * 5


def test_steps_are_doubled_only_where_the_sum_is_off():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[40.0, 0.0], [0.0, 0.1]]))
    model[0].bias.copy_(torch.tensor([-20.0, 0.0]))
    inputs, targets = torch.tensor([[10.0, 1.0], [1.0, 10.0]]), torch.tensor([0, 1])
    found = attribute(subject_of(model, 2), "integrated_gradients", inputs, targets, is_each_complete=True)
    assert found.relative_errors().max() <= TOLERANCE
    assert found.steps[0] > STEPS
    assert found.steps[1] == STEPS


def test_a_linear_model_is_explained_exactly_by_every_method():
    model = nn.Linear(4, 2).requires_grad_(False)
    inputs, targets = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    for method in METHODS:
        found = attribute(subject_of(model, 4), method, inputs, targets)
        torch.testing.assert_close(
            found.values, (inputs * model.weight[targets]).double(), rtol=1e-4, atol=1e-5
        )
        assert found.relative_error() < 1e-4


def test_parts_of_a_category_are_summed_back_to_their_column(rows_of, trained):
    subject = rows_of(trained()).subject
    assert len(subject.units) == 20
    assert len(subject.groups) == 18 + 4 + 3  # each category, and one for other values
    ones = subject.by_unit(torch.ones(1, len(subject.groups)))[0]
    assert dict(zip(subject.units, ones.tolist(), strict=True))["color"] == 4.0
    assert ones.sum() == len(subject.groups)


def test_no_more_rows_are_run_at_a_time_than_memory_allows(monkeypatch):
    sizes = []

    class Counting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return (x.square() * x.sigmoid()).sum(dim=1, keepdim=True).expand(-1, 2)

    monkeypatch.setattr("shoal.explain.subject.MEMORY_BYTES", 64 << 10)
    subject = subject_of(Counting(), 100)
    assert 1 < subject.rows_at_a_time < 200
    sizes.clear()
    for method in METHODS:
        attribute(subject, method, torch.randn(300, 100), torch.zeros(300, dtype=torch.int64))
    assert max(sizes) <= subject.rows_at_a_time


def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr

    some, others = np.random.default_rng(0).normal(size=(2, 3, 12))
    some[1, 4:] = np.nan
    found = checks.rank_correlations(some, others)
    expected = [
        spearmanr(a[~np.isnan(a)], b[~np.isnan(a)]).statistic for a, b in zip(some, others, strict=True)
    ]
    np.testing.assert_allclose(found, expected)


@pytest.mark.long
def test_it_is_as_fast_as_captum_called_by_hand():
    from captum.attr import IntegratedGradients

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    inputs, targets = torch.randn(1000, 100), torch.randint(10, (1000,))
    subject = subject_of(model, 100, tuple("abcdefghij"))
    subject.rows_at_a_time  # noqa: B018  (measured once per model)
    by_hand = IntegratedGradients(model)
    took = {"ours": [], "by hand": []}
    for _ in range(4):
        since = time.process_time()
        ours = attribute_once(subject, "integrated_gradients", inputs, targets, STEPS)
        took["ours"].append(time.process_time() - since)
        since = time.process_time()
        theirs = by_hand.attribute(inputs, torch.zeros(1, 100), target=targets, n_steps=STEPS)
        took["by hand"].append(time.process_time() - since)
    torch.testing.assert_close(ours.float(), theirs.detach(), rtol=1e-3, atol=1e-4)
    assert min(took["by hand"]) >= 0.9 * min(took["ours"])


def test_whole_numbers_are_refused_since_they_have_no_gradients(trained):
    with pytest.raises(ModelError, match="the model takes whole numbers"):
        make_subject(trained(), torch.zeros(3, 4, dtype=torch.int64))
