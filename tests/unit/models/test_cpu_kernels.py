"""Linear layers by oneDNN are nn.Linear in all but speed: values, gradients, derivatives of those, names, copies."""

import copy
import time
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from shoal.models import cpu_kernels
from shoal.models.cpu_kernels import LEAST_WORK, OneDNNLinear, is_faster, use_onednn

ROWS, INPUTS, OUTPUTS = 256, 384, 512
assert ROWS * INPUTS * OUTPUTS >= LEAST_WORK


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any CPU: where MKL is as fast, oneDNN is as right."""
    monkeypatch.setattr(cpu_kernels, "is_faster", lambda: True)


@pytest.fixture
def pair() -> tuple[nn.Linear, nn.Linear]:
    """A layer, and its copy that multiplies by oneDNN."""
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS)
    return layer, changed(layer)


def changed(layer: nn.Linear) -> nn.Linear:
    made = copy.deepcopy(layer)
    use_onednn(made)
    assert type(made) is OneDNNLinear
    return made


def gradients(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    y = layer(x)
    torch.manual_seed(1)
    found = torch.autograd.grad(y, [x, *layer.parameters()], torch.randn_like(y))
    return [y, *found]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(
    "shape", [(ROWS, INPUTS), (8, ROWS // 8, INPUTS), (2, 4, ROWS // 8, INPUTS)], ids=["2d", "3d", "4d"]
)
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_values_and_gradients_are_those_of_linear(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=has_bias)
    x = torch.randn(shape, requires_grad=True)
    for ours, theirs in zip(gradients(changed(layer), x), gradients(layer, x), strict=True):
        assert_close(ours, theirs)


def test_twice_the_same_is_bit_for_bit_the_same(pair: tuple[nn.Linear, nn.Linear]) -> None:
    x = torch.randn(ROWS, INPUTS, requires_grad=True)
    for one, other in zip(gradients(pair[1], x), gradients(pair[1], x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(INPUTS, ROWS).t(),
        torch.randn(1, INPUTS).expand(ROWS, INPUTS),
        torch.randn(ROWS, 2, INPUTS).transpose(0, 1),
        torch.randn(4, 64, 2 * INPUTS)[..., ::2],
    ],
    ids=["transposed", "expanded", "permuted", "strided"],
)
def test_any_memory_layout_will_do(pair: tuple[nn.Linear, nn.Linear], x: Tensor) -> None:
    def summed(layer: nn.Linear) -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y.sum(), list(layer.parameters()))]  # an expanded gradient

    for ours, theirs in zip(summed(pair[1]), summed(pair[0]), strict=True):
        assert_close(ours, theirs)


def test_gradients_are_differentiable_themselves(pair: tuple[nn.Linear, nn.Linear]) -> None:
    def penalty(layer: nn.Linear) -> Tensor:
        x = torch.ones(ROWS, INPUTS, requires_grad=True)
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), layer.weight)[0]

    assert_close(penalty(pair[1]), penalty(pair[0]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_it_can_be_mapped_over(pair: tuple[nn.Linear, nn.Linear]) -> None:
    x = torch.randn(3, ROWS, INPUTS)
    assert_close(torch.func.vmap(pair[1])(x), pair[0](x))


def test_what_it_is_not_for_is_left_to_torch(pair: tuple[nn.Linear, nn.Linear]) -> None:
    layer, ours = pair
    one, few = torch.randn(INPUTS), torch.randn(2, INPUTS)
    assert torch.equal(ours(one), layer(one))
    assert torch.equal(ours(few), layer(few))
    many = torch.randn(ROWS, INPUTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(many).dtype == torch.bfloat16
    assert torch.equal(ours.double()(many.double()), layer.double()(many.double()))
    with torch.device("meta"):
        assert OneDNNLinear(INPUTS, OUTPUTS)(torch.empty(ROWS, INPUTS)).is_meta


def test_a_model_keeps_its_names_its_ties_and_its_special_layers() -> None:
    class Special(nn.Linear):
        pass

    model = nn.ModuleDict({"one": nn.Linear(8, 8), "tied": nn.Linear(8, 8), "special": Special(8, 8)})
    model["tied"].weight = model["one"].weight
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    use_onednn(model)
    assert [type(layer) for layer in model.values()] == [OneDNNLinear, OneDNNLinear, Special]
    assert model["tied"].weight is model["one"].weight
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied["one"].weight.zero_()
    assert model["one"].weight.abs().sum() > 0
    assert copied["one"](torch.ones(8)).equal(copied["one"].bias)


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "is_faster", lambda: False)
    layer = nn.Linear(8, 8)
    use_onednn(layer)
    assert type(layer) is nn.Linear


@pytest.mark.skipif(not is_faster(), reason="this CPU is no AMD one with AVX-512")
def test_where_it_is_taken_it_is_faster_or_as_fast() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(512, 512)
    ours, x = changed(layer), torch.randn(1024, 512, requires_grad=True)

    def seconds(tried: nn.Linear) -> float:
        since = time.perf_counter()
        gradients(tried, x)
        return time.perf_counter() - since

    ratios = [seconds(layer) / seconds(ours) for _ in range(15)]
    # Of AMD's, Zen 5 alone has this instruction, and units of 512 bits: 1.9 on a quiet machine, 1.0 on older ones.
    is_wide = torch.cpu.get_capabilities().get("avx512_vp2intersect")
    assert median(ratios) > (1.2 if is_wide else 0.85)
