"""Activation checkpointing: less memory and the same bits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shoal.errors import ModelError
from shoal.models.gpt import GPT
from shoal.models.resnet import ResNet
from shoal.training.activation_checkpointing import checkpoint_blocks
from training_run import assert_same, mlp, saved_bytes


def gpt(checkpoints, depth=3):
    torch.manual_seed(0)
    model = GPT((16,), 50, width=32, depth=depth, dropout=0.2)
    if checkpoints:
        checkpoint_blocks(model)
    return model


def resnet(checkpoints):
    torch.manual_seed(0)
    model = ResNet((3, 8, 8), 5, width=8, depth=8)
    if checkpoints:
        checkpoint_blocks(model)
    return model


class Normed(nn.Module):
    """Blocks with running statistics, which a second forward pass would move again."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(self._block() for _ in range(3)))
        self.leave = nn.Linear(6, 5)

    def _block(self):
        return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        return self.leave(self.blocks(x))


def normed(checkpoints):
    model = Normed()
    if checkpoints:
        checkpoint_blocks(model)
    return model


def steps(model, inputs, classes, count=3):
    """Losses of a few steps, and the random number that comes after them."""
    torch.manual_seed(2)
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(count):
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = F.cross_entropy(outputs.flatten(0, -2), torch.arange(outputs[..., 0].numel()) % classes)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.rand(()).item()


TOKENS = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NUMBERS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("build", "inputs", "classes"),
    [(gpt, TOKENS, 50), (resnet, IMAGES, 5), (normed, NUMBERS, 5)],
    ids=["gpt", "resnet", "normed"],
)
def test_computing_activations_again_changes_no_bit_of_losses_weights_statistics_and_random_numbers(
    build, inputs, classes
):
    kept, again = build(False), build(True)
    assert steps(kept, inputs, classes) == steps(again, inputs, classes)
    assert list(kept.state_dict()) == list(again.state_dict())
    assert_same(kept, again)


def test_computing_activations_again_takes_less_memory_the_deeper_the_model():
    def peak(checkpoints, depth):
        model = gpt(checkpoints, depth)
        with saved_bytes() as most:
            steps(model, TOKENS, 50, count=1)
        return most[0]

    deeper = peak(True, 12) - peak(True, 4), peak(False, 12) - peak(False, 4)
    assert deeper[0] < 0.1 * deeper[1]


def test_a_model_without_blocks_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match=r"MLP has no `blocks`.*name its repeated parts so"):
        checkpoint_blocks(mlp())


@pytest.mark.long
def test_a_compiled_model_moves_statistics_once_when_it_computes_activations_again():
    torch._dynamo.reset()
    kept, again = normed(False).train(), normed(True).train()
    again.forward = torch.compile(again.forward, backend="aot_eager_decomp_partition")
    for model in (kept, again):
        torch.manual_seed(0)
        model(NUMBERS).sum().backward()
    for norm, other in zip(kept.modules(), again.modules(), strict=True):
        if isinstance(norm, nn.BatchNorm1d):
            assert other.num_batches_tracked == norm.num_batches_tracked == 1
    torch.testing.assert_close(again.blocks[0][1].running_mean, kept.blocks[0][1].running_mean)
