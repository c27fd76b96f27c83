"""Random numbers that a model draws in its forward become those of its rows, where a draw has the batch's rows.

Covers torch.rand, randn, their `_like`s, normal, bernoulli, a tensor's `normal_`, `uniform_`, `bernoulli_` and
`exponential_`, torch.distributions that use these, functional dropout and Gumbel softmax. A draw without the batch's
rows (one for all of them, say) stays torch's, and so do those inside torch's own kernels, as of attention's and LSTM's
dropout.

Depends on the rows that the training loop announces (`RowsOfBatch`).
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from shoal.models.row_draws import announced, call_number, column_seed, draw_bits, product

LEVELS = 1 << 16  # of the half of a hash; two halves make a draw
KEY = zlib.crc32(b"row noise")

# From a shape to draws of it, float64; None where the shape does not have the rows.
Draw = Callable[[tuple[int, ...]], Tensor | None]


class RowNoise(TorchFunctionMode):
    """A context of forward and backward in which random numbers are drawn by row."""

    @staticmethod
    def has_drawn() -> bool:
        """Whether anything was drawn for the announced rows."""
        return KEY in announced.drawn

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        by_row = _BY_ROW.get(func)
        if by_row is not None and announced.keys is not None and kwargs.get("generator") is None:
            drawn = by_row(*args, **kwargs)
            if drawn is not None:
                return drawn
        return func(*args, **kwargs)


def uniform(shape: tuple[int, ...]) -> Tensor | None:
    """Return float64 draws in [0, 1), multiples of 2**-32."""
    return _with_rows_first(shape, _uniform_rows)


def normal(shape: tuple[int, ...]) -> Tensor | None:
    """Return float64 draws of the standard normal distribution, by Box and Muller (1958)."""

    def draw(elements: int) -> Tensor:
        # One minus a draw is above 0. In float64, which hides in float32 by what kernel a logarithm was computed.
        radius = (-2 * (1 - _uniform_rows(elements)).log()).sqrt()
        return radius * (2 * math.pi * _uniform_rows(elements)).cos()

    return _with_rows_first(shape, draw)


def _with_rows_first(shape: tuple[int, ...], draw: Callable[[int], Tensor]) -> Tensor | None:
    """Return draws of a shape [n, ...]; None where its first dimension is not that of the rows."""
    assert announced.keys is not None
    if not shape or shape[0] != len(announced.keys):
        return None
    return draw(product(shape[1:])).view(shape)


def _uniform_rows(elements: int) -> Tensor:
    """Return [n, elements] float64 in [0, 1)."""
    keys = announced.keys
    assert keys is not None
    bits = draw_bits(keys, 2 * elements, column_seed(KEY, call_number(KEY)))
    return (bits.double() + 2**31) / 2**32


def _factory(draw: Draw) -> Callable[..., Tensor | None]:
    """Return what stands for torch.rand or torch.randn."""

    def make(*size: Any, **options: Any) -> Tensor | None:
        shape = options.pop("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        return _typed(draw(tuple(shape)), options)

    return make


def _like(draw: Draw) -> Callable[..., Tensor | None]:
    """Return what stands for torch.rand_like or torch.randn_like."""

    def make(like: Tensor, **options: Any) -> Tensor | None:
        return _typed(draw(tuple(like.shape)), {"dtype": like.dtype, "device": like.device} | options)

    return make


def _typed(drawn: Tensor | None, options: Mapping[str, Any]) -> Tensor | None:
    """Convert draws as the options of a factory say."""
    if drawn is None:
        return None
    dtype, device = options.get("dtype") or torch.get_default_dtype(), options.get("device")
    if drawn.is_floating_point() and dtype in (torch.float16, torch.bfloat16):
        drawn = drawn.float()
    typed = drawn.to(device=device or drawn.device, dtype=dtype)
    return typed.requires_grad_() if options.get("requires_grad") else typed


def _normal(mean: Any, std: Any = 1.0, size: Any = None, **options: Any) -> Tensor | None:
    """Stand for torch.normal."""
    given = [value for value in (mean, std) if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(value.shape for value in given)) if given else tuple(size)
    dtype = options.get("dtype") or (given[0].dtype if given else None)
    drawn = _typed(normal(tuple(shape)), options | {"dtype": dtype})
    return None if drawn is None else drawn * std + mean


def _bernoulli(p: Tensor, *args: Any, **options: Any) -> Tensor | None:
    """Stand for torch.bernoulli; of the forms with a number besides the tensor, torch's."""
    drawn = None if args or options else uniform(tuple(p.shape))
    return None if drawn is None else (drawn < p.detach()).to(p.dtype)


def _in_place(draw: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Return what stands for a method that fills a tensor with draws."""

    def fill(tensor: Tensor, *args: Any, **options: Any) -> Tensor | None:
        drawn = draw(tuple(tensor.shape), *args, **{k: v for k, v in options.items() if k != "generator"})
        return None if drawn is None else tensor.copy_(drawn)

    return fill


def _scaled_normal(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> Tensor | None:
    drawn = normal(shape)
    return None if drawn is None else drawn * std + mean


def _between(shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor | None:
    """Call the bounds by place; torch's names for them are keywords of Python (`from`, `to`)."""
    drawn = uniform(shape)
    return None if drawn is None else drawn * (high - low) + low


def _coins(shape: tuple[int, ...], p: Any = 0.5) -> Tensor | None:
    drawn = uniform(shape)
    return None if drawn is None else drawn < p


def _exponential(shape: tuple[int, ...], lambd: float = 1.0) -> Tensor | None:
    drawn = uniform(shape)
    return None if drawn is None else -(1 - drawn).clamp(min=2.0**-33).log() / lambd


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:
    """Stand for functional dropout."""
    drawn = uniform(tuple(x.shape)) if training and 0 < p < 1 else None
    if drawn is None:
        return None
    factors = (drawn >= p).to(x.dtype) / (1 - p)
    return x.mul_(factors) if inplace else x * factors


def _gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor | None:
    """Stand for functional Gumbel softmax (Jang et al. 2017), with the straight-through estimate if it is hard."""
    drawn = _typed(_exponential(tuple(logits.shape)), {"dtype": logits.dtype, "device": logits.device})
    if drawn is None:
        return None
    soft = ((logits - drawn.log()) / tau).softmax(dim)
    if not hard:
        return soft
    chosen = torch.zeros_like(logits).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return chosen - soft.detach() + soft


_BY_ROW: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    torch.rand: _factory(uniform),
    torch.randn: _factory(normal),
    torch.rand_like: _like(uniform),
    torch.randn_like: _like(normal),
    torch.normal: _normal,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.normal_: _in_place(_scaled_normal),
    Tensor.uniform_: _in_place(_between),
    Tensor.bernoulli_: _in_place(_coins),
    Tensor.exponential_: _in_place(_exponential),
    F.gumbel_softmax: _gumbel_softmax,
    F.dropout: _dropout,
    torch.dropout: _dropout,
}
