"""Linear layers computed by oneDNN, on CPUs where torch's own choice uses half of their speed.

torch multiplies float32 matrices with MKL, which uses AVX-512 on Intel CPUs only. oneDNN, which torch includes for
convolutions, uses it on every CPU that has it: on AMD's Zen 5 the same products take half the time, and on Zen 4,
whose units have 256 bits, as long. Both accumulate in float32. Depends on layers and CPUs; independent of what is
trained.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.distributed.dtensor_io import is_dtensor
from shoal.distributed.torch_private import has_onednn_linear, onednn_linear

# Multiply-adds of a product below which the call from Python costs more than the kernel saves.
LEAST_WORK = 1 << 23


@functools.cache
def is_faster() -> bool:
    """Whether oneDNN is faster than MKL on this machine's CPU, or as fast."""
    has = torch.cpu.get_capabilities()
    is_amd = str(has.get("cpu_name", "")).startswith("AMD")
    return has_onednn_linear() and is_amd and bool(has.get("avx512_f"))


def use_onednn(model: nn.Module) -> None:
    """Make the linear layers of a model multiply with oneDNN, in place, if it is faster on this CPU."""
    if is_faster():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = OneDNNLinear


def use_torch_linear(model: nn.Module) -> None:
    """Undo `use_onednn`, in place: a graph that is recorded for other machines has torch's operations alone."""
    for layer in model.modules():
        if isinstance(layer, OneDNNLinear):
            layer.__class__ = nn.Linear  # type: ignore[assignment]


class OneDNNLinear(nn.Linear):
    """Computes what nn.Linear does; large float32 products on a CPU take less time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if not self._is_suitable(x):
            return F.linear(x, self.weight, self.bias)
        product = _Product.apply(x.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]

    def _is_suitable(self, x: Tensor) -> bool:
        return (
            x.numel() * self.out_features >= LEAST_WORK
            and x.dim() > 1
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == self.weight.device.type == "cpu"
            and not is_dtensor(self.weight)
            and not torch.is_autocast_enabled("cpu")
        )


def _dense(matrix: Tensor) -> Tensor:
    """Copy a matrix whose elements lie apart or on each other: oneDNN takes 500 times as long for it."""
    return matrix if 1 in matrix.stride() and 0 not in matrix.stride() else matrix.contiguous()


class _Product(torch.autograd.Function):
    """Rows times a transposed matrix, as in a linear layer: a b' + bias, with [n, k], [m, k] and [m] or None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(a.contiguous(), _dense(b), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Compute both gradients as such products, which makes them differentiable themselves."""
        a, b = ctx.saved_tensors
        for_a, for_b, for_bias = ctx.needs_input_grad
        multiply = _Product.apply
        return (
            multiply(gradient, b.t(), None) if for_a else None,  # type: ignore[no-untyped-call]
            multiply(gradient.t(), a.t(), None) if for_b else None,  # type: ignore[no-untyped-call]
            gradient.sum(dim=0) if for_bias else None,
        )
