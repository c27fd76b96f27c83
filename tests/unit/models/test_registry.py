import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from shoal.data.random_state import seed_random_states
from shoal.errors import ModelError, UserError
from shoal.models.bert import BERT
from shoal.models.config import ModelConfig
from shoal.models.flops import FlopCounter
from shoal.models.gpt import GPT
from shoal.models.mlp import MLP
from shoal.models.registry import build_model, find_builder
from shoal.models.size import measure_size, readable

USER = """
import random
import numpy as np
import torch
from torch import nn

def asks_for_all(inputs, outputs, width, depth, dropout=0.0):
    model = nn.Linear(inputs, outputs)
    model.asked = (inputs, outputs, width, depth, dropout)
    return model

def asks_for_none():
    return nn.Linear(4, 3)

def asks_for_width(width, *, scale=1.0):
    model = nn.Linear(4, 3)
    model.asked = (width, scale)
    return model

class Net(nn.Module):
    def __init__(self, inputs, **rest):
        super().__init__()
        self.inputs, self.rest = inputs, rest

def returns_a_string(width):
    return "a model"

def raises():
    raise RuntimeError("no such file: weights.pt")

def random_weights():
    return nn.Linear(4, 3)

def numpy_weights():
    model = nn.Linear(4, 3)
    model.weight.data = torch.from_numpy(np.random.normal(size=(3, 4)).astype("float32"))
    return model

def python_weights():
    model = nn.Linear(4, 3)
    model.weight.data.fill_(random.random())
    return model

not_callable = 3
"""


@pytest.fixture
def mine(user_module):
    return user_module(USER)


def sizes(model):
    return [
        (layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, nn.Linear)
    ]


def make(name="mlp", inputs=(4,), outputs=3, seed=0, **config):
    return build_model(ModelConfig(name=name, **config), inputs, outputs, seed)


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_reference_is_1000_128_64_10():
    model = make(inputs=(1000,), outputs=10)
    assert sizes(model) == [(1000, 128), (128, 64), (64, 10)]
    size = measure_size(model, torch.zeros(1, 1000))
    assert size.parameters == 1000 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert size.bytes == 4 * size.parameters
    assert size.flops_per_sample == 2 * (1000 * 128 + 128 * 64 + 64 * 10)


@pytest.mark.parametrize(
    ("width", "depth", "expected"),
    [
        (128, 0, [(4, 3)]),
        (8, 1, [(4, 8), (8, 3)]),
        (8, 3, [(4, 8), (8, 4), (4, 2), (2, 3)]),
        (2, 4, [(4, 2), (2, 1), (1, 1), (1, 1), (1, 3)]),
    ],
)
def test_each_hidden_layer_of_the_mlp_has_half_the_width_of_the_one_before(width, depth, expected):
    assert sizes(make(width=width, depth=depth)) == expected


def test_the_mlp_flattens_samples_of_more_dimensions():
    model = make(inputs=(2, 3, 4))
    assert model(torch.zeros(5, 2, 3, 4)).shape == (5, 3)


def test_dropout_acts_in_training_only():
    model, x = make(args={"dropout": 0.5}), torch.ones(64, 4)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_weights_are_a_function_of_the_seed_alone(mine):
    builders = ("random_weights", "numpy_weights", "python_weights")
    for name in ("mlp", *(f"{mine}:{builder}" for builder in builders)):
        seed_random_states(1)
        first = make(name, seed=7)
        seed_random_states(2)
        assert same(first, make(name, seed=7))
        assert not same(first, make(name, seed=8))


def test_building_leaves_the_callers_random_numbers_alone():
    seed_random_states(1)
    expected = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]
    seed_random_states(1)
    make(seed=7)
    assert [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()] == expected


def test_a_users_builder_is_given_only_what_its_signature_names(mine):
    assert make(f"{mine}:asks_for_all", width=16, depth=5).asked == (4, 3, 16, 5, 0.0)
    assert make(f"{mine}:asks_for_width", width=16).asked == (16, 1.0)
    assert make(f"{mine}:Net").rest == {
        "outputs": 3,
        "vocabulary": 0,
        "task": "",
        "width": 128,
        "depth": 2,
    }
    assert sizes(make(f"{mine}:asks_for_none")) == [(4, 3)]


def test_a_users_builder_gets_the_whole_shape_of_samples_with_more_dimensions(mine):
    assert make(f"{mine}:Net", inputs=(3, 8, 8)).inputs == (3, 8, 8)


def test_further_arguments_reach_the_builder_and_beat_what_is_offered(mine):
    assert make(f"{mine}:asks_for_all", args={"dropout": 0.5, "width": 2}).asked == (4, 3, 2, 2, 0.5)


@pytest.mark.parametrize(
    ("name", "args", "kind", "pieces"),
    [
        ("mpl", {}, ModelError, ["model.name='mpl' is not known", "did you mean 'mlp'"]),
        ("shop.Residual", {}, ModelError, ["did you mean 'shop:Residual'"]),
        ("mlp", {"dropuot": 1}, ModelError, ["takes no 'dropuot'", "did you mean 'dropout'"]),
        ("{}:asks_for_width", {"scal": 1}, ModelError, ["takes no 'scal'", "did you mean 'scale'"]),
        ("{}:asks_for_non", {}, UserError, ["has no 'asks_for_non'", "did you mean 'asks_for_none'"]),
        ("{}:not_callable", {}, UserError, ["is a int, which cannot be called"]),
        ("{}:returns_a_string", {}, ModelError, ["returned a str", "torch.nn.Module"]),
        ("{}:raises", {}, ModelError, ["raised RuntimeError: no such file: weights.pt"]),
    ],
)
def test_a_builder_that_cannot_be_used_is_refused_with_the_reason(mine, name, args, kind, pieces):
    with pytest.raises(kind) as caught:
        make(name.format(mine), args=args)
    assert all(piece in str(caught.value) for piece in pieces), str(caught.value)


def test_finding_a_builder_builds_nothing(mine):
    assert find_builder("mlp") is MLP
    assert find_builder(f"{mine}:raises").__name__ == "raises"


def test_measuring_counts_buffers_in_bytes_and_leaves_model_and_mode_as_they_were():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size = measure_size(model, torch.ones(1, 4))
    assert size.flops_per_sample == 2 * (4 * 8 + 8 * 3)
    assert size.bytes == 4 * size.parameters + 4 * 8 * 2 + 8
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_convolution_counts_its_multiply_adds():
    model = nn.Conv2d(3, 8, kernel_size=3, bias=False)
    assert measure_size(model, torch.zeros(1, 3, 10, 10)).flops_per_sample == 2 * (8 * 8) * 8 * 3 * 9


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_counts_its_two_products_on_a_cpu_too(is_causal):
    query = torch.zeros(1, 2, 7, 8)
    with torch.no_grad(), FlopCounter() as counter:
        nn.functional.scaled_dot_product_attention(query, query, query, is_causal=is_causal)
    assert counter.total == 2 * (2 * 2 * 7 * 7 * 8)


def test_vocabulary_and_task_reach_a_builder_that_names_them(mine):
    model = build_model(ModelConfig(name=f"{mine}:Net"), (4,), 9, 0, vocabulary=9, task="masked_lm")
    assert (model.rest["vocabulary"], model.rest["task"]) == (9, "masked_lm")


@pytest.mark.parametrize(("name", "kind"), [("gpt", GPT), ("bert", BERT)])
def test_a_transformer_is_built_by_its_name(name, kind):
    config = ModelConfig(name=name, width=8, depth=1)
    model = build_model(config, (6,), 9, 0, vocabulary=9, task="masked_lm")
    assert isinstance(model, kind)
    assert model(torch.ones(2, 6, dtype=torch.int64)).shape == (2, 6, 9)


def test_a_model_that_does_not_take_the_sample_is_refused_with_its_shape():
    with pytest.raises(ModelError, match=r"does not take inputs of shape \(1, 5\)"):
        measure_size(nn.Linear(4, 3), torch.zeros(1, 5))


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 "), (999, "999 "), (1000, "1.0 k"), (137354, "137.4 k"), (2.5e9, "2.5 G")]
)
def test_large_numbers_are_written_for_people(number, text):
    assert readable(number) == text


@pytest.mark.long
def test_operations_are_counted_as_pytorchs_own_counter_counts_them_and_without_the_compiler():
    code = """
import sys, torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from shoal.models.flops import FlopCounter

layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
cases = [
    (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)), (2, 3, 8, 8)),
    (layer, (2, 7, 16)),
]
counts = []
for model, shape in cases:
    with torch.no_grad(), FlopCounter() as counter:
        model(torch.zeros(shape))
    counts.append(counter.total)
assert "torch._dynamo" not in sys.modules
for (model, shape), count in zip(cases, counts):
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        model(torch.zeros(shape))
    assert count == theirs.get_total_flops() > 0, (model, count, theirs.get_total_flops())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_depth_a_model_has_its_builders_own_and_two_layers_where_it_has_none():
    found = build_model(ModelConfig(name="resnet", width=8), (1, 8, 8), 3, 0)
    assert (
        sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in found.modules())
        == 17
    )
    assert len(build_model(ModelConfig(name="gpt", width=32), (8,), 16, 0, vocabulary=16).blocks) == 4
    assert (
        sum(isinstance(module, nn.Linear) for module in build_model(ModelConfig(), (8,), 3, 0).modules()) == 3
    )


def test_lazy_layers_have_their_shapes_and_the_seeds_weights_before_the_first_row():
    def lazy(outputs):
        return nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, outputs))

    one, other = (build_model(ModelConfig(), (4,), 3, seed=7, builder=lazy) for _ in range(2))
    assert one[0].weight.shape == (5, 4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert one.training
    with pytest.raises(ModelError, match=r"lazy layers, and does not take a sample of shape \(1, 4\)"):
        build_model(ModelConfig(), (4,), 3, seed=7, builder=lambda outputs: nn.LazyConv2d(outputs, 1))
