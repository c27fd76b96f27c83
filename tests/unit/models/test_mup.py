import io
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.config.schema import build_config
from shoal.data.loader import Batch, ResidentShard
from shoal.data.sampler import Lanes
from shoal.distributed.process_group import SingleProcess
from shoal.errors import ConfigError, ModelError
from shoal.models.config import ModelConfig
from shoal.models.detector import Detector
from shoal.models.mup import parametrize, roles, width_scalings
from shoal.models.registry import build_model
from shoal.training.assemble import assemble_loop
from shoal.training.loop import TrainConfig
from shoal.training.optimizer import OptimConfig, build_optimizer
from shoal.tune.analysis.coordinate_check import (
    Coordinate,
    coordinate_check,
    coordinate_figure,
    growth,
    verdict,
)

BASE = 32


def mlp(width, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.attention_scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.attention_scale).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """One block, initialized as GPT-2: every matrix with std 0.02, biases 0."""

    def __init__(self, width, heads=2, is_tied=True):
        super().__init__()
        self.embedding, self.position = nn.Embedding(50, width), nn.Parameter(torch.zeros(8, width))
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 50, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        x = x + self.attention(self.norm(x))
        return self.head(x + self.down(F.gelu(self.up(x))))


def transformer(width, seed=0, **args):
    torch.manual_seed(seed)
    return Transformer(width, **args)


def in_mup(make, width, base=BASE, seed=0, **args):
    model = make(width, seed, **args)
    parametrize(model, make(base, seed, **args))
    return model


def rms(model, name):
    return dict(model.named_parameters())[name].double().square().mean().sqrt().item()


def by_name(model, optimizer, key):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = optimizer.param_groups
    return {names[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


def optimized(model, **config):
    return build_optimizer(model, OptimConfig(**({"lr": 0.1, "weight_decay": 0.01, "decay": "all"} | config)))


def test_the_shapes_at_two_widths_tell_the_roles_of_an_mlp():
    with torch.device("meta"):
        other = mlp(BASE)
    assert roles(mlp(128), other) == {
        "0.weight": "input",
        "0.bias": "input",
        "2.weight": "hidden",
        "2.bias": "input",
        "4.weight": "output",
        "4.bias": "fixed",
    }


def test_the_roles_of_a_transformer_with_a_tied_embedding():
    assert roles(transformer(64), transformer(32)) == {
        "position": "input",
        "embedding.weight": "input",
        "norm.weight": "input",
        "norm.bias": "input",
        "attention.qkv.weight": "hidden",
        "attention.qkv.bias": "input",
        "attention.out.weight": "hidden",
        "attention.out.bias": "input",
        "up.weight": "hidden",
        "up.bias": "input",
        "down.weight": "hidden",
        "down.bias": "input",
    }
    untied = roles(transformer(64, is_tied=False), transformer(32, is_tied=False))
    assert (untied["embedding.weight"], untied["head.weight"]) == ("input", "output")


@pytest.mark.parametrize(
    ("make", "expected", "growth_of_it"),
    [
        (lambda w: nn.Conv2d(3, w, 3), "input", 4),
        (lambda w: nn.Conv2d(w, 2 * w, 3), "hidden", 4),
        (lambda w: nn.Conv2d(w, 3, 3), "output", 4),
        (lambda w: nn.Conv2d(w, w, 3, groups=4), "hidden", 4),
        (lambda w: nn.Conv2d(w, w, 3, groups=w), "input", 4),  # depthwise: fan_in is the kernel alone
        (lambda w: nn.ConvTranspose2d(3, w, 2), "input", 4),
        (lambda w: nn.ConvTranspose2d(w, 3, 2), "output", 4),
        (lambda w: nn.ConvTranspose1d(w, w, 2, groups=w), "input", 4),
        (lambda w: nn.Embedding(50, w), "input", 4),
        (lambda w: nn.LSTM(w, w), "hidden", 4),
        (lambda w: nn.GroupNorm(4, w), "input", 4),
        (lambda w: nn.MultiheadAttention(w, 2), "hidden", 4),
    ],
)
def test_each_kind_of_module_knows_its_fans(make, expected, growth_of_it):
    model, base = make(64), make(16)
    name = next(iter(dict(model.named_parameters())))
    assert roles(model, base)[name] == expected
    lr = {"hidden": 1 / growth_of_it, "input": 1.0, "output": 1.0}[expected]
    sgd_lr = {"hidden": 1.0, "input": growth_of_it, "output": growth_of_it}[expected]
    parametrize(model, base)
    assert width_scalings(model, "adam")[name].lr == lr
    assert width_scalings(model, "sgd")[name].lr == sgd_lr


def by_sampling(value, entries):
    """Within three standard errors of the base model's root mean square, of a normal distribution at most."""
    return pytest.approx(value, rel=3 / math.sqrt(2 * entries))


@pytest.mark.parametrize("m", [4, 8])
def test_the_initialisation_of_an_mlp_is_that_of_table_8(m):
    model = in_mup(mlp, BASE * m)
    uniform = 3**-0.5  # PyTorch draws weights and biases from +-1/sqrt(fan_in)
    assert rms(model, "0.weight") == by_sampling(uniform / 64**0.5, 64 * BASE)
    assert rms(model, "0.bias") == by_sampling(uniform / 64**0.5, BASE)
    assert rms(model, "2.weight") == by_sampling(uniform / (BASE * m) ** 0.5, BASE**2)
    assert rms(model, "2.bias") == by_sampling(uniform / BASE**0.5, BASE)
    assert rms(model, "4.weight") == by_sampling(uniform / BASE**0.5, 10 * BASE)
    assert rms(model, "4.bias") == by_sampling(uniform / BASE**0.5, 10)


@pytest.mark.parametrize("m", [4, 8])
def test_the_initialisation_of_a_transformer_is_that_of_table_8(m):
    model = in_mup(transformer, BASE * m)
    for name in ("attention.qkv.weight", "attention.out.weight", "up.weight", "down.weight"):
        assert rms(model, name) == by_sampling(0.02 / m**0.5, BASE**2), name
    assert rms(model, "embedding.weight") == by_sampling(0.02, 50 * BASE)


def test_the_initialisation_is_scaled_to_what_the_base_model_has_whatever_its_rule():
    def xavier(width, seed):
        model = mlp(width, seed)
        for layer in model[::2]:
            nn.init.xavier_uniform_(layer.weight)
        return model

    for make in (mlp, xavier):
        model, base = in_mup(make, 4 * BASE), make(BASE, 0)
        for name, ratio in (("0.weight", 1.0), ("2.weight", 0.5), ("4.weight", 1.0), ("2.bias", 1.0)):
            assert rms(model, name) == pytest.approx(ratio * rms(base, name), rel=1e-6)


def test_zeros_and_the_ones_of_norm_gains_stay():
    model = in_mup(transformer, 4 * BASE)
    assert torch.equal(model.norm.weight, torch.ones(4 * BASE))
    for zeros in (model.norm.bias, model.up.bias, model.attention.out.bias):
        assert not zeros.any()


def test_what_goes_into_the_output_layer_is_divided_by_m_and_its_bias_is_not():
    model, x = in_mup(mlp, 4 * BASE), torch.randn(5, 64)
    hidden = model[:4](x)
    torch.testing.assert_close(model(x), hidden @ model[4].weight.T / 4 + model[4].bias)


def test_a_tied_embedding_is_multiplied_where_it_puts_out_and_not_where_it_looks_up():
    model, tokens = in_mup(transformer, 4 * BASE), torch.arange(8)
    assert torch.equal(model.embedding(tokens), model.embedding.weight[tokens])
    x = torch.randn(3, 4 * BASE)
    torch.testing.assert_close(model.head(x), x @ model.embedding.weight.T / 4)


@pytest.mark.parametrize("m", [4, 8])
@pytest.mark.parametrize(
    ("name", "lr", "decay"),
    [
        # of hidden weights, of input weights with all biases, of output weights, of the output layer's bias
        ("adam", ("1/m", "1", "1", "1"), ("1", "1", "1", "1")),
        ("adamw", ("1/m", "1", "1", "1"), ("m", "1", "1", "1")),
        ("sgd", ("1", "m", "m", "1"), ("1", "1/m", "1/m", "1")),
    ],
)
def test_learning_rates_are_those_of_table_8_and_weight_decay_keeps_its_product_with_them(name, lr, decay, m):
    model = in_mup(mlp, BASE * m)
    optimizer = optimized(model, name=name)
    value = {"1": 1.0, "m": m, "1/m": 1 / m}
    for key, unit, table in (("lr_scale", 1.0, lr), ("lr", 0.1, lr), ("weight_decay", 0.01, decay)):
        hidden, vector, output, fixed = (unit * value[entry] for entry in table)
        expected = {"0.weight": vector, "0.bias": vector, "2.weight": hidden, "2.bias": vector}
        expected |= {"4.weight": output, "4.bias": fixed}
        assert by_name(model, optimizer, key) == pytest.approx(expected), key


@pytest.mark.parametrize(("name", "table"), [("adam", (1, 1)), ("adamw", (4, 1)), ("sgd", (1, 0.25))])
def test_where_vectors_do_not_decay_matrices_do_as_before_and_all_learn_at_the_same_rates(name, table):
    model = in_mup(mlp, 4 * BASE)
    every, matrices = optimized(model, name=name), optimized(model, name=name, decay="matrices")
    for key in ("lr", "lr_scale"):
        assert by_name(model, matrices, key) == by_name(model, every, key)
    found = by_name(model, matrices, "weight_decay")
    before = by_name(model, every, "weight_decay")
    assert (found["2.weight"], found["4.weight"]) == pytest.approx([0.01 * factor for factor in table])
    assert found == {name: 0.0 if "bias" in name else decay for name, decay in before.items()}


@pytest.mark.parametrize(("name", "expected"), [("adamw", (0.25, 1.0, 1.0)), ("sgd", (1.0, 4.0, 4.0))])
def test_learning_rates_of_a_tied_transformer(name, expected):
    model = in_mup(transformer, 4 * BASE)
    scale = by_name(model, optimized(model, name=name), "lr_scale")
    assert (scale["attention.qkv.weight"], scale["embedding.weight"], scale["norm.weight"]) == expected


def test_layers_that_grow_by_different_factors_have_their_own_m():
    class Bottleneck(nn.Sequential):
        def __init__(self, width, seed=0):
            middle = 8 * math.isqrt(width)
            super().__init__(nn.Linear(3, width), nn.Linear(width, middle), nn.Linear(middle, 2))

    model = in_mup(Bottleneck, 256, base=16)
    x = torch.randn(4, 128)
    torch.testing.assert_close(model[2](x), x @ model[2].weight.T / 4 + model[2].bias)
    assert by_name(model, optimized(model), "lr_scale")["1.weight"] == 1 / 16


@pytest.mark.parametrize("make", [mlp, transformer])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_at_the_base_width_nothing_changes_to_the_bit(make, name):
    model, standard = in_mup(make, BASE), make(BASE)
    x = torch.arange(8).expand(2, 8) if make is transformer else torch.randn(2, 64)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), standard.parameters(), strict=True))
        assert torch.equal(model(x), standard(x))
        optimizers = [optimized(one, name=name) for one in (model, standard)]
        assert [
            [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
            for optimizer in optimizers
        ][::-1] == [
            [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
            for optimizer in optimizers
        ]
        for one, optimizer in zip((model, standard), optimizers, strict=True):
            one(x).square().mean().backward()
            optimizer.step()


def test_a_standard_model_has_one_group_with_the_configs_own_numbers():
    (group,) = optimized(mlp(128), name="adamw").param_groups
    assert (group["lr"], group["lr_scale"], group["weight_decay"]) == (0.1, 1.0, 0.01)
    assert len(group["params"]) == 6


def test_frozen_parameters_are_in_no_group():
    model = in_mup(mlp, 128)
    model[2].requires_grad_(False)
    assert set(by_name(model, optimized(model), "lr")) == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_attention_logits_go_as_one_over_a_head_dimension_that_grows():
    # base head_dim 16 at scale 1/4; at head_dim 64 it is 1/4 * 16/64, where the standard way has 1/8
    assert in_mup(transformer, 128, heads=2).attention.attention_scale == pytest.approx(1 / 16)
    torch.manual_seed(0)
    model, base = Transformer(128, heads=8), Transformer(32, heads=2)
    parametrize(model, base)
    assert model.attention.attention_scale == base.attention.attention_scale == 0.25


class Readout(nn.Module):
    """Says itself what its parameters are."""

    def __init__(self, width, declared):
        super().__init__()
        self.enter, self.leave, self.declared = nn.Linear(4, width), nn.Linear(width, 1), declared

    def roles(self):
        return self.declared


def test_a_models_own_roles_beat_the_shapes():
    declared = {"leave.weight": "input", "enter.weight": "fixed"}
    model, base = Readout(64, declared), Readout(16, declared)
    assert roles(model, base) == {
        "enter.weight": "fixed",
        "enter.bias": "input",
        "leave.weight": "input",
        "leave.bias": "fixed",
    }
    parametrize(model, base)
    x = torch.randn(3, 64)
    torch.testing.assert_close(model.leave(x), x @ model.leave.weight.T + model.leave.bias)
    scale = {name: scaling.lr for name, scaling in width_scalings(model, "sgd").items()}
    assert scale == {"enter.weight": 1.0, "enter.bias": 4.0, "leave.weight": 4.0, "leave.bias": 1.0}


@pytest.mark.parametrize(
    ("declared", "pieces"),
    [
        ({"leave.wieght": "input"}, ["Readout.roles()", "'leave.wieght'", "did you mean 'leave.weight'"]),
        ({"leave.weight": "readout"}, ["calls 'leave.weight' 'readout'", "input, hidden, output, fixed"]),
        ({"enter.bias": "output"}, ["'enter.bias' of a Linear", "the weight of an nn.Linear"]),
    ],
)
def test_roles_that_cannot_be_are_refused_with_the_reason(declared, pieces):
    with pytest.raises(ModelError) as caught:
        parametrize(Readout(64, declared), Readout(16, declared))
    assert all(piece in str(caught.value) for piece in pieces), caught.value


def test_a_tied_weight_cannot_have_a_role_that_would_lose_its_multiplier():
    class Declared(Transformer):
        def roles(self):
            return {"embedding.weight": "input"}

    with pytest.raises(ModelError, match=r"'embedding\.weight', which is a tied weight"):
        roles(Declared(64), Declared(32))


def test_a_width_that_changes_the_layers_themselves_is_refused():
    with pytest.raises(ModelError, match="changes nothing but shapes"):
        roles(mlp(64), nn.Sequential(*mlp(32)[:3]))


def config(**changes):
    return ModelConfig(**({"width": 128, "parametrization": "mup", "base_width": BASE} | changes))


def test_the_config_builds_models_in_mup_and_at_the_base_width_standard_ones():
    wide = build_model(config(), (64,), 10, seed=3)
    assert set(width_scalings(wide, "adam")) == {
        f"layers.{n}.{kind}" for n in (0, 2, 4) for kind in ("weight", "bias")
    }
    assert width_scalings(wide, "adam")["layers.2.weight"].lr == 0.25
    x = torch.randn(2, 64)
    standard = build_model(ModelConfig(width=BASE), (64,), 10, seed=3)
    assert torch.equal(build_model(config(width=BASE), (64,), 10, seed=3)(x), standard(x))


def test_a_model_built_again_for_prediction_puts_out_the_same():
    trained, again = build_model(config(), (64,), 10, seed=3), build_model(config(), (64,), 10, seed=0)
    again.load_state_dict(trained.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(again(x), trained(x))


def test_mup_wants_a_base_width_and_a_model_that_has_a_width():
    with pytest.raises(ConfigError, match=r"model\.base_width, which is not set: set it to"):
        build_config(ModelConfig, {"parametrization": "mup"})
    with pytest.raises(ModelError, match=r"same shapes at model\.width=128 and at model\.base_width=32"):
        build_model(config(args={"width": 8}), (64,), 10, seed=0)


def test_optimizer_state_restored_from_a_checkpoint_keeps_each_groups_scale():
    stream, model = io.BytesIO(), in_mup(mlp, 128)
    torch.save(optimized(model, name="adamw").state_dict(), stream)
    stream.seek(0)
    restored = optimized(model, name="adamw", lr=0.7)
    restored.load_state_dict(torch.load(stream, weights_only=True))
    assert by_name(model, restored, "lr_scale")["2.weight"] == 0.25
    assert by_name(model, restored, "lr")["2.weight"] == pytest.approx(0.025)


def deep_mlp(width, seed):
    torch.manual_seed(seed)
    hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


class MeanLoss:
    """A task whose loss is a function's: of the outputs and targets of a batch that counts as one sample."""

    view, counts_terms = None, False

    def __init__(self, loss):
        self._loss = loss

    def loss(self, outputs, batch):
        return self._loss(outputs, batch.targets)


def loop_of(model, loss, optim):
    """A training loop for `update` alone, without data."""
    shard = ResidentShard(Lanes(1, 1, seed=0), None, {})
    return assemble_loop(
        model, MeanLoss(loss), shard, optim, TrainConfig(), SingleProcess(), torch.device("cpu")
    )


def exponents(make, optimizer, widths, batch):
    def loss(outputs, targets):
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    optim = OptimConfig(name=optimizer, lr=1e-3 if optimizer == "adam" else 0.1)
    records = coordinate_check(
        lambda width, seed: loop_of(make(width, seed), loss, optim), [batch], widths, seeds=(0, 1)
    )
    return growth(records)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_activations_of_an_mlp_move_alike_at_every_width_under_mup_and_not_under_the_standard(optimizer):
    draw = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(32, 64, generator=draw), torch.randint(0, 10, (32,), generator=draw), count=1)
    widths = [32, 64, 128, 256, 512, 1024]
    mup = exponents(lambda width, seed: in_mup(deep_mlp, width, 64, seed), optimizer, widths, batch)
    standard = exponents(deep_mlp, optimizer, widths, batch)
    assert max(map(abs, mup.values())) < 0.1
    assert verdict(mup).passes
    assert standard["6"] > 0.4
    assert not verdict(standard).passes


def test_activations_of_a_tied_transformer_move_alike_at_every_width_under_mup():
    draw = torch.Generator().manual_seed(0)
    batch = Batch(*(torch.randint(0, 50, (16, 8), generator=draw) for _ in range(2)), count=1)
    widths = [32, 64, 128, 256]
    mup = exponents(lambda width, seed: in_mup(transformer, width, 64, seed), "adam", widths, batch)
    assert verdict(mup).passes, verdict(mup)
    assert max(map(abs, mup.values())) < 0.2
    assert not verdict(exponents(transformer, "adam", widths, batch)).passes


SGD = OptimConfig(name="sgd", lr=0.5)


def plain_sgd(loop):
    """The loop with SGD without momentum."""
    return replace(loop, optimizer=torch.optim.SGD(loop.model.parameters(), loop.learning_rate(0)))


def test_the_coordinate_check_measures_the_sizes_and_changes_of_outputs():
    class Line(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), 2.0))
            self.width, self.constant = width, nn.Identity()

        def forward(self, x):
            return self.constant(x) * self.weight * self.width

    def loop_at(width, seed):
        # The gradient is the mean of x times the width, here the width.
        return plain_sgd(loop_of(Line(width), lambda outputs, targets: (outputs - targets).sum() / 2, SGD))

    batch = Batch(torch.tensor([-1.0, 3.0]), torch.zeros(2), count=1)
    records = coordinate_check(loop_at, [batch], widths=[1, 4], steps=2)
    of_model = [record for record in records if record.module == "model"]
    # outputs are x * width * (2 - step * width / 2), and |x| is 2 in the mean
    assert of_model[:3] == [
        Coordinate(1, 0, 0, "model", 4.0, 0.0),
        Coordinate(1, 0, 1, "model", 3.0, 1.0),
        Coordinate(1, 0, 2, "model", 2.0, 2.0),
    ]
    assert of_model[5] == Coordinate(4, 0, 2, "model", 16.0, 32.0)
    assert growth(records) == {"model": pytest.approx(2.0)}  # the constant's output never changes


def test_a_verdict_names_the_module_farthest_from_keeping_its_scale():
    assert verdict({"a": 0.1, "b": -0.2}).passes
    blown = verdict({"a": 0.1, "b": 1.0, "c": -0.6})
    assert (blown.passes, blown.module, blown.exponent) == (False, "b", 1.0)
    assert str(blown) == "training depends on the width: the output of b changes by width^1.00"
    stalled = verdict({"a": 0.1, "c": -0.6})
    assert (stalled.passes, stalled.module) == (False, "c")
    infinite = growth([Coordinate(w, 0, 1, "a", 1.0, change) for w, change in ((1, 1.0), (2, math.nan))])
    assert infinite == {"a": math.inf}
    assert not verdict(infinite).passes


def digits_loss(parametrization, width, lr):
    """Log of the training loss after 4 epochs, in the mean over two seeds."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor((data.data - data.data.mean(axis=0)) / 16, dtype=torch.float32)
    y = torch.tensor(data.target)
    total = 0.0
    for seed in (0, 1):
        made = ModelConfig(width=width, depth=3, parametrization=parametrization, base_width=32)
        model = build_model(made, (64,), 10, seed)
        optimizer = build_optimizer(model, OptimConfig(lr=lr))
        draw = torch.Generator().manual_seed(seed)
        for _ in range(4):
            for rows in torch.randperm(len(x), generator=draw).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
        with torch.no_grad():
            total += F.cross_entropy(model(x), y).log().item() / 2
    return total


@pytest.mark.long
def test_the_best_learning_rate_of_a_narrow_model_is_that_of_an_eight_times_wider_one():
    def best(parametrization, width):
        return min(range(-9, -2), key=lambda power: digits_loss(parametrization, width, 2.0**power))

    narrow = best("standard", 32)
    assert abs(best("mup", 256) - narrow) <= 1
    assert best("standard", 256) <= narrow - 2


def test_each_step_of_the_coordinate_check_trains_on_a_batch_of_its_own_and_watches_the_first():
    seen = []

    def loss(outputs, targets):
        seen.append(int(targets))
        return outputs.mean()

    def loop_at(width, seed):
        return plain_sgd(loop_of(nn.Linear(3, width), loss, SGD.model_copy(update={"lr": 0.1})))

    batches = [
        Batch(torch.full((4, 3), float(number + 1)), torch.tensor(number), count=1) for number in range(2)
    ]
    records = coordinate_check(loop_at, batches, widths=[2, 4], steps=3)
    assert seen == [0, 1, 0, 0, 1, 0]
    # By step t the output on the batch of ones has moved by 3 * dw + db, d of mean y / width: x of each batch, and 1.
    moved = [record.change for record in records if record.width == 2]
    assert moved == pytest.approx([0.0, 0.05 * 4, 0.05 * (4 + 7), 0.05 * (4 + 7 + 4)], rel=1e-4)


def test_the_noise_of_dropout_is_no_change():
    def loop_at(width, seed):
        model = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.5))
        return loop_of(model, lambda outputs, targets: outputs.sum(), OptimConfig(name="sgd", lr=1e-9))

    records = coordinate_check(loop_at, [Batch(torch.randn(8, 4), torch.zeros(8), 1)], widths=[8, 16])
    assert max(record.change for record in records) < 1e-6


def test_the_coordinate_check_clips_gradients_as_the_training_does():
    def moved(clip_norm):
        """How far the weights move in the first step, by the norm of the change of an output that sums them."""
        optim = OptimConfig(name="sgd", lr=1.0, clip_norm=clip_norm)
        records = coordinate_check(
            lambda width, seed: loop_of(nn.Linear(1, 1, bias=False), lambda y, _: y.sum(), optim),
            [Batch(torch.full((1, 1), 5.0), torch.zeros(1), count=1)],
            widths=[1, 2],
            steps=1,
        )
        return records[-1].change

    # The gradient is x = 5; Nesterov's first step is 1.9 times it, and the output moves by x times that.
    assert moved(None) == pytest.approx(1.9 * 5 * 5, rel=1e-5)
    assert moved(0.1) == pytest.approx(1.9 * 0.1 * 5, rel=1e-4)


def test_the_picture_has_a_panel_for_each_module_that_does_not_pass_on_anothers_output():
    records = [
        Coordinate(width, seed, step, module, 1.0 + step, step * width**power)
        for width in (32, 64, 128)
        for seed in (0, 1)
        for step in (0, 1, 2)
        for module, power in (("a", 0.5), ("b", 0.0), ("model", 0.5))
    ]
    exponents = growth(records)
    axes = coordinate_figure(records, exponents, "title").axes
    assert [panel.get_title() for panel in axes] == ["a: width^0.50", "b: width^0.00", "", ""]
    assert [len(panel.lines) for panel in axes] == [3, 3, 2, 2]  # a line per step; step 0 has no change
    last = axes[2].lines[-1]
    assert last.get_xydata().tolist() == [[width, 2 * width**0.5] for width in (32, 64, 128)]
    assert all((panel.get_xscale(), panel.get_yscale()) == ("log", "log") for panel in axes)
    parted = coordinate_figure(records, exponents | {"model": 0.51}, "title").axes
    assert [panel.get_title() for panel in parted[:3]][-1] == "model: width^0.51"


def detector(width, seed):
    torch.manual_seed(seed)
    return Detector((1, 32, 32), 3, width=width)


def test_activations_of_a_detector_move_alike_at_every_width_under_mup():
    from shoal.tasks.object_detection import ObjectDetection

    draw = torch.Generator().manual_seed(0)
    boxes = torch.tensor(
        [[[0.0, 2, 2, 14, 16], [2.0, 16, 8, 28, 20]], [[1.0, 8, 8, 24, 24], [0, 0, 0, 0, 0]]]
    )
    batch = Batch(torch.randn(8, 1, 32, 32, generator=draw), boxes.repeat(4, 1, 1), count=12)
    task, optim = ObjectDetection(("a", "b", "c"), (32, 32)), OptimConfig(name="adam", lr=1e-3)

    def loop(width, seed):
        model, shard = in_mup(detector, width, 16, seed), ResidentShard(Lanes(1, 1, seed=0), None, {})
        return assemble_loop(model, task, shard, optim, TrainConfig(), SingleProcess(), torch.device("cpu"))

    found = growth(coordinate_check(loop, [batch], [16, 32, 64], seeds=(0,)))
    assert verdict(found).passes, verdict(found)
