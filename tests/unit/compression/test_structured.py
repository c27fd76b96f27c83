"""Channels leave, the outputs of a model without them are those of the model with zeros in their place."""

import copy

import pytest
import torch
from torch import nn

from shoal.compression.structured import check_model, prune, width_after
from shoal.errors import ModelError
from shoal.models.config import ModelConfig
from shoal.models.layer_sizes import changed_shapes, resize
from shoal.models.registry import build_model

IMAGE, TOKENS = torch.randn(2, 1, 16, 16), torch.randint(1, 50, (2, 8))
CASES = {
    "mlp": (ModelConfig(name="mlp", width=128, depth=2), (10,), torch.randn(2, 10)),
    "resnet-8": (ModelConfig(name="resnet", width=16, depth=8), (1, 16, 16), IMAGE),
    "resnet-18": (ModelConfig(name="resnet", width=32, depth=18), (1, 16, 16), IMAGE),
    "resnet-50": (ModelConfig(name="resnet", width=16, depth=50), (1, 16, 16), IMAGE),
    "gpt": (ModelConfig(name="gpt", width=32, depth=2), (8,), TOKENS),
    "bert": (ModelConfig(name="bert", width=32, depth=2), (8,), TOKENS),
}


def built(name):
    config, inputs, example = CASES[name]
    outputs = 50 if name == "gpt" else 3
    task = "causal_lm" if name == "gpt" else "sequence_classification"
    make = lambda: build_model(config, inputs, outputs, 0, vocabulary=50, task=task).eval()  # noqa: E731
    return make, example


@pytest.mark.parametrize("name", CASES)
def test_half_of_the_channels_leave_and_the_shapes_alone_build_the_model_again(name):
    make, example = built(name)
    model = make()
    expected = model(example).shape
    prune(model, 0.5, example)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (make(), model))
    assert after < (0.8 if name in ("gpt", "bert") else 0.6) * before
    outputs = model(example)
    assert outputs.shape == expected
    again = make()
    resize(again, changed_shapes(model, make()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(example), outputs)
    assert [str(layer) for layer in again.modules()] == [str(layer) for layer in model.modules()]


def test_hidden_units_that_do_nothing_leave_first_and_change_nothing():
    make, example = built("mlp")
    model = make()
    with torch.no_grad():
        model.layers[0].weight[1::2] = 0
        model.layers[0].bias[1::2] = 0
        model.layers[2].weight[:, 1::2] = 0
        model.layers[2].weight[::2] = 0
        model.layers[2].bias[::2] = 0
        model.layers[4].weight[:, ::2] = 0
    expected = model(example)
    prune(model, 0.5, example)
    assert model.layers[0].weight.shape == (64, 10)
    assert model.layers[2].weight.shape == (32, 64)
    torch.testing.assert_close(model(example), expected)


def test_a_channel_that_leaves_the_stream_leaves_all_stages_that_shortcuts_pad_it_to():
    make, example = built("resnet-8")
    model = make()
    with torch.no_grad():  # every second channel of the stream is zero
        writers = [model.stem[0], *(block.branch[-1] for block in model.blocks)]
        for conv, norm in writers:
            conv.weight[1::2] = 0
            norm.weight[::2] = 1
            norm.weight[1::2] = norm.bias[1::2] = 0
    prune(model, 0.5, example)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert [one.out_channels for one in convolutions] == [8, 8, 8, 16, 16, 32, 32]
    assert [block.shortcut.extra for block in model.blocks[1:]] == [8, 16]
    assert all((conv.weight.flatten(1).norm(dim=1) > 0).all() for conv, _ in writers)


def test_a_stream_whose_norm_groups_do_not_divide_it_stays():
    config = ModelConfig(name="resnet", width=17, depth=8)
    model = build_model(config, (1, 16, 16), 3, 0).eval()
    prune(model, 0.5, IMAGE)
    assert model.stem[0][0].out_channels == 17
    assert model(IMAGE).shape == (2, 3)


def test_a_pruned_model_is_pruned_again():
    make, example = built("mlp")
    model = make()
    prune(model, 0.5, example)
    prune(model, 0.5, example)
    assert changed_shapes(model, make())["layers.0.weight"] == (32, 10)


@pytest.mark.parametrize(
    ("width", "ratio", "groups", "kept"),
    [
        (512, 0.5, 1, 256),
        (100, 0.5, 1, 64),  # rounded up to 16s
        (64, 0.5, 4, 32),
        (48, 0.5, 3, 24),  # 16s do not fit three groups
        (16, 0.5, 1, 8),
        (10, 0.5, 1, 8),
        (3, 0.5, 1, 2),
        (1, 0.9, 1, 1),
        (16, 0.01, 1, 16),
    ],
)
def test_widths_are_rounded_to_fast_ones(width, ratio, groups, kept):
    assert width_after(width, ratio, groups) == kept


def test_what_cannot_be_pruned_is_refused_by_name():
    with pytest.raises(
        ModelError, match="'inception' cannot be pruned by channels: mlp, resnet, gpt and bert"
    ):
        check_model(nn.Linear(2, 2), "inception")
    model = build_model(ModelConfig(name="mlp", width=1, depth=1), (4,), 2, 0)
    with pytest.raises(ModelError, match="removes nothing"):
        prune(model, 0.5, torch.randn(2, 4))


@pytest.mark.parametrize("name", ["layers.9.weight", "layers.1.weight", "nowhere"])
def test_shapes_that_a_model_does_not_have_are_refused_by_name(name):
    model = copy.deepcopy(built("mlp")[0]())
    with pytest.raises(ModelError, match=f"has no '{name}'"):
        resize(model, {name: (2, 2)})
