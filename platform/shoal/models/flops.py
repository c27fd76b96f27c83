"""Counts floating-point operations, by PyTorch's own formula for each operation.

PyTorch's FlopCounterMode does the same and more (by module, through control flow), but imports the compiler before the
first operation: 1.3 s for every job and every refused config.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from shoal.distributed.torch_private import HAS_DISPATCH_MODE, DispatchMode, is_cpu_attention


def training_flops(flops_per_sample: int, samples: int) -> int:
    """Return the operations of training on samples: a backward pass takes twice as many as a forward.

    The gradients of inputs and those of weights take as many each (Kaplan et al. 2020, "Scaling Laws for Neural
    Language Models", section 2.1: 2N forward, 6N in all; Hoffmann et al. 2022, appendix F).
    """
    return 3 * flops_per_sample * samples


class FlopCounter(DispatchMode):
    """Counts operations inside this context; a multiply-add is 2."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

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
        formula = _formula(func.overloadpacket)  # type: ignore[attr-defined]
        if formula is None:
            with self:  # a composite operation is counted by its parts
                out = func.decompose(*args, **arguments)  # type: ignore[attr-defined]
            if out is not NotImplemented:
                return out
        out = func(*args, **arguments)
        if formula is not None:
            self.total += int(formula(*args, **arguments, out_val=out))
        return out


class PublicFlopCounter(FlopCounterMode):
    """PyTorch's own counter by the same formulas, for a PyTorch in which `FlopCounter` cannot work."""

    def __init__(self) -> None:
        super().__init__(display=False)

    @property
    def total(self) -> int:
        return int(self.get_total_flops())


def flop_counter() -> FlopCounter | PublicFlopCounter:
    """Return a context whose `total` is the operations that were called in it."""
    return FlopCounter() if HAS_DISPATCH_MODE else PublicFlopCounter()


def _formula(operation: Any) -> Callable[..., int] | None:
    """Return PyTorch's formula; its formula for attention is not registered for the CPU's kernel."""
    if is_cpu_attention(operation):
        return _attention
    return flop_registry.get(operation)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))
