"""What makes a training fit into memory: batches in pieces, activations computed again instead of kept.

It knows how memory runs out and how much was used; it does not know what a step is.
"""

import contextlib
import functools
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shoal.data.shard import Batch
from shoal.errors import ModelError

# How PyTorch and Python say that memory is used up; the classes alone do not cover the CPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is used up, on whichever device."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(words in str(error) for words in OUT_OF_MEMORY)


def reset_peak(device: torch.device) -> None:
    """Begin to look for the peak anew, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that tensors took on a GPU, or that this process ever had in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cut(batch: Batch, size: int, pieces: int) -> list[Batch]:
    """Cut a worker's part of a batch into so many pieces of up to `size` samples; fillers make up the number."""
    inputs, targets = batch.inputs.split(size), batch.targets.split(size)
    parts = [replace(batch, inputs=x, targets=y) for x, y in zip(inputs, targets, strict=True)]
    filler = replace(batch, inputs=batch.inputs[:1], targets=batch.targets[:1], is_filler=True)
    return parts + [filler] * (pieces - len(parts))


def checkpoint_blocks(model: nn.Module) -> None:
    """Have each of `model.blocks` keep its inputs alone and compute its activations again in backward.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". Dropout draws the same both times. Names
    and weights of the model stay as they are.

    Raises:
        ModelError: the model names no blocks.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList | nn.Sequential) or len(blocks) == 0:
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
