"""A config from Python: paths, nested and dotted keys, objects, ranges; what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch import nn

import shoal
from shoal.api.config import make_config
from shoal.api.tune import make_sweep_config
from shoal.runs.config import RunConfig
from shoal.tune.config import SweepConfig


class Net(nn.Module):
    pass


def made(config=None, **overrides) -> RunConfig:
    return make_config(RunConfig, config, overrides)


def test_keys_may_be_nested_or_dotted_and_overrides_count_more(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("optim: {lr: 0.5, name: sgd}\ndata.label: y\n")
    for config in (file, str(file), {"optim": {"lr": 0.5, "name": "sgd"}, "data.label": "y"}):
        found = made(config, optim={"lr": 0.1}, **{"model.width": np.int64(16), "model.args.dropout": 0.5})
        assert (found.optim.lr, found.optim.name, found.data.label) == (0.1, "sgd", "y")
        assert found.model.width == 16
        assert found.model.args == {"dropout": 0.5}


def test_a_config_is_checked_and_can_be_changed():
    config = shoal.Config(optim={"lr": 0.5}, **{"train.epochs": 3})
    assert isinstance(config, RunConfig)
    assert (config.optim.lr, config.train.epochs) == (0.5, 3)
    assert config.replace({"optim.lr": 0.1}).optim.lr == 0.1
    assert shoal.Config(config, seed=1).train.epochs == 3
    assert made(config, seed=1).optim.lr == 0.5
    with pytest.raises(shoal.UserError, match=r"did you mean 'optim\.lr'"):
        shoal.Config(lr=0.1)
    with pytest.raises(shoal.UserError, match="greater than 0"):
        config.replace({"optim.lr": -1})


def test_a_config_keeps_what_a_sweep_has_as_another_default():
    assert make_sweep_config(shoal.Config(seed=1), {}, {}).scale.num_workers == 1
    assert shoal.Config(seed=1).scale.num_workers == 2


def test_objects_become_names():
    frame = pd.DataFrame({"a": [1.0, 2.0], "target": [0, 1]})
    for source in (frame, {"train": frame, "test": frame}, (np.zeros((2, 2)), np.zeros(2))):
        assert made({"data": {"source": source}}).data.source == made(**{"data.source": source}).data.source
    assert made(**{"data.source": frame}).data.source.startswith("object:DataFrame-")
    assert made(**{"data.source": Path("csv:orders.csv")}).data.source == "csv:orders.csv"
    assert made(**{"model.name": lambda inputs, outputs: nn.Linear(inputs, outputs)}).model.name.startswith(
        "object:"
    )
    assert made(**{"model.name": nn.Linear}).model.name == "torch.nn.modules.linear:Linear"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model.name": nn.Linear(2, 2)}, "an instance of Linear.*pass the class, model.name=Linear"),
        ({"model.name": 3}, "model.name is a int"),
        ({"model.args": {"act": nn.ReLU}}, "model.args.act is 'ReLU'"),
        ({"train.precision": np.sum}, "train.precision is 'sum'"),
        ([1], "config is a list"),
        ({"optim.lr": shoal.uniform(0, 1)}, r"uniform\(0, 1\) is a range.*shoal.tune"),
        ("nothing.yaml", "nothing.yaml"),
    ],
)
def test_what_a_config_cannot_hold_is_refused(config, words):
    with pytest.raises(shoal.UserError, match=words):
        made(config)


def test_a_space_has_ranges_lists_and_classes():
    class Other(Net):
        pass

    space = {"optim.lr": shoal.loguniform(1e-4, 1e-1), "model.width": [16, 32], "model.name": [Net, Other]}
    config = make_sweep_config(None, space, {"tune.num_samples": 2})
    assert config.space["optim.lr"] == "loguniform(0.0001, 0.1)"
    assert config.space["model.width"] == "grid(16, 32)"
    names = config.domains["model.name"].values
    assert names[0].endswith("test_config:Net") or names[0].startswith("object:Net-")
    assert names[1].startswith("object:Other-")
    assert config.trial({"model.name": names[1]}).model.name == names[1]


def test_ranges_may_be_among_the_overrides_and_in_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("space: {optim.lr: 'uniform(0.1, 1)'}\n")
    config = make_sweep_config(file, {}, {"model.width": shoal.choice(8, 16)})
    assert dict(config.space) == {"optim.lr": "uniform(0.1, 1)", "model.width": "choice(8, 16)"}


def test_without_ranges_the_default_ones_are_swept_except_keys_with_a_value():
    assert set(make_sweep_config(None, {}, {}).space) == {"model.width", "optim.lr"}
    assert set(make_sweep_config(None, {}, {"model.width": 16}).space) == {"optim.lr"}
    assert isinstance(make_sweep_config({"model": {"width": 8}}, {}, {}), SweepConfig)


def test_the_range_functions_make_ray_tunes_ranges():
    assert shoal.choice("adam", "sgd") == shoal.choice(["adam", "sgd"])
    assert shoal.grid(1, 2).values == (1, 2)
    assert shoal.randint(1, 9).high == 9
    with pytest.raises(shoal.UserError, match="greater than 0"):
        shoal.loguniform(0, 1)
