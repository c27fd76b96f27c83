"""Counts the floating-point operations of what runs under it, by PyTorch's own formula of each operation.

PyTorch's FlopCounterMode does the same and more (by module, through control flow), and imports the compiler before
the first operation: 1.3 s that every job and every refused config would pay.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


def training_flops(flops_per_sample: int, samples: int) -> int:
    """Return the operations of training on samples: a backward pass takes twice those of a forward one.

    The gradients of inputs and of weights take as many each (Kaplan et al. 2020, "Scaling Laws for Neural Language
    Models", section 2.1: 2N forward, 6N in all; Hoffmann et al. 2022, appendix F).
    """
    return 3 * flops_per_sample * samples


class FlopCounter(TorchDispatchMode):
    """Adds up operations, a multiply-add counting as 2, while it is open as a context."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch's own word for: do not import the compiler to keep it out of this

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return NotImplemented  # a fake tensor's device is asked for; nothing is computed
        given = dict(kwargs or {})
        formula = _formula(func._overloadpacket)  # type: ignore[attr-defined]
        if formula is None:
            with self:  # what is made of other operations is counted by these
                out = func.decompose(*args, **given)  # type: ignore[attr-defined]
            if out is not NotImplemented:
                return out
        out = func(*args, **given)
        if formula is not None:
            self.total += int(formula(*args, **given, out_val=out))
        return out


def _formula(operation: Any) -> Callable[..., int] | None:
    """Return PyTorch's formula; it has one for attention, yet does not apply it to the CPU's kernel."""
    if operation is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return _attention
    return flop_registry.get(operation)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))
