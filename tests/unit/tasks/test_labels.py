"""Several labels, or none: multilabel classification, regression of several numbers, and tasks that a loss defines."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import f1_score
from torch import nn

from shoal.cluster import session
from shoal.config.loading import load
from shoal.data.dataset_info import inspect_source
from shoal.data.loader import Batch
from shoal.errors import UserError
from shoal.inference.predictor import Predictor
from shoal.models.inputs import view_of_rows
from shoal.runs.config import RunConfig
from shoal.runs.validate import validate
from shoal.tasks.accumulator import Accumulator
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.tasks.registry import make_task
from shoal.training.accumulation import split_batch


def frame():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 3))
    return pd.DataFrame(x, columns=list("abc")).assign(
        red=(x[:, 0] > 0).astype(int),
        blue=x[:, 1] > 0.5,
        price=1000 + 50 * x[:, 0],
        size=5 * x[:, 2],
        time=np.exp(x[:, 1]),
        count=np.arange(200) % 5,
        note=[str(n) for n in range(200)],
    )


def reviews():
    """A text and a photo per row, of which a task takes one."""

    def png(value):
        stream = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    return frame()[["note", "blue", "count"]].assign(photo=[png(n) for n in range(200)])


class Model(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x)


def survival(outputs, targets):
    """The negative log likelihood of an exponential distribution of times, of which some are censored."""
    rate = outputs[:, 0]
    return rate.exp() * targets["time"] - targets["red"] * rate


def rebuild(outputs, targets):
    return F.mse_loss(outputs, targets, reduction="none")


HERE = [f"data.source={__name__}:frame", f"model.name={__name__}:Model", "scale.num_workers=0"]
FEATURES = "data.features=[a, b, c]"
TASKS = {
    "multilabel": ["task=multilabel_classification", "data.label=[red, blue]", "train.metrics=[auroc]"],
    "regression": ["task=regression", "data.label=[price, size]"],
    "weighted classes": ["data.label=blue", "data.weight=count"],
    "weighted number": ["task=regression", "data.label=price", "data.weight=count"],
    "weighted labels": ["task=multilabel_classification", "data.label=[red, blue]", "data.weight=count"],
    "survival": [
        "task=custom",
        "data.label=[time, red]",
        f"train.loss={__name__}:survival",
        "data.drop=[note, count]",
    ],
    "rebuild": ["task=custom", "data.label=null", f"train.loss={__name__}:rebuild"],
}


def config_of(name):
    features = [] if name == "survival" else [FEATURES]
    return load(RunConfig, None, [*HERE, *features, *TASKS[name]])


def prepared(config):
    """A config's data, task and first rows as the task sees them."""
    source = open_data(config.data, config.task, 0)
    spec = preprocessing_spec(config.data, config.task, 0, source)
    info = inspect_source(source, spec)
    task = make_task(config.task, info.transform, config.data, 0, config.train)
    block = next(source.blocks())[1]
    stored, targets = (
        torch.from_numpy(x) for x in (info.transform.stored(block), info.transform.targets(block))
    )
    batch = view_of_rows(info.transform, nn.Identity())(Batch(stored, targets, len(stored)), None)
    return info, spec, task, block, task.view(batch, None) if task.view else batch


@pytest.mark.parametrize("name", TASKS)
def test_the_probe_finds_nothing_to_complain_of(name):
    validate(config_of(name), session.connect)


def test_multilabel_metrics_are_those_of_scikit_learn():
    info, spec, task, block, batch = prepared(config_of("multilabel"))
    assert info.transform.outputs == 2
    outputs = torch.randn(200, 2)
    found = task.metrics(task.sums(outputs, batch))
    targets = np.stack([block["red"], block["blue"]], axis=1).astype(int)
    assert found["f1_macro"] == pytest.approx(f1_score(targets, outputs > 0, average="macro"))
    assert found["accuracy"] == pytest.approx((targets == (outputs > 0).numpy()).mean())
    loss = F.binary_cross_entropy_with_logits(outputs.double(), torch.tensor(targets).double())
    assert found["loss"] == pytest.approx(float(loss))
    model = Model(3, 2)
    predicted = Predictor(model, info.transform, task, spec).predict({name: block[name] for name in "abc"})
    expected = model(batch.inputs).double().sigmoid()
    np.testing.assert_allclose(np.array(predicted["probabilities"].tolist()), expected.detach(), rtol=1e-5)
    assert predicted["prediction"].tolist() == (expected > 0.5).long().tolist()


def test_several_numbers_are_standardized_each_and_measured_each_in_its_unit():
    info, spec, task, block, batch = prepared(config_of("regression"))
    torch.testing.assert_close(batch.targets.std(0), torch.ones(2), rtol=0.1, atol=0)
    found = task.metrics(task.sums(torch.zeros(200, 2), batch))
    mean = info.transform.target_columns[0].mean
    assert found["rmse_price"] == pytest.approx(
        float(np.sqrt(((block["price"] - mean) ** 2).mean())), rel=1e-4
    )
    assert set(found) == {
        "loss",
        *(f"{m}_{name}" for m in ("rmse", "mae", "r2") for name in ("price", "size")),
    }
    constant = Model(3, 2)
    nn.init.zeros_(constant.layer.weight)
    nn.init.zeros_(constant.layer.bias)
    predicted = Predictor(constant, info.transform, task, spec).predict({name: block[name] for name in "abc"})
    assert predicted["prediction"][0] == pytest.approx(
        [column.mean for column in info.transform.target_columns]
    )


@pytest.mark.parametrize("name", ["weighted classes", "weighted number", "weighted labels"])
def test_weights_are_no_feature_and_weigh_the_losses_in_training_and_validation(name):
    info, _, task, block, batch = prepared(config_of(name))
    assert [column.name for column in info.transform.columns] == ["a", "b", "c"]
    weights = block["count"] / info.transform.weight.mean
    np.testing.assert_allclose(batch.weights, weights)
    outputs = torch.randn(200, info.transform.outputs)
    each = task.sample_losses(outputs, batch)["loss"].numpy()
    assert float(task.loss(outputs, batch)) == pytest.approx(float((weights * each).sum()))
    parts = split_batch(batch, 64, 4)
    losses = [
        task.loss(outputs[first : first + 64], part)
        for first, part in zip(range(0, 200, 64), parts, strict=True)
    ]
    assert float(sum(losses)) == pytest.approx(float((weights * each).sum()))
    added = Accumulator(task, torch.device("cpu"))
    added.add(added.part(outputs, batch))
    assert added.results()["loss"] == pytest.approx(float((weights * each).sum() / weights.sum()))


@pytest.mark.parametrize("task", ["sequence_classification", "image_classification"])
def test_weights_stay_beside_encoded_texts_and_decoded_images(task):
    settings = [f"data.source={__name__}:reviews", "data.label=blue", "data.weight=count", f"task={task}"]
    info, _, _, block, batch = prepared(
        load(RunConfig, None, [*settings, "data.text=note", "data.context=8"])
    )
    assert [column.name for column in info.transform.columns] == [
        "tokens" if task == "sequence_classification" else "photo"
    ]
    assert set(block) == {info.transform.columns[0].name, "blue", "count"}
    np.testing.assert_allclose(batch.weights, block["count"] / info.transform.weight.mean)


def test_a_custom_loss_receives_its_labels_by_name_as_they_are():
    info, _, task, block, batch = prepared(config_of("survival"))
    assert {name: t.dtype for name, t in batch.targets.items()} == {"time": torch.float32, "red": torch.int64}
    np.testing.assert_allclose(batch.targets["time"], block["time"], rtol=1e-6)
    rate = torch.zeros(200, 2)
    assert float(task.loss(rate, batch)) == pytest.approx(float(block["time"].sum()), rel=1e-5)
    assert [column.name for column in info.transform.columns] == ["a", "b", "c", "blue", "price", "size"]


def test_without_a_label_the_inputs_are_the_targets():
    info, _, task, _, batch = prepared(config_of("rebuild"))
    assert info.transform.outputs == 3
    assert float(task.loss(batch.inputs, batch)) == 0
    torch.testing.assert_close(batch.targets, batch.inputs)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["task=custom"], ["task=custom has no loss of its own", "train.loss"]),
        (["data.label=null"], ["data.label=null with task=classification"]),
        (["data.label=[red, blue]"], ["predicts one column", "multilabel_classification"]),
        (
            ["task=multilabel_classification", "data.label=[red, time]"],
            ["'time' holds", "each label is 0 or 1"],
        ),
        (["data.label=red", "data.features=[a, bb]"], ["data.features='bb'", "did you mean 'b'?"]),
        (["data.label=red", "data.weight=coumt"], ["data.weight='coumt'", "did you mean 'count'?"]),
        (["data.label=red", "data.weight=a"], ["data.weight='a' holds -", "0 or more"]),
        (["task=causal_lm", "data.text=note", "data.weight=count"], ["data.weight='count'", "leave it out"]),
        (["data.label=red", "data.drop=[nota]"], ["'nota'", "did you mean 'note'?"]),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, words):
    with pytest.raises(UserError) as refused:
        validate(load(RunConfig, None, [*HERE, *settings]), session.connect)
    assert [word for word in words if word not in str(refused.value)] == []
