"""The compiler: the same names and losses within rounding."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch._inductor.utils import run_and_get_code

from shoal.data.loader import Batch
from shoal.data.tokenizer import SPECIALS, ByteTokenizer
from shoal.errors import ConfigError
from shoal.models.gpt import GPT
from shoal.tasks.language import CausalLM
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


@pytest.mark.long
def test_a_compiled_decoder_and_its_loss_are_the_same_within_rounding_and_compute_no_angle_in_a_kernel():
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = GPT((16,), 259, width=32, depth=2, heads=2)
    tokens = torch.randint(SPECIALS, 259, (4, 17))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], 4)
    task = CausalLM(ByteTokenizer(), 16, seed=0)
    expected = model(batch.inputs)
    try:
        compile_model(model, CPU)
    except ConfigError as error:
        pytest.skip(str(error))
    found, code = run_and_get_code(model, batch.inputs)
    torch.testing.assert_close(found, expected)
    assert not any(function in kernel for kernel in code for function in ("cos(", "sin(", "pow("))
    loss = task.loss(found, batch)
    task.compile()
    torch.testing.assert_close(task.loss(found, batch), loss)


def test_without_a_compiler_training_is_refused_with_the_remedy(tmp_path, monkeypatch):
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigError, match=r"install a C\+\+ compiler .* or set train\.compile=false"):
        compile_model(mlp(), CPU)
