import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.errors import ModelError
from shoal.models.config import ModelConfig
from shoal.models.convolution import group_norm
from shoal.models.inception import Inception
from shoal.models.registry import build_model
from shoal.models.resnet import ResNet
from shoal.models.size import measure_size

SMALL = [(ResNet, {"width": 16, "depth": 8}), (ResNet, {"width": 8, "depth": 50}), (Inception, {"width": 8})]


def on_meta(builder, *args, **kwargs):
    """Build without memory: shapes and counts, no numbers."""
    with torch.device("meta"):
        return builder(*args, **kwargs)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def seeded(builder, inputs, outputs, **kwargs):
    torch.manual_seed(0)
    return builder(inputs, outputs, **kwargs)


def block_shapes(model, inputs):
    """The (channels, height, width) that each block returns."""
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda *call: shapes.append(tuple(call[-1].shape[1:])))
    model(torch.zeros(1, *inputs, device=next(model.parameters()).device))
    return shapes


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_resnets_for_imagenet_have_the_published_number_of_parameters(depth, published):
    assert count(on_meta(ResNet, (3, 224, 224), 1000, depth=depth)) == published


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")]
)
def test_resnets_for_cifar_have_the_number_of_parameters_of_table_6(depth, millions):
    found = count(on_meta(ResNet, (3, 32, 32), 10, width=16, depth=depth)) / 1e6
    assert f"{found:.{len(millions) - 2}f}" == millions


def test_resnet_18_costs_the_flops_of_table_1():
    """1.8e9 multiply-adds."""
    model = on_meta(ResNet, (3, 224, 224), 1000)
    flops = measure_size(model, torch.zeros(1, 3, 224, 224, device="meta")).flops_per_sample
    assert flops / 2 == pytest.approx(1.8e9, rel=0.02)


@pytest.mark.parametrize(("depth", "blocks", "expansion"), [(18, (2, 2, 2, 2), 1), (50, (3, 4, 6, 3), 4)])
def test_the_stages_of_resnets_for_imagenet_have_the_shapes_of_table_1(depth, blocks, expansion):
    inputs = (3, 224, 224)
    expected = [
        (64 * expansion << stage, 56 >> stage, 56 >> stage)
        for stage, number in enumerate(blocks)
        for _ in range(number)
    ]
    assert block_shapes(on_meta(ResNet, inputs, 1000, depth=depth), inputs) == expected


def test_small_images_keep_their_size_up_to_the_second_stage():
    small = on_meta(ResNet, (3, 32, 32), 10, depth=14, width=16)
    assert block_shapes(small, (3, 32, 32)) == [(16, 32, 32)] * 2 + [(32, 16, 16)] * 2 + [(64, 8, 8)] * 2
    deep = on_meta(ResNet, (3, 63, 63), 10, depth=18)
    assert block_shapes(deep, (3, 63, 63))[::2] == [(64, 63, 63), (128, 32, 32), (256, 16, 16), (512, 8, 8)]


def test_inception_halves_the_image_every_second_block_while_it_is_larger_than_4():
    model = on_meta(Inception, (3, 32, 32), 10, width=8, depth=9)
    assert [shape[1:] for shape in block_shapes(model, (3, 32, 32))] == [
        (32, 32), (32, 32), (16, 16), (16, 16), (8, 8), (8, 8), (4, 4), (4, 4), (4, 4)
    ]  # fmt: skip
    large = on_meta(Inception, (3, 224, 224), 10, width=8, depth=3)
    assert block_shapes(large, (3, 224, 224)) == [(32, 56, 56), (32, 56, 56), (32, 28, 28)]


def test_an_inception_block_puts_its_four_branches_side_by_side():
    model = seeded(Inception, (3, 16, 16), 10, width=8, depth=1)
    block = model.blocks[0]
    x = torch.randn(2, 8, 16, 16)
    whole, (one, three, five, pooled) = block(x), block.branches
    pool_first = F.relu(pooled[1](F.max_pool2d(x, 3, stride=1, padding=1)))
    for place, branch in enumerate([F.relu(one(x)), F.relu(three(x)), F.relu(five(x)), pool_first]):
        assert torch.equal(whole[:, 8 * place : 8 * place + 8], branch)
    kernels = [layer.kernel_size for layer in block.branches.modules() if isinstance(layer, nn.Conv2d)]
    assert kernels == [(1, 1), (1, 1), (3, 3), (1, 1), (5, 5), (1, 1)]


@pytest.mark.parametrize(("builder", "kwargs"), SMALL)
@pytest.mark.parametrize("inputs", [(1, 8, 8), (3, 32, 32), (3, 20, 33)])
def test_images_of_any_size_come_out_as_one_row_of_outputs_each(builder, kwargs, inputs):
    model = on_meta(builder, inputs, 7, **kwargs)
    assert model(torch.zeros(5, *inputs, device="meta")).shape == (5, 7)
    assert isinstance(model.head, nn.Linear)
    assert model.head.out_features == 7


@pytest.mark.parametrize(("builder", "kwargs"), SMALL)
def test_a_samples_output_does_not_depend_on_what_else_is_in_the_batch(builder, kwargs):
    model, x = seeded(builder, (3, 16, 16), 5, **kwargs), torch.randn(6, 3, 16, 16)
    alone = model(x[2:3])
    x[:2] *= 100
    torch.testing.assert_close(model(x)[2:3], alone, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


@pytest.mark.parametrize(("builder", "kwargs"), SMALL)
def test_gradients_reach_every_parameter_once_the_branches_gain_is_not_zero(builder, kwargs):
    model = seeded(builder, (3, 16, 16), 5, **kwargs)
    for norm in (layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)):
        nn.init.ones_(norm.weight)
    F.cross_entropy(model(torch.randn(8, 3, 16, 16)), torch.arange(8) % 5).backward()
    assert [name for name, weight in model.named_parameters() if not weight.grad.abs().max() > 0] == []


@pytest.mark.parametrize(("builder", "kwargs"), SMALL)
def test_twenty_steps_on_a_tiny_task_more_than_halve_the_loss(builder, kwargs):
    model = seeded(builder, (1, 8, 8), 2, **kwargs)
    targets = torch.arange(32) % 2
    images = torch.randn(32, 1, 8, 8)
    images[:, 0, 2:5, 2:5] += targets[:, None, None]  # a square that is there or not
    # Branches begin at a gain of zero, which Adam moves by lr a step: at 3e-3, BatchNorm or not, 20 are too few.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_fresh_residual_block_is_the_relu_of_its_shortcut():
    model = seeded(ResNet, (3, 16, 16), 5, width=8, depth=8)
    x = torch.randn(2, 8, 16, 16)
    first, second = model.blocks[0](x), model.blocks[1](x)
    assert torch.equal(first, x.relu())
    assert torch.equal(second[:, :8], x[:, :, ::2, ::2].relu())
    assert torch.equal(second[:, 8:], torch.zeros(2, 8, 8, 8))


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(64, 4), (16, 1), (24, 1), (8, 1), (1, 1), (100, 5), (34, 2), (101, 1), (2048, 128)],
)
def test_groups_hold_at_least_sixteen_channels_where_there_are_as_many_and_divide_all_of_them(
    channels, groups
):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("depth", [0, 1, 2, 7, 17, 101])
def test_a_depth_that_no_resnet_has_is_refused_with_those_there_are(depth):
    with pytest.raises(
        ModelError, match=rf"model.depth={depth} .* 18, 34 or 50.*6n \+ 2 \(8, 14, 20, 26, 32"
    ):
        ResNet((3, 32, 32), 10, depth=depth)


def test_inception_without_a_block_is_refused():
    with pytest.raises(ModelError, match=r"model\.depth=0 leaves no block"):
        Inception((3, 32, 32), 10, depth=0)


@pytest.mark.parametrize("name", ["resnet", "inception"])
@pytest.mark.parametrize("shape", [(64,), (8, 8)])
def test_rows_that_are_no_images_are_refused_with_the_key_that_makes_them_images(name, shape):
    with pytest.raises(
        ModelError, match=r"\(channels, height, width\).*set data.shape=\[channels, height, wid"
    ):
        build_model(ModelConfig(name=name, width=8, depth=8), shape, 10, seed=0)


@pytest.mark.parametrize(("name", "depth"), [("resnet", 8), ("inception", 2)])
def test_image_models_are_built_by_name(name, depth):
    model = build_model(ModelConfig(name=name, width=8, depth=depth), (1, 8, 8), 10, seed=0)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
