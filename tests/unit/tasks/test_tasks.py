import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from shoal.data.loader import Batch
from shoal.errors import ModelError
from shoal.tasks.classification import MAX_CONFUSION, Classification
from shoal.tasks.metrics import per_class
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.regression import Regression


def batch(targets):
    return Batch(torch.empty(0), targets, count=len(targets))


@pytest.fixture
def classified():
    torch.manual_seed(0)
    targets = torch.randint(0, 4, (500,))
    return torch.randn(500, 5) + 1.5 * torch.nn.functional.one_hot(targets, 5), targets


@pytest.fixture
def estimated():
    torch.manual_seed(0)
    targets = torch.randn(500)
    return (targets + 0.3 * torch.randn(500))[:, None], targets


def test_classification_measures_what_scikit_learn_measures(classified):
    outputs, targets = classified
    task = Classification(5)
    found = task.metrics(task.sums(outputs, batch(targets)))
    shares = outputs.double().softmax(dim=1).numpy()
    assert found["loss"] == pytest.approx(sk.log_loss(targets, shares, labels=range(5)), rel=1e-9)
    assert found["accuracy"] == sk.accuracy_score(targets, outputs.argmax(dim=1))


def test_confusion_and_what_follows_from_it_agree_with_scikit_learn(classified):
    outputs, targets = classified  # class 4 is never true, class 3 is never predicted
    outputs[:, 3] = -100
    task = Classification(5)
    counts = task.confusion(task.sums(outputs, batch(targets)))
    predicted = outputs.argmax(dim=1)
    np.testing.assert_array_equal(counts, sk.confusion_matrix(targets, predicted, labels=range(5)))
    precision, recall, _, support = sk.precision_recall_fscore_support(
        targets, predicted, labels=range(5), zero_division=0
    )
    found = per_class(counts)
    np.testing.assert_allclose(found["precision"], precision)
    np.testing.assert_allclose(found["recall"], recall)
    np.testing.assert_allclose(found["support"], support)


def test_regression_measures_what_scikit_learn_measures_in_the_labels_unit(estimated):
    outputs, targets = estimated
    task = Regression(scale=20.0)
    found = task.metrics(task.sums(outputs, batch(targets)))
    true, predicted = 20.0 * targets.double().numpy() + 7, 20.0 * outputs[:, 0].double().numpy() + 7
    assert found["loss"] == pytest.approx(sk.mean_squared_error(true, predicted) / 400)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(true, predicted))
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(true, predicted))
    assert found["r2"] == pytest.approx(sk.r2_score(true, predicted))


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_sums_over_parts_add_up_to_the_whole(name, classified, estimated):
    outputs, targets = classified if name == "classification" else estimated
    task = Classification(5) if name == "classification" else Regression(2.0)
    whole = task.sums(outputs, batch(targets))
    assert whole.dtype == torch.float64
    assert whole.shape == (task.sums_size,)
    assert whole[0] == 500
    parts = sum(task.sums(outputs[a:b], batch(targets[a:b])) for a, b in [(0, 1), (1, 250), (250, 500)])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_the_loss_of_a_batch_is_the_sum_over_its_samples_and_has_a_gradient(name, classified, estimated):
    outputs, targets = classified if name == "classification" else estimated
    task = Classification(5) if name == "classification" else Regression(2.0)
    outputs = outputs.clone().requires_grad_()
    loss = task.loss(outputs, batch(targets))
    assert loss.item() == pytest.approx(float(task.sums(outputs.detach(), batch(targets))[1]))
    loss.backward()
    assert outputs.grad.isfinite().all()


def test_a_constant_label_has_no_r2():
    task = Regression(1.0)
    found = task.metrics(task.sums(torch.zeros(4, 1), batch(torch.ones(4))))
    assert np.isnan(found["r2"])
    assert found["loss"] == 1.0


def test_beyond_the_largest_confusion_matrix_none_is_counted():
    task = Classification(MAX_CONFUSION + 1)
    sums = task.sums(torch.zeros(2, MAX_CONFUSION + 1), batch(torch.tensor([0, 1])))
    assert sums.shape == (task.sums_size,) == (3,)
    assert task.confusion(sums) is None
    assert task.metrics(sums)["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        (Classification(3), torch.zeros(4, 2)),
        (Classification(3), torch.zeros(4)),
        (Regression(1.0), torch.zeros(4, 2)),
    ],
)
def test_outputs_of_the_wrong_shape_are_refused_with_both_shapes(task, outputs):
    with pytest.raises(ModelError, match="must return") as caught:
        task.loss(outputs, batch(torch.zeros(4, dtype=torch.int64)))
    assert str(tuple(outputs.shape)) in str(caught.value)


def test_regression_takes_outputs_with_and_without_a_last_dimension():
    task, targets = Regression(1.0), torch.tensor([1.0, 2.0])
    flat, column = torch.tensor([1.0, 3.0]), torch.tensor([[1.0], [3.0]])
    assert task.loss(flat, batch(targets)) == task.loss(column, batch(targets)) == 1.0


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Classification(3), torch.randn(40, 3), torch.randint(3, (40,))),
        (Regression(2.5), torch.randn(40, 1), torch.randn(40)),
        (Regression([2.0, 3.0], [0.0, 1.0], ["a", "b"]), torch.randn(40, 2), torch.randn(40, 2)),
        (MultilabelClassification(2), torch.randn(40, 2), torch.randint(2, (40, 2)).float()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_rows_add_makes_the_metrics(task, outputs, targets):
    found = task.row_terms(outputs, batch(targets))
    metrics = task.metrics(task.sums(outputs, batch(targets)))
    assert {"loss", task.compared_by} & set(found)
    for name, terms in found.items():
        value = (terms.above.sum() / terms.below.sum()) ** terms.exponent
        assert value.item() == pytest.approx(metrics[name], rel=1e-6), name
