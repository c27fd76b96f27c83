"""Structured pruning: channels, hidden units and attention heads leave, with everything that depends on them.

Which tensors belong together is found by torch-pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any
Structural Pruning"). What a model takes and returns stays. Depends on layers; independent of data and training.
"""

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.compression.feed_forward import prune_hidden_units
from shoal.data.tree import Tree
from shoal.errors import ModelError, UserError
from shoal.models.bert import BERT
from shoal.models.call import call_model
from shoal.models.cpu_kernels import use_torch_linear
from shoal.models.gpt import GPT
from shoal.models.huggingface import HuggingFace
from shoal.models.layer_sizes import CONVOLUTIONS, is_resizable
from shoal.models.resnet import PaddedIdentity, ResidualBlock, ResNet
from shoal.models.transformer import Attention, FeedForward
from shoal.tasks.libraries import Library
from shoal.tasks.outputs import logits_of, tensors_of

PACKAGE = Library("torch_pruning", "compress")
# Numbers of channels that vector units divide evenly; the first that fits counts. At odd widths kernels are up to
# three times slower than unpruned (torch-pruning's issue 38).
FAST_WIDTHS = (16, 8, 4)

Widths = dict[nn.Module, int]  # channels of layers before any of them left


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
    kept: Sequence[nn.Module] = ()
    planned: Mapping[nn.Module, tuple[int, int]] = field(default_factory=dict)


def check_installed() -> None:
    """Refuse a Python without the package.

    Raises:
        ConfigError: with the command that installs it.
    """
    PACKAGE.check("compress.prune with compress.method=structured", "compress.method=magnitude")


def check_model(
    model: nn.Module, name: str, ratios: Sequence[float], example: Tree, are_all_read: bool = False
) -> None:
    """Refuse a model whose layers cannot be pruned: a copy is pruned to find out.

    Args:
        are_all_read: whether a loss takes all that the model returns, not the logits alone.

    Raises:
        ModelError: with the reason.
    """
    remedy = "set compress.method=magnitude, or compress.quantize=int8 alone"
    if not isinstance(example, Tensor):
        raise ModelError(f"model.name='{name}' takes several arrays, and is not pruned by channels: {remedy}")
    for ratio in ratios:
        pruned = copy.deepcopy(model)
        try:
            expected = _shapes(model, example, are_all_read)
            prune(pruned, ratio, example)
            found = _shapes(pruned, example, are_all_read)
        except UserError:
            raise
        except Exception as error:  # of torch-pruning, or of the model's forward
            raise ModelError(
                f"model.name='{name}' cannot be pruned by channels ({type(error).__name__}: "
                f"{' '.join(str(error).split())}): sizes in its forward must be those of its layers; {remedy}"
            ) from error
        if found != expected:
            raise ModelError(
                f"model.name='{name}' returned {expected}, and pruned {found}: it returns what another layer takes "
                f"too; {remedy}"
            )


def _shapes(model: nn.Module, example: Tensor, are_all_read: bool) -> str:
    """Return the shape of the logits, or those of all tensors by name."""
    returned = call_model(model, example)
    if not are_all_read:
        return str(tuple(logits_of(returned).shape))
    found = tensors_of(returned, len(example))
    return ", ".join(f"{name} {tuple(values.shape)}" for name, values in found.items())


def prune(model: nn.Module, ratio: float, example: Tensor, unpruned: nn.Module | None = None) -> None:
    """Remove channels, hidden units and attention heads of the least importance, in place.

    The importance of a channel or a head is the L2 norm of all weights that leave with it, relative to its layer's.

    Args:
        ratio: share of each layer's channels that leaves; a little less where the rest is rounded to a fast width.
        example: a batch of what the model takes.
        unpruned: the model before an earlier pruning, of whose channels `ratio` is a share; None: this model.

    Raises:
        ModelError: no layer is wide enough.
    """
    unpruned = unpruned or model
    before = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(model, HuggingFace):
        prune_hidden_units(model, lambda width: width_after(width, ratio), unpruned)
    else:
        _prune_layers(model, ratio, example, _widths(model, unpruned))
    if sum(parameter.numel() for parameter in model.parameters()) == before:
        raise ModelError(
            f"compress.prune={ratio} removes nothing: no layer has so many channels that {1 - ratio:.0%} of them, "
            "rounded to a fast width, are fewer; prune a wider model, or raise compress.prune"
        )


def _prune_layers(model: nn.Module, ratio: float, example: Tensor, widths: Widths) -> None:
    use_torch_linear(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # the dependency graph is read from what autograd records
    for part in _parts(model, ratio, example, widths):
        _prune_part(part, ratio, widths)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.fit_shortcut()
        elif isinstance(module, Attention):
            _prune_heads(module, ratio, widths)


def _widths(model: nn.Module, unpruned: nn.Module) -> Widths:
    """Return how many channels the layers of a model had before it was pruned."""
    layers = dict(unpruned.named_modules())
    found: Widths = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[module] = layers[name].out_features  # type: ignore[assignment]
        elif isinstance(module, CONVOLUTIONS):
            found[module] = layers[name].out_channels  # type: ignore[assignment]
    return found


def width_after(width: int, ratio: float, groups: int = 1) -> int:
    """Return how many of a layer's channels stay: a multiple of 16 where so many stay, else of 8, 4 or 1.

    Args:
        groups: of a norm, of which each loses as many channels as the others.
    """
    kept = width * (1 - ratio)
    steps = (math.lcm(fast, groups) for fast in FAST_WIDTHS)
    step = next((step for step in steps if step <= kept), groups)
    return min(width, max(1, math.ceil(kept / step - 1e-9)) * step)


def _parts(model: nn.Module, ratio: float, example: Tensor, widths: Widths) -> Iterator[_Part]:
    if isinstance(model, ResNet):
        with _padding_as_layers(model) as paddings:
            kept, planned = _plan_of_stream(model, ratio, paddings, widths)
            yield _Part(model, example, kept, planned)
    elif isinstance(model, GPT | BERT):
        for block in model.modules():
            if isinstance(block, FeedForward):
                hidden = torch.zeros(1, 2, block.up.in_features)
                yield _Part(block, hidden)
    else:
        yield _Part(model, example)


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
    model: ResNet, ratio: float, paddings: Sequence[nn.Conv2d], widths: Widths
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
    kept = min(width, width_after(widths[stem], ratio, groups))
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


def _prune_part(part: _Part, ratio: float, widths: Widths) -> None:
    import torch_pruning

    layers = [nn.Linear, *CONVOLUTIONS]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of parameters outside of layers, which are left alone
        graph = torch_pruning.DependencyGraph().build_dependency(part.module, example_inputs=part.example)
    for group in graph.get_all_groups(ignored_layers=list(part.kept), root_module_types=layers):
        if not _may_shrink(graph, group):
            continue
        root, groups = group[0].dep, _norm_groups(group)
        width = graph.get_out_channels(root.target.module)
        usual = min(width, width_after(widths.get(root.target.module, width), ratio, groups))
        kept, groups = part.planned.get(root.target.module, (usual, groups))
        # Where a channel was flattened, each of its places has a score.
        scores = importance(group).view(width, -1).sum(dim=1)
        leaving = _least(scores, width - kept, groups)
        if leaving:
            graph.get_pruning_group(root.target.module, root.handler, leaving).prune()


def _may_shrink(graph: Any, group: Any) -> bool:
    """Whether channels are those of layers whose sizes a description can state, and another layer alone takes them."""
    from torch_pruning import ops

    modules = [dependency.target.module for dependency, _ in group]
    if any(ops.module2type(module) == ops.OPTYPE.OUTPUT for module in modules):
        return False  # the model returns them
    is_taken = any(graph.is_in_channel_pruning_fn(dependency.handler) for dependency, _ in group)
    return is_taken and all(
        is_resizable(module) or (isinstance(module, nn.Module) and not list(module.parameters()))
        for module in modules
    )


def _prune_heads(attention: Attention, ratio: float, widths: Widths) -> None:
    """Remove whole heads, so that each that stays is as wide as before; one always stays."""
    import torch_pruning

    inner, size = (attention.query, attention.key, attention.value), attention.head_dim
    width = attention.query.out_features
    kept = min(width, width_after(widths[attention.query], ratio, size))
    scores = attention.project.weight.square().sum(dim=0)
    for layer in inner:
        scores = scores + layer.weight.square().sum(dim=1)
    ranked = scores.view(-1, size).sum(dim=1).argsort()
    leaving = (ranked[: (width - kept) // size, None] * size + torch.arange(size)).flatten().tolist()
    if leaving:
        for layer in inner:
            torch_pruning.prune_linear_out_channels(layer, leaving)
        torch_pruning.prune_linear_in_channels(attention.project, leaving)


def _norm_groups(group: Any) -> int:
    """Return the number of norm groups that divide the channels of layers that are pruned together."""
    modules = (dependency.target.module for dependency, _ in group)
    return math.lcm(*(module.num_groups for module in modules if isinstance(module, nn.GroupNorm)))


def _least(scores: Tensor, count: int, groups: int) -> list[int]:
    """Return the places of so many channels of the lowest scores [channels], as many of each group."""
    ranked = scores.view(groups, -1).argsort(dim=1)[:, : count // groups]
    starts = torch.arange(groups)[:, None] * (len(scores) // groups)
    return sorted((ranked + starts).flatten().tolist())
