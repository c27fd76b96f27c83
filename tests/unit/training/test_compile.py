"""The compiler: the same names and losses within rounding."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from shoal.errors import ConfigError
from shoal.training.compile import compile_model
from training_run import CPU, TrainingRun, mlp


@pytest.mark.long
def test_a_compiled_model_has_the_same_names_and_losses_within_rounding(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    initial = nn.Sequential(nn.Linear(6, 2))
    settings = {"max_steps": 3, "optim": {"name": "sgd"}, "has_validation": False}
    expected = TrainingRun(tmp_path, copy.deepcopy(initial), **settings).train()
    try:
        found = TrainingRun(tmp_path, initial, compile=True, **settings).train()
    except ConfigError as error:
        pytest.skip(str(error))
    assert list(found.model.state_dict()) == list(expected.model.state_dict())
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the check's, and the model's


@pytest.mark.long
def test_a_compiled_models_dropout_has_the_masks_of_the_one_that_is_not_compiled_once(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    drop = nn.Dropout(0.3)
    initial = nn.Sequential(nn.Linear(6, 8), drop, nn.Linear(8, 8), drop, nn.Linear(8, 2))  # called twice
    settings = {"max_steps": 5, "optim": {"name": "sgd"}, "has_validation": False}
    expected = TrainingRun(tmp_path, copy.deepcopy(initial), **settings).train()
    try:
        found = TrainingRun(tmp_path, initial, compile=True, **settings).train()
    except ConfigError as error:
        pytest.skip(str(error))
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert found.loop.dependence.reason is None
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the check's, and the model's


def test_without_a_compiler_training_is_refused_with_the_remedy(tmp_path, monkeypatch):
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError, match=r"install a C\+\+ compiler .* or set train\.compile=false"):
        compile_model(mlp(), CPU)
