"""Linear layers multiplied by oneDNN, on CPUs where what torch takes by itself leaves half of their speed unused.

torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's CPUs alone. oneDNN, which torch brings along for
convolutions, uses it wherever it is: on AMD's (Zen 4 and later) the same products take less than half the time. Both
add up in float32. It knows layers and CPUs; it does not know what is trained.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.distributed.dtensor_io import is_dtensor

# Multiply-adds of a product below which a call from Python costs more than the kernel gains.
LEAST_WORK = 1 << 23


@functools.cache
def is_faster() -> bool:
    """Whether this machine's CPU is one that oneDNN serves better."""
    has = torch.cpu.get_capabilities()
    is_amd = str(has.get("cpu_name", "")).startswith("AMD")
    return torch.backends.mkldnn.is_available() and is_amd and bool(has.get("avx512_f"))


def use_onednn(model: nn.Module) -> None:
    """Have the linear layers of a model, in place, multiply by oneDNN where it is faster; all else stays as it is."""
    if is_faster():
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.__class__ = OneDNNLinear


class OneDNNLinear(nn.Linear):
    """As nn.Linear, whatever it is given; large float32 products on a CPU take less time."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] to [..., out_features]."""
        if not self._suits(x):
            return F.linear(x, self.weight, self.bias)
        product = _Product.apply(x.flatten(0, -2), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]

    def _suits(self, x: Tensor) -> bool:
        return (
            x.numel() * self.out_features >= LEAST_WORK
            and x.dim() > 1
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == self.weight.device.type == "cpu"
            and not is_dtensor(self.weight)
            and not torch.is_autocast_enabled("cpu")
        )


class _Product(torch.autograd.Function):
    """Rows times a transposed matrix, as in a linear layer: a b' + bias, with [n, k], [m, k] and [m] or None."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b, bias, "none", [], "")  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Both gradients are such products themselves, and so differentiable in turn."""
        a, b = ctx.saved_tensors
        for_a, for_b, for_bias = ctx.needs_input_grad
        multiply = _Product.apply
        return (
            multiply(gradient, b.t(), None) if for_a else None,  # type: ignore[no-untyped-call]
            multiply(gradient.t(), a.t(), None) if for_b else None,  # type: ignore[no-untyped-call]
            gradient.sum(dim=0) if for_bias else None,
        )
