"""Activations computed again in backward instead of kept."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shoal.distributed.blocks import blocks_of
from shoal.errors import ModelError


def checkpoint_blocks(model: nn.Module) -> None:
    """Have each of `model.blocks` keep its inputs alone and compute its activations again in backward.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". Dropout draws the same both times. Names
    and weights of the model stay as they are.

    Raises:
        ModelError: the model names no blocks.
    """
    blocks = blocks_of(model)
    if blocks is None:
        raise ModelError(
            f"train.activation_checkpointing=true: {type(model).__name__} has no `blocks`, whose activations would be "
            "computed again: name its repeated parts so (nn.ModuleList or nn.Sequential), or set it to false"
        )
    for block in blocks:
        block.forward = functools.partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # compiled, buffers are written once anyway, and a context is refused
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    contexts = (contextlib.nullcontext(), _unchanged(block))
    return checkpoint(forward, *args, use_reentrant=False, context_fn=lambda: contexts, **kwargs)


@contextlib.contextmanager
def _unchanged(block: nn.Module) -> Iterator[None]:
    """The second forward must not move running statistics again."""
    before = [buffer.clone() for buffer in block.buffers()]
    try:
        yield
    finally:  # PyTorch leaves the second forward by an exception once it has what it needs
        for buffer, value in zip(block.buffers(), before, strict=True):
            buffer.copy_(value)
