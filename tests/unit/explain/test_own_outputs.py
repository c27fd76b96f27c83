"""Outputs of a custom task, whose meaning the user's loss alone knows, are explained by their names."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.errors import ConfigError
from shoal.explain import checks
from shoal.explain.pictures import draw
from shoal.inference.predictor import Predictor
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.tasks.own_loss import OwnLoss
from shoal.tasks.registry import make_task


class Normal(nn.Module):
    """Predicts a mean by two columns, and the logarithm of a deviation by another."""

    def __init__(self, columns, planted):
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(columns, 1) for name in planted})
        with torch.no_grad():
            for name, weights in planted.items():
                self.heads[name].weight.zero_()
                self.heads[name].bias.zero_()
                for place, weight in weights.items():
                    self.heads[name].weight[0, place] = weight

    def forward(self, x):
        return {name: head(x)[:, 0] for name, head in self.heads.items()}


def likelihood(outputs, targets):
    off = (targets.float() - outputs["mean"]) / outputs["log_scale"].exp()
    return outputs["log_scale"] + 0.5 * off.square()


def reconstruction(outputs, targets):
    return (outputs - targets).square().mean(dim=1)


@pytest.fixture
def predictor(tmp_path):
    """Make one of a table of 10 columns of which three decide."""

    def make(model, loss, label):
        draw_ = np.random.default_rng(0)
        x = draw_.normal(size=(500, 10)).astype(np.float32)
        frame = pd.DataFrame({f"x{number}": x[:, number] for number in range(10)})
        if label:
            noise = draw_.normal(size=500) * np.exp(0.5 * x[:, 4])
            frame[label] = 3.0 * x[:, 2] - 2.0 * x[:, 7] + noise
        frame.to_csv(tmp_path / "rows.csv", index=False)
        config = DataConfig(source=f"csv:{tmp_path}/rows.csv", global_batch_size=8, label=label)
        source = open_data(config, "custom", 0)
        spec = preprocessing_spec(config, "custom", 0, source)
        transform = inspect_source(source, spec).transform
        task = make_task("custom", transform, config, 0)
        task.own_loss = OwnLoss("mine:loss", loss)
        return Predictor(model, transform, task, spec)

    return make


def test_each_output_of_a_custom_task_is_explained_by_its_own_columns(predictor, explained, rows_of):
    model = Normal(10, {"mean": {2: 3.0, 7: -2.0}, "log_scale": {4: 0.5}})
    one = predictor(model, likelihood, "y")
    for target, planted in (("mean", ["x2", "x7"]), (1, ["x4"])):
        explanation = explained(one, target=target)
        assert explanation.failed == []
        assert [column.name for column in explanation.importance[: len(planted)]] == planted
    assert {row.record.target for row in explanation.local} == {"log_scale"}
    assert explanation.importance[0].permutation > 0
    assert {"importance", "permutation", "faithfulness"} < set(draw(explanation))
    made = rows_of(one, target="mean", model=Normal(10, {"mean": {1: 3.0}, "log_scale": {}}))
    assert not checks.learned(made.subject, made.rows).is_passed


def test_one_of_several_outputs_is_to_be_named(predictor, rows_of):
    one = predictor(nn.Linear(10, 10), reconstruction, None)
    with pytest.raises(
        ConfigError, match=r"with 10 outputs: name the one .*: prediction\[0\], prediction\[1\]"
    ):
        rows_of(one)
    with pytest.raises(ConfigError, match=r"explain.target=10 is not an output of the model"):
        rows_of(one, target=10)
    rows = rows_of(one, target=9).rows
    assert rows.targets.tolist() == [9] * len(rows)
    torch.testing.assert_close(rows.features.labels, rows.inputs)  # what an autoencoder is to return
