"""Counts floating-point operations, by PyTorch's own formula for each operation.

PyTorch's FlopCounterMode does the same and more (by module, through control flow), but imports the compiler before the
first operation: 1.3 s for every job and every refused config.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def training_flops(flops_per_sample: int, samples: int) -> int:
    """Return the operations of training on samples: a backward pass takes twice as many as a forward.

    The gradients of inputs and those of weights take as many each (Kaplan et al. 2020, "Scaling Laws for Neural
    Language Models", section 2.1: 2N forward, 6N in all; Hoffmann et al. 2022, appendix F).
    """
    return 3 * flops_per_sample * samples


class FlopCounter(TorchDispatchMode):
    """Counts operations inside this context; a multiply-add is 2."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch's name for: do not import the compiler to disable it here

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return NotImplemented  # reads a fake tensor's device and computes nothing
        arguments = dict(kwargs or {})
        formula = _formula(func._overloadpacket)  # type: ignore[attr-defined]
        if formula is None:
            with self:  # a composite operation is counted by its parts
                out = func.decompose(*args, **arguments)  # type: ignore[attr-defined]
            if out is not NotImplemented:
                return out
        out = func(*args, **arguments)
        if formula is not None:
            self.total += int(formula(*args, **arguments, out_val=out))
        return out


def _formula(operation: Any) -> Callable[..., int] | None:
    """Return PyTorch's formula; its formula for attention is not registered for the CPU's kernel."""
    if operation is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return _attention
    return flop_registry.get(operation)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))
