import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from shoal.data.dataset_info import inspect_source
from shoal.data.loader import Batch
from shoal.data.partition import partition_source
from shoal.data.sources.function import source_from_value
from shoal.errors import DataError, ModelError
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.inference.predictor import Predictor
from shoal.inference.rows import as_rows
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.tasks.base import MAX_ROWS

PROJECTED = """
import numpy as np
from torch import nn

class Projected(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.projection = np.random.normal(size=(inputs, 8))
        self.out = nn.Linear(8, outputs)
"""


@pytest.fixture
def saved(preprocessing, tmp_path):
    """Save an untrained model fitted to rows; returns the loaded Predictor, the model and the preprocessing spec."""

    def make(block, task="classification", **data):
        made = preprocessing(is_classification=task == "classification", **data)
        dataset_info = inspect_source(source_from_value("mine:rows", block), made)
        config = ModelConfig(width=16, args={"dropout": 0.5})
        model = build_model(
            config, dataset_info.transform.input_shape, dataset_info.transform.outputs, seed=3
        ).eval()
        save_file(model.state_dict(), tmp_path / WEIGHTS)
        (tmp_path / DESCRIPTION).write_text(
            describe_model(config, dataset_info.transform, task, made.data, made.seed)
        )
        return Predictor.load(tmp_path), model, made

    return make


def test_a_loaded_model_predicts_what_the_model_in_memory_did(saved, rows):
    predictor, model, made = saved(rows)
    source = source_from_value("mine:rows", rows)
    inputs, _ = partition_source(source, made, inspect_source(source, made), 1)[0]["test"]
    expected = model(torch.from_numpy(inputs)).detach().double()
    features = torch.from_numpy(predictor.transform.features(rows))
    is_test = [row for row in range(120) if (features[row] == torch.from_numpy(inputs)).all(dim=1).any()]
    found = predictor.outputs({name: column[is_test] for name, column in rows.items()})
    torch.testing.assert_close(found, expected)


def test_a_loaded_model_has_what_its_builder_drew_besides_weights(user_module, rows, preprocessing, tmp_path):
    name = user_module(PROJECTED)
    made = preprocessing(seed=3)
    transform = inspect_source(source_from_value("mine:rows", rows), made).transform
    config = ModelConfig(name=f"{name}:Projected")
    model = build_model(config, transform.input_shape, transform.outputs, made.seed)
    save_file(model.state_dict(), tmp_path / WEIGHTS)
    described = describe_model(config, transform, "classification", made.data, made.seed)
    (tmp_path / DESCRIPTION).write_text(described)
    assert np.array_equal(Predictor.load_own(tmp_path).model.projection, model.projection)


@pytest.mark.parametrize("label", ["target", "color"])
def test_classes_come_back_by_their_own_names_with_their_probabilities(saved, rows, label):
    predictor, *_ = saved(rows, label=label)
    found = predictor.predict(pd.DataFrame({name: column for name, column in rows.items() if name != label}))
    shares = np.array(found["probabilities"].tolist())
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    classes = predictor.transform.label.classes
    assert found["prediction"].tolist() == [classes[place] for place in shares.argmax(axis=1)]


def test_a_regression_predicts_in_the_labels_own_unit(saved, rows):
    predictor, model, _ = saved(rows, task="regression", label="size")
    found = predictor.predict(rows)["prediction"].to_numpy()
    raw = predictor.outputs(rows).numpy()[:, 0]
    label = predictor.transform.label
    np.testing.assert_allclose(found, raw * label.std + label.mean)


@pytest.mark.parametrize("form", ["frame", "columns", "lists"])
def test_rows_may_come_in_any_usual_form_and_order_with_or_without_the_label(saved, rows, form):
    predictor, *_ = saved(rows)
    expected = predictor.predict(rows)["prediction"].tolist()
    block = {name: rows[name] for name in ("color", "count", "size")}
    given = {
        "frame": pd.DataFrame(block),
        "columns": block,
        "lists": {name: column.tolist() for name, column in block.items()},
    }[form]
    assert predictor.predict(given)["prediction"].tolist() == expected


def test_missing_and_unseen_values_are_predicted_too(saved, rows):
    predictor, *_ = saved(rows)
    given = pd.DataFrame({"size": [np.nan, 9.0], "count": [3, None], "color": ["purple", None]})
    assert len(predictor.predict(given)) == 2


def test_one_row_alone_is_predicted_as_among_others(saved, rows):
    predictor, *_ = saved(rows)
    whole = predictor.outputs(rows)
    alone = predictor.outputs({name: column[7:8] for name, column in rows.items()})
    torch.testing.assert_close(alone, whole[7:8])


def test_more_rows_than_fit_one_batch_are_predicted_each_once(saved, rows):
    predictor, *_ = saved(rows)
    many = {name: np.resize(column, MAX_ROWS + 5) for name, column in rows.items()}
    whole = predictor.outputs(rows)
    torch.testing.assert_close(predictor.outputs(many)[-5:], whole[(np.arange(MAX_ROWS + 5) % 120)[-5:]])


def test_arrays_are_taken_by_a_model_of_one_tensor_column(saved):
    block = {"image": np.random.default_rng(0).random((60, 4, 4)), "target": np.arange(60) % 3}
    predictor, *_ = saved(block)
    array = as_rows(block, predictor.transform)
    assert array is block["image"]
    assert predictor.predict(array)["prediction"].tolist() == predictor.predict(block)["prediction"].tolist()


def test_sums_are_those_that_evaluation_makes(saved, rows):
    predictor, model, _ = saved(rows)
    inputs = torch.from_numpy(predictor.transform.features(rows))
    targets = torch.from_numpy(predictor.transform.targets(rows))
    expected = predictor.task.sums(model(inputs).detach(), Batch(inputs, targets, count=120))
    added = predictor.accumulator()
    predictor.evaluate(rows, added)
    torch.testing.assert_close(added.sums, expected, rtol=1e-6, atol=1e-6)


def test_a_missing_column_is_refused_by_name(saved, rows):
    predictor, *_ = saved(rows)
    with pytest.raises(DataError, match="column 'color' is missing"):
        predictor.predict({"size": rows["size"], "count": rows["count"]})


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no Shoal model"):
        Predictor.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text(json.dumps({}))
    (tmp_path / WEIGHTS).write_bytes(b"cut short")
    with pytest.raises(ModelError, match="truncated or no safetensors file"):
        Predictor.load(tmp_path)
