"""What a sweep's validation finds beyond its schema, before anything starts."""

import pytest

from shoal.devices import CPU, CUDA
from shoal.errors import ConfigError
from shoal.tune.config import load_sweep
from shoal.tune.validate import validate_sweep


def test_no_more_of_optunas_points_run_side_by_side_than_its_lag_and_it_is_said(caplog):
    settings = ["tune.search=optuna", "tune.num_samples=40", "optim.lr=uniform(0.1, 1)"]
    has = {"CPU": 32.0}

    def slots(*more: str) -> int:
        return validate_sweep(load_sweep(None, [*settings, *more]), lambda scale, spare_cpus: CPU).slots(
            has, 0, CPU
        )

    assert slots() == 8
    assert "tune.lag=8: 8 of 32 trials that fit" in caplog.text
    assert slots("tune.lag=16") == 16
    assert slots("tune.repeat=2") == 16, "of each point two seeds"
    assert slots("tune.max_concurrent_trials=4") == 4
    assert slots("tune.search=random") == 32


def test_trials_run_side_by_side_as_far_as_there_are_devices_for_their_workers():
    plan = validate_sweep(
        load_sweep(None, ["optim.lr=0.1,0.2,0.3,0.4", "scale.num_workers=1"]), lambda scale, spare_cpus: CUDA
    )
    assert plan.slots({"CPU": 32.0, "GPU": 3.0}, 0, CUDA) == 3
    assert plan.slots({"CPU": 32.0, "GPU": 3.0}, 0, CPU) == 4
    assert plan.actor_resources(CUDA) == {"CPU": 1.0, "GPU": 1.0}


MINE = """
import torch

def squares(outputs, targets):
    return {"near": (outputs[:, 0] - targets) ** 2, "far": outputs[:, 0].abs()}

def gini(outputs, targets):
    return outputs[:, 0]
"""


@pytest.fixture
def sweeps(user_module):
    """Validates a sweep over a regression with a loss and metric of the user's own."""
    module = user_module(MINE)

    def validated(*settings):
        given = [
            "task=regression", "data.source=sklearn:diabetes", f"train.loss={module}:squares",
            f"train.metrics=[{module}:gini]", "optim.lr=0.1,0.2", "model.width=16",
        ]  # fmt: skip
        config = load_sweep(None, [*given, *settings])
        validate_sweep(config, lambda scale, spare_cpus: CPU)
        return config

    return validated


def test_a_metric_that_no_trial_has_is_refused_with_those_that_it_has(sweeps):
    with pytest.raises(ConfigError) as refused:
        sweeps("tune.metric=val/nonsense")
    for word in ("tune.metric names 'val/nonsense'", "val/loss", "val/near", "val/far", "val/gini"):
        assert word in str(refused.value)
    assert sweeps("tune.metric=val/near").mode == "min"


def test_a_metric_that_may_be_better_either_way_needs_a_mode(sweeps):
    with pytest.raises(
        ConfigError, match=r"'val/gini': nothing says .* set tune\.mode=max or tune\.mode=min"
    ):
        sweeps("tune.metric=val/gini")
    assert sweeps("tune.metric=val/gini", "tune.mode=max").mode == "max"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["model.width=by(widths:fractions)", "optim.lr=0.1,0.2"],
            ["model.width=uniform(16, 32)", "randint(16, 33)"],
        ),
        (
            ["model.name=widths:Net", "model.args.hidden=uniform(4, 8)"],
            ["model.args.hidden", "randint(4, 9)"],
        ),
    ],
)
def test_a_range_of_fractions_is_refused_wherever_a_whole_number_is_declared(
    tmp_path, monkeypatch, settings, words
):
    (tmp_path / "widths.py").write_text(
        "from torch import nn\n"
        "def fractions(point):\n    return 'uniform(16, 32)'\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, inputs: int, outputs: int, hidden: int = 4):\n"
        "        super().__init__(nn.Linear(inputs, hidden), nn.Linear(hidden, outputs))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        validate_sweep(load_sweep(None, settings), lambda scale, spare_cpus: CPU)
    for word in words:
        assert word in str(refused.value)
