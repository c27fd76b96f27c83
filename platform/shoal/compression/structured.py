"""Structured pruning: channels and hidden units leave, with everything that depends on them.

Which tensors belong together is found by torch-pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any
Structural Pruning"). What a model takes and returns stays. Depends on layers; independent of data and training.
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ModelError, UserError
from shoal.models.bert import BERT
from shoal.models.cpu_kernels import use_torch_linear
from shoal.models.gpt import GPT
from shoal.models.layer_sizes import CONVOLUTIONS
from shoal.models.mlp import MLP
from shoal.models.resnet import PaddedIdentity, ResNet

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
    """

    module: nn.Module
    example: Tensor
    kept: Sequence[nn.Module]


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
    for part in _parts(model, example):
        _prune_part(part, ratio)
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


def _parts(model: nn.Module, example: Tensor) -> Iterator[_Part]:
    if isinstance(model, MLP):
        yield _Part(model, example, [model.layers[-1]])
    elif isinstance(model, ResNet):
        yield _Part(model, example, [model.head, *_writers_of_padded_stream(model)])
    elif isinstance(model, GPT | BERT):
        for block in model.blocks:
            hidden = torch.zeros(1, 2, block.feed_forward.up.in_features)  # type: ignore[union-attr, call-overload]
            yield _Part(block.feed_forward, hidden, [block.feed_forward.down])  # type: ignore[union-attr, arg-type, list-item]


def _writers_of_padded_stream(model: ResNet) -> list[nn.Module]:
    """Return the convolutions that write the residual stream, where shortcuts without parameters pad it.

    Such a shortcut names its channels by their places: they all stay, and those inside the branches are pruned.
    """
    if not any(isinstance(module, PaddedIdentity) for module in model.modules()):
        return []
    branches = [block.branch for block in model.blocks]
    return [_last_convolution(part) for part in (model.stem, *branches)]  # type: ignore[arg-type]


def _last_convolution(module: nn.Module) -> nn.Module:
    return [one for one in module.modules() if isinstance(one, CONVOLUTIONS)][-1]


def _prune_part(part: _Part, ratio: float) -> None:
    import torch_pruning

    layers = [nn.Linear, *CONVOLUTIONS]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    with torch.enable_grad():  # the graph is read from what autograd records
        graph = torch_pruning.DependencyGraph().build_dependency(part.module, example_inputs=part.example)
    for group in graph.get_all_groups(ignored_layers=list(part.kept), root_module_types=layers):
        root = group[0].dep
        scores = importance(group)
        leaving = _least(scores, ratio, _norm_groups(group))
        if leaving:
            graph.get_pruning_group(root.target.module, root.handler, leaving).prune()


def _norm_groups(group: Any) -> int:
    """Return the number of norm groups that divide the channels of layers that are pruned together."""
    modules = (dependency.target.module for dependency, _ in group)
    return math.lcm(*(module.num_groups for module in modules if isinstance(module, nn.GroupNorm)))


def _least(scores: Tensor, ratio: float, groups: int) -> list[int]:
    """Return the places of the channels of the lowest scores [channels], as many of each norm group."""
    width = len(scores)
    leaving = (width - width_after(width, ratio, groups)) // groups
    ranked = scores.view(groups, -1).argsort(dim=1)[:, :leaving]
    starts = torch.arange(groups)[:, None] * (width // groups)
    return sorted((ranked + starts).flatten().tolist())
