"""Weights in a safetensors file: as they are, in bfloat16, or as 8-bit integers with scales.

Depends on tensors alone; independent of models and descriptions.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

SCALE = ".int8_scale"  # after a tensor's name: its scales
MOST = 127

Narrow = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def load_weights(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file; of 8-bit integers the float32 numbers that they stand for.

    Raises:
        OSError, SafetensorError: it does not read.
    """
    tensors = load_file(file)
    return {
        name: _widened(tensor, tensors[name + SCALE]) if name + SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


def as_bf16(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with those in float32 as bfloat16."""
    return {
        name: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
        for name, tensor in tensors.items()
    }


def as_int8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with those of two dimensions or more, in float32, as integers from -127 to 127 and scales.

    A scale is the largest absolute number of an output channel, the first dimension, divided by 127: zero stays zero
    ("symmetric, per channel" in Krishnamoorthi 2018, "Quantizing deep convolutional networks", sections 2.2 and 3.1.2).
    """
    found = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.dtype != torch.float32:
            found[name] = tensor
            continue
        scale = tensor.flatten(1).abs().amax(dim=1) / MOST
        steps = tensor / _along(scale, tensor).clamp(min=torch.finfo(scale.dtype).tiny)
        found[name], found[name + SCALE] = steps.round().to(torch.int8), scale
    return found


def _widened(tensor: Tensor, scale: Tensor) -> Tensor:
    return tensor * _along(scale, tensor)


def _along(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (tensor.ndim - 1))
