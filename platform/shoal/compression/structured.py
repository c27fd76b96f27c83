"""Structured pruning: channels and hidden units leave, with everything that depends on them.

Which tensors belong together is found by torch-pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any
Structural Pruning"). What a model takes and returns stays. Depends on layers; independent of data and training.
"""

import contextlib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.errors import ModelError, UserError
from shoal.models.bert import BERT
from shoal.models.cpu_kernels import use_torch_linear
from shoal.models.gpt import GPT
from shoal.models.layer_sizes import CONVOLUTIONS
from shoal.models.mlp import MLP
from shoal.models.resnet import PaddedIdentity, ResidualBlock, ResNet
from shoal.models.transformer import FeedForward

PACKAGE = "torch_pruning"
# Numbers of channels that vector units divide evenly; the first that fits counts. At odd widths kernels are up to
# three times slower than unpruned (torch-pruning's issue 38).
FAST_WIDTHS = (16, 8, 4)


@dataclass(frozen=True)
class _Part:
    """A module that is pruned by itself.

    Attributes:
        example: what it takes.
        kept: layers whose outputs stay.
        planned: of some layers, how many channels stay, and of how many groups each as many.
    """

    module: nn.Module
    example: Tensor
    kept: Sequence[nn.Module]
    planned: Mapping[nn.Module, tuple[int, int]] = field(default_factory=dict)


def check_installed() -> None:
    """Refuse a Python without the package.

    Raises:
        UserError: with the command that installs it.
    """
    try:
        importlib.import_module(PACKAGE)
    except ImportError as error:
        raise UserError(
            f"compress.prune with compress.method=structured needs the package torch-pruning ({error}): "
            "pip install 'shoal[compress]', or set compress.method=magnitude"
        ) from None


def check_model(model: nn.Module, name: str) -> None:
    """Refuse a model whose layers cannot be pruned.

    Raises:
        ModelError: with the models that can.
    """
    if not isinstance(model, MLP | ResNet | GPT | BERT):
        raise ModelError(
            f"model.name='{name}' cannot be pruned by channels: mlp, resnet, gpt and bert can; set "
            "compress.method=magnitude, or compress.quantize=int8 alone"
        )


def prune(model: nn.Module, ratio: float, example: Tensor) -> None:
    """Remove channels and hidden units of the least importance, in place.

    The importance of a channel is the L2 norm of all weights that leave with it, relative to the mean of its layer.

    Args:
        ratio: share of each layer's channels that leaves; a little less where the rest is rounded to a fast width.
        example: a batch of what the model takes.

    Raises:
        ModelError: no layer is wide enough.
    """
    before = sum(parameter.numel() for parameter in model.parameters())
    use_torch_linear(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # the dependency graph is read from what autograd records
    for part in _parts(model, ratio, example):
        _prune_part(part, ratio)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.fit_shortcut()
    if sum(parameter.numel() for parameter in model.parameters()) == before:
        raise ModelError(
            f"compress.prune={ratio} removes nothing: no layer has so many channels that {1 - ratio:.0%} of them, "
            "rounded to a fast width, are fewer; prune a wider model, or raise compress.prune"
        )


def width_after(width: int, ratio: float, groups: int = 1) -> int:
    """Return how many of a layer's channels stay: a multiple of 16 where so many stay, else of 8, 4 or 1.

    Args:
        groups: of a norm, of which each loses as many channels as the others.
    """
    kept = width * (1 - ratio)
    steps = (math.lcm(fast, groups) for fast in FAST_WIDTHS)
    step = next((step for step in steps if step <= kept), groups)
    return min(width, max(1, math.ceil(kept / step - 1e-9)) * step)


def _parts(model: nn.Module, ratio: float, example: Tensor) -> Iterator[_Part]:
    if isinstance(model, MLP):
        yield _Part(model, example, [model.layers[-1]])
    elif isinstance(model, ResNet):
        with _padding_as_layers(model) as paddings:
            kept, planned = _plan_of_stream(model, ratio, paddings)
            yield _Part(model, example, [model.head, *kept], planned)
    elif isinstance(model, GPT | BERT):
        for block in model.modules():
            if isinstance(block, FeedForward):
                hidden = torch.zeros(1, 2, block.up.in_features)
                yield _Part(block, hidden, [block.down])


class _PaddingAsLayer(nn.Module):
    """A shortcut without parameters in a form whose dependencies can be read: zeros are the channels of a layer."""

    def __init__(self, shortcut: PaddedIdentity, channels: int) -> None:
        super().__init__()
        self.stride = shortcut.stride
        self.zeros = nn.Conv2d(channels, shortcut.extra, 1, shortcut.stride, bias=False)
        nn.init.zeros_(self.zeros.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.max_pool2d(x, 1, self.stride), self.zeros(x)], dim=1)


@contextlib.contextmanager
def _padding_as_layers(model: ResNet) -> Iterator[list[nn.Conv2d]]:
    """Replace shortcuts that pad channels while a model is pruned; yield the layers that stand for the zeros."""
    padded = [
        block
        for block in model.modules()
        if isinstance(block, ResidualBlock) and isinstance(block.shortcut, PaddedIdentity)
    ]
    before = [block.shortcut for block in padded]
    made = []
    for block in padded:
        channels = _convolutions(block.branch)[0].in_channels
        block.shortcut = _PaddingAsLayer(block.shortcut, channels)  # type: ignore[arg-type]
        made.append(block.shortcut.zeros)
    yield made
    for block, shortcut in zip(padded, before, strict=True):
        block.shortcut = shortcut


def _plan_of_stream(
    model: ResNet, ratio: float, paddings: Sequence[nn.Conv2d]
) -> tuple[list[nn.Module], dict[nn.Module, tuple[int, int]]]:
    """Return which layers keep their channels and what others lose, where shortcuts pad the residual stream.

    There a channel of a stage is one of all later stages too. The channels that each stage adds lose the same share, so
    that norm groups lose as many of theirs.
    """
    if not paddings:
        return [], {}
    stem = _convolutions(model.stem)[-1]
    writers = [stem, *(_convolutions(branch)[-1] for branch in _branches(model))]
    width, norms = stem.out_channels, [_norms(part)[-1] for part in (model.stem, *_branches(model))]
    groups = math.lcm(*(norm.num_groups for norm in norms))
    if width % groups or any(layer.out_channels % width for layer in paddings):
        return list(writers), {}
    kept = width_after(width, ratio, groups)
    planned: dict[nn.Module, tuple[int, int]] = {stem: (kept, groups)}
    for layer in paddings:
        times = layer.out_channels // width
        planned[layer] = (kept * times, groups * times)
    return [], planned


def _branches(model: ResNet) -> list[nn.Module]:
    return [block.branch for block in model.modules() if isinstance(block, ResidualBlock)]


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def _norms(module: nn.Module) -> list[nn.GroupNorm]:
    return [layer for layer in module.modules() if isinstance(layer, nn.GroupNorm)]


def _prune_part(part: _Part, ratio: float) -> None:
    import torch_pruning

    layers = [nn.Linear, *CONVOLUTIONS]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(part.module, example_inputs=part.example)
    for group in graph.get_all_groups(ignored_layers=list(part.kept), root_module_types=layers):
        root = group[0].dep
        width, groups = graph.get_out_channels(root.target.module), _norm_groups(group)
        kept, groups = part.planned.get(root.target.module, (width_after(width, ratio, groups), groups))
        leaving = _least(importance(group), width - kept, groups)
        if leaving:
            graph.get_pruning_group(root.target.module, root.handler, leaving).prune()


def _norm_groups(group: Any) -> int:
    """Return the number of norm groups that divide the channels of layers that are pruned together."""
    modules = (dependency.target.module for dependency, _ in group)
    return math.lcm(*(module.num_groups for module in modules if isinstance(module, nn.GroupNorm)))


def _least(scores: Tensor, count: int, groups: int) -> list[int]:
    """Return the places of so many channels of the lowest scores [channels], as many of each group."""
    ranked = scores.view(groups, -1).argsort(dim=1)[:, : count // groups]
    starts = torch.arange(groups)[:, None] * (len(scores) // groups)
    return sorted((ranked + starts).flatten().tolist())
