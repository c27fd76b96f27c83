"""The number format of forward and backward: autocast, and the scaling of losses that fp16 needs.

Weights, gradients and optimizer stay fp32. It knows neither models nor the loop.
"""

import contextlib
from typing import Literal

import torch
from torch.amp.grad_scaler import GradScaler

Precision = Literal["fp32", "bf16", "fp16"]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device_type: str) -> contextlib.AbstractContextManager[object]:
    """Return the context that a forward pass runs in."""
    dtype = HALF.get(precision)
    return torch.autocast(device_type, dtype=dtype) if dtype else contextlib.nullcontext()


def make_scaler(precision: Precision, device_type: str) -> GradScaler:
    """Return the scaler of losses before backward, so that small gradients do not vanish in fp16.

    Micikevicius et al. 2018, "Mixed Precision Training", section 3.2. A step whose gradients overflow is skipped
    and the scale halved. With bf16, which has the range of fp32, and with fp32 it changes nothing.
    """
    return GradScaler(device_type, enabled=precision == "fp16")
