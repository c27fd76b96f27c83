import pytest
import torch
from torch import nn

from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.models.weight_decay import without_decay


def built(name, inputs, **args):
    config = ModelConfig(name=name, width=16, depth=2, args=args)
    return build_model(config, inputs, 3, seed=0, vocabulary=11, task="sequence_classification")


MODELS = {
    "mlp": lambda: built("mlp", (4,)),
    "gpt": lambda: built("gpt", (8,), heads=2, positions="learned"),
    "untied": lambda: built("gpt", (8,), heads=2, tied=False),
    "bert": lambda: built("bert", (8,), heads=2),
    "resnet": lambda: build_model(ModelConfig(name="resnet", width=16, depth=8), (3, 8, 8), 3, seed=0),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_bias_norm_and_embedding_is_spared_and_no_other_weight(kind):
    model = MODELS[kind]()
    spared = without_decay(model)
    matrices = (nn.Linear, nn.Conv2d)
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    expected = {
        name
        for name, parameter in model.named_parameters()
        if name.endswith("bias")
        or id(parameter) in tied
        or not isinstance(model.get_submodule(name.rpartition(".")[0]), matrices)
    }
    assert spared == expected
    assert 0 < len(spared) < len(list(model.parameters()))


def test_an_embedding_is_spared_with_the_output_layer_that_shares_its_weight_and_an_output_layer_alone_is_not():
    assert "embedding.weight" in without_decay(MODELS["gpt"]())
    assert "position.weight" in without_decay(MODELS["gpt"]())
    assert "output.weight" not in without_decay(MODELS["untied"]())


def test_a_norms_gain_of_several_dimensions_is_spared():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm((4, 5, 5)), nn.RMSNorm((5, 5)))
    assert without_decay(model) == {"0.bias", "1.weight", "1.bias", "2.weight"}


def test_a_parameter_of_a_users_own_is_judged_by_its_dimensions():
    model = nn.Module()
    model.gain, model.scale = nn.Parameter(torch.ones(4)), nn.Parameter(torch.tensor(1.0))
    model.mix = nn.Parameter(torch.ones(4, 4))
    assert without_decay(model) == {"gain", "scale"}
