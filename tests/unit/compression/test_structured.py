"""Channels leave, the outputs of a model without them are those of the model with zeros in their place."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from shoal.compression.feed_forward import find_hidden_units
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
    "inception": (ModelConfig(name="inception", width=32, depth=4), (1, 16, 16), IMAGE),
    "bert": (ModelConfig(name="bert", width=32, depth=2), (8,), TOKENS),
    "gpt of 4 heads": (ModelConfig(name="gpt", width=64, depth=2, args={"heads": 4}), (8,), TOKENS),
    **{
        f"huggingface:{kind}": (ModelConfig(name=f"huggingface:{kind}", width=32, depth=2), inputs, example)
        for kind, inputs, example in (
            ("gpt2", (8,), TOKENS),
            ("bert", (8,), TOKENS),
            ("llama", (8,), TOKENS),
            ("vit", (1, 16, 16), IMAGE),
        )
    },
    "bert of 4 heads": (ModelConfig(name="bert", width=64, depth=2, args={"heads": 4}), (8,), TOKENS),
}
DECODERS = ("gpt", "huggingface:gpt2", "huggingface:llama")
TRANSFORMERS = ("gpt", "bert", "huggingface")


def built(name):
    config, inputs, example = CASES[name]
    is_decoder = config.name in DECODERS
    outputs = 50 if is_decoder else 3
    classes = "image_classification" if len(inputs) == 3 else "sequence_classification"
    task = "causal_lm" if is_decoder else classes
    make = lambda: build_model(config, inputs, outputs, 0, vocabulary=50, task=task).eval()  # noqa: E731
    return make, example


@pytest.mark.parametrize("name", CASES)
def test_half_of_the_channels_leave_and_the_shapes_alone_build_the_model_again(name):
    make, example = built(name)
    model = make()
    expected = model(example).shape
    prune(model, 0.5, example)
    before, after = (sum(p.numel() for p in one.parameters()) for one in (make(), model))
    assert after < (0.8 if name.startswith(TRANSFORMERS) else 0.6) * before
    outputs = model(example)
    assert outputs.shape == expected
    again = make()
    resize(again, changed_shapes(model, make()))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(example), outputs)
    assert [str(layer) for layer in again.modules()] == [str(layer) for layer in model.modules()]


@pytest.mark.parametrize("name", CASES)
def test_what_is_pruned_step_by_step_has_the_sizes_of_what_is_pruned_at_once(name):
    make, example = built(name)
    gradual, at_once = make(), make()
    for ratio in (0.2, 0.4, 0.5):
        with contextlib.suppress(ModelError):  # a step that the rounding to fast widths leaves nothing to
            prune(gradual, ratio, example, unpruned=make())
    prune(at_once, 0.5, example)
    assert [str(layer) for layer in gradual.modules()] == [str(layer) for layer in at_once.modules()]
    assert gradual(example).shape == at_once(example).shape


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


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("huggingface")])
def test_units_of_a_block_that_do_nothing_leave_first_and_change_nothing(name):
    make, example = built(name)
    model = make()
    units = find_hidden_units(model)
    assert [one.count for one in units] == [128, 128]
    with torch.no_grad():
        for one in units:
            reader = model.get_submodule(one.reader)
            (reader.weight.T if isinstance(reader, nn.Linear) else reader.weight)[1::2] = 0
            for writer in map(model.get_submodule, one.writers):
                (writer.weight if isinstance(writer, nn.Linear) else writer.weight.T)[1::2] = 0
    expected = model(example)
    prune(model, 0.5, example)
    assert [one.count for one in find_hidden_units(model)] == [64, 64]
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


@pytest.mark.parametrize("name", ["gpt of 4 heads", "bert of 4 heads"])
def test_heads_that_do_nothing_leave_first_and_change_nothing(name):
    make, example = built(name)
    model = make()
    with torch.no_grad():
        for block in model.blocks:  # heads 0 and 2, and all that feed-forward layers could lose
            for layer in (block.attention.query, block.attention.key, block.attention.value):
                layer.weight.view(4, 16, 64)[::2] = 0
            block.attention.project.weight.view(64, 4, 16)[:, ::2] = 0
            block.feed_forward.up.weight[::2] = 0
            block.feed_forward.down.weight[:, ::2] = 0
    expected = model(example)
    prune(model, 0.5, example)
    assert model.blocks[0].attention.query.weight.shape == (32, 64)
    assert model.blocks[1].attention.project.weight.shape == (64, 32)
    torch.testing.assert_close(model(example), expected)


def test_generation_with_caches_is_that_of_the_fewer_heads():
    make, example = built("gpt of 4 heads")
    model = make()
    prune(model, 0.5, example)
    written = model.generate(example, 4, temperature=0)
    assert torch.equal(written[:, 8:9], model(example)[:, -1].argmax(-1, keepdim=True))


@pytest.mark.parametrize(("heads", "ratio", "kept"), [(4, 0.5, 2), (4, 0.3, 3), (4, 0.9, 1), (1, 0.5, 1)])
def test_whole_heads_leave_and_one_stays(heads, ratio, kept):
    config = ModelConfig(name="bert", width=64, depth=1, args={"heads": heads})
    model = build_model(config, (8,), 3, 0, vocabulary=50, task="sequence_classification").eval()
    prune(model, ratio, TOKENS)
    assert model.blocks[0].attention.query.out_features == kept * 64 // heads


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


class Own(nn.Module):
    """A user's own: BatchNorm, depthwise convolution, LayerNorm, two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.hidden, self.hidden_norm = nn.Linear(32 * 16, 64), nn.LayerNorm(64)
        self.output, self.other = nn.Linear(64, 3), nn.Linear(64, 2)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.depthwise(self.norm(self.first(x)).relu()).relu(), 4)
        x = self.hidden_norm(self.hidden(x.flatten(1)).relu())
        return {"logits": self.output(x), "other": self.other(x)}


def test_a_model_of_a_users_own_is_pruned_where_its_layers_say_their_sizes():
    torch.manual_seed(0)
    model, before = Own().eval(), Own().eval()
    check_model(model, "mine:Own", (0.25, 0.5), IMAGE)
    assert model.first.out_channels == 32  # the check prunes a copy
    prune(model, 0.5, IMAGE)
    assert (model.first.out_channels, model.depthwise.groups, model.hidden.out_features) == (16, 16, 32)
    outputs = model(IMAGE)
    assert (outputs["logits"].shape, outputs["other"].shape) == ((2, 3), (2, 2))
    resize(before, changed_shapes(model, before))
    before.load_state_dict(model.state_dict())
    assert torch.equal(before(IMAGE)["logits"], outputs["logits"])
    assert [str(layer) for layer in before.modules()] == [str(layer) for layer in model.modules()]


class Returning(nn.Module):
    """Returns what a layer takes too, and nothing that is called logits."""

    def __init__(self, is_hidden_returned=True):
        super().__init__()
        self.first, self.last = nn.Linear(4, 64), nn.Linear(64, 2)
        self.is_hidden_returned = is_hidden_returned

    def forward(self, x):
        hidden = self.first(x).relu()
        mean, scale = self.last(hidden).unbind(1)
        return {"mean": mean, "scale": scale} | ({"hidden": hidden} if self.is_hidden_returned else {})


def test_all_that_a_model_returns_keeps_its_shape():
    example = torch.randn(2, 4)
    check_model(Returning(is_hidden_returned=False), "mine:Net", (0.5,), example, are_all_read=True)
    with pytest.raises(ModelError, match=r"hidden \(2, 64\), and pruned .*hidden \(2, 32\)"):
        check_model(Returning(), "mine:Net", (0.5,), example, are_all_read=True)


class Reshaping(nn.Module):
    """States a size in its forward that is not its layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 64), nn.Linear(32, 3)

    def forward(self, x):
        return self.last(self.first(x).view(len(x), 2, 32).sum(1))


class Recurrent(nn.Module):
    """Has layers that the description cannot state the sizes of."""

    def __init__(self):
        super().__init__()
        self.first, self.gru, self.last = nn.Linear(4, 64), nn.GRU(64, 64), nn.Linear(64, 3)

    def forward(self, x):
        return self.last(self.gru(self.first(x)[None])[0][0])


@pytest.mark.parametrize("own", [Reshaping, Recurrent, lambda: nn.Linear(4, 2)])
def test_what_cannot_be_pruned_is_refused_by_name(own):
    with pytest.raises(ModelError, match=r"mine:Net|removes nothing"):
        check_model(own(), "mine:Net", (0.5,), torch.randn(2, 4))


def test_a_model_of_several_arrays_is_refused_by_name():
    with pytest.raises(ModelError, match="'mine:Net' takes several arrays"):
        check_model(nn.Linear(4, 2), "mine:Net", (0.5,), {"a": TOKENS})


def test_a_model_that_is_too_narrow_is_refused():
    model = build_model(ModelConfig(name="mlp", width=1, depth=1), (4,), 2, 0)
    with pytest.raises(ModelError, match="removes nothing"):
        prune(model, 0.5, torch.randn(2, 4))


@pytest.mark.parametrize("name", ["layers.9.weight", "layers.1.weight", "nowhere"])
def test_shapes_that_a_model_does_not_have_are_refused_by_name(name):
    model = copy.deepcopy(built("mlp")[0]())
    with pytest.raises(ModelError, match=f"has no '{name}'"):
        resize(model, {name: (2, 2)})
