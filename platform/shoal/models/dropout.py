"""Dropout whose masks are a function of seed, step and row: not of the worker that has the row.

The hash of an element (`shoal.models.row_draws`) gives two draws of 16 bits: a probability is rounded to a multiple of
1/65536, and outputs are scaled by what it was rounded to.

Depends on the rows that the training loop announces (`RowsOfBatch`); without them these modules are torch's own.
"""

import functools
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from shoal.models.row_draws import (
    STEPS,
    announced,
    by_rows,
    call_number,
    column_seed,
    draw_bits,
    row_keys,
)

LEVELS = 1 << 16  # of a draw
TOGETHER = (
    1 << 16
)  # elements of masks that are made for several steps: a small one costs more in calls than in work


class _ByRow(nn.Module):
    """What a module of torch becomes a subclass of: its forward in training draws by row.

    Attributes:
        key: of the module's name.
        part: which of how many equal parts of the heads, or of the last dimension, its activations are; None: whole.
    """

    p: float
    inplace: bool
    key: int
    part: tuple[int, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        kept = self._kept(x) if self.training and self.p and announced.keys is not None else None
        return super().forward(x) if kept is None else self.drop(x, kept)  # type: ignore[misc, no-any-return]

    def drop(self, x: Tensor, kept: Tensor) -> Tensor:
        """Return what is kept of x, scaled, and zero elsewhere; `kept` may be the scale and zero itself."""
        if kept.is_floating_point():
            return x * kept
        threshold = _threshold(self.p)
        if threshold == LEVELS:
            return x * 0.0
        scale = LEVELS / (LEVELS - threshold)
        if self.inplace:
            return x.mul_(scale).masked_fill_(~kept, 0.0)
        return torch.where(kept, x * scale, 0.0)

    def shape(self, x: Tensor) -> tuple[int, ...] | None:
        """Return the shape that draws are made for, which x's broadcasts to; None where the module does not say."""
        return tuple(x.shape)

    def _kept(self, x: Tensor) -> Tensor | None:
        shape = self.shape(x)
        return None if shape is None else _kept(shape, self.p, self.key, self.part, self.takes_factors(x))

    def takes_factors(self, x: Tensor) -> bool:
        """Whether masks that are kept for several steps may be the factors of x: one call less in each direction."""
        return False


class RowDropout(_ByRow, nn.Dropout):
    """nn.Dropout by row."""

    def takes_factors(self, x: Tensor) -> bool:
        return x.dtype == torch.float32 and not self.inplace and _threshold(self.p) < LEVELS


class RowAlphaDropout(_ByRow, nn.AlphaDropout):
    """nn.AlphaDropout by row (Klambauer et al. 2017, "Self-Normalizing Neural Networks")."""

    SATURATED = -1.7580993408473766  # -alpha * scale of SELU

    def drop(self, x: Tensor, kept: Tensor) -> Tensor:
        dropped = _threshold(self.p) / LEVELS
        scale = ((1.0 - dropped) * (1.0 + dropped * self.SATURATED**2)) ** -0.5 if dropped < 1.0 else 0.0
        return torch.where(kept, x, self.SATURATED) * scale - self.SATURATED * dropped * scale


class _ByChannel(_ByRow):
    """Drops whole channels of [n, channels, ...]."""

    dimensions: int

    def shape(self, x: Tensor) -> tuple[int, ...] | None:
        return (*x.shape[:2], *(1,) * (self.dimensions - 2)) if x.dim() == self.dimensions else None


class RowDropout1d(_ByChannel, nn.Dropout1d):
    """nn.Dropout1d by row."""

    dimensions = 3


class RowDropout2d(_ByChannel, nn.Dropout2d):
    """nn.Dropout2d by row."""

    dimensions = 4


class RowDropout3d(_ByChannel, nn.Dropout3d):
    """nn.Dropout3d by row."""

    dimensions = 5


class RowDropPath(_ByRow):
    """Stochastic depth of a transformers model, by row: drops the whole contribution of a row."""

    inplace = False

    @property
    def p(self) -> float:  # type: ignore[override]
        return float(self.drop_prob or 0.0)  # type: ignore[arg-type]

    def shape(self, x: Tensor) -> tuple[int, ...] | None:
        return (len(x), *(1,) * (x.dim() - 1))


BY_ROW: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: RowDropout,
    nn.Dropout1d: RowDropout1d,
    nn.Dropout2d: RowDropout2d,
    nn.Dropout3d: RowDropout3d,
    nn.AlphaDropout: RowAlphaDropout,
}


def use_row_dropout(model: nn.Module) -> None:
    """Have a model's dropout and stochastic depth draw by row, in place; names, weights and evaluation stay."""
    for name, layer in model.named_modules():
        kind: Any = BY_ROW.get(type(layer))
        is_path = type(layer).__name__.endswith("DropPath") and hasattr(layer, "drop_prob")
        if is_path and not isinstance(layer, _ByRow):
            kind = type(f"Row{type(layer).__name__}", (RowDropPath, type(layer)), {})
        if kind is not None:
            layer.__class__ = kind
            layer.key = zlib.crc32(name.encode())  # type: ignore[assignment]


def _kept(
    shape: tuple[int, ...], p: float, key: int, part: tuple[int, int] | None, as_factors: bool
) -> Tensor | None:
    """Return which elements of an activation are kept, of its shape; None: its rows are not found."""
    kept = by_rows(_whole(shape, part), lambda elements: _draws(elements, p, key, as_factors))
    if kept is None or part is None:
        return kept
    divided = _divided(shape)
    return kept.narrow(divided, part[0] * shape[divided], shape[divided])


def _whole(shape: tuple[int, ...], part: tuple[int, int] | None) -> tuple[int, ...]:
    """Return the shape of the activation that this worker has a part of."""
    if part is None:
        return shape
    divided = _divided(shape)
    return (*shape[:divided], shape[divided] * part[1], *shape[divided + 1 :])


def _divided(shape: tuple[int, ...]) -> int:
    """Return the dimension that tensor parallelism divides: of attention weights the heads, else the features."""
    return 1 if len(shape) == 4 else len(shape) - 1


def _threshold(p: float) -> int:
    return round(p * LEVELS)


def _draws(elements: int, p: float, key: int, as_factors: bool) -> Tensor:
    """Return [n, elements]: which are kept, as truth values or perhaps as factors."""
    keys = announced.keys
    assert keys is not None
    threshold, call = _threshold(p), call_number(key)
    steps = 1 if torch.compiler.is_compiling() else _steps_together(len(keys) * elements)
    if steps == 1:
        return _compare(keys, elements, column_seed(key, call), threshold)
    block, number = divmod(announced.step, steps)
    masks = _masks(*announced.place, block, steps, elements, key, call, threshold, as_factors, keys.device)
    return masks[number]


def _steps_together(elements: int) -> int:
    """Return for how many steps masks are made at a time, a power of two."""
    return (
        max(1, min(STEPS, 1 << (TOGETHER // max(1, elements)).bit_length() - 1))
        if elements <= TOGETHER
        else 1
    )


@functools.lru_cache(maxsize=128)
def _masks(
    seed: int, first: int, distance: int, rows: int, block: int, steps: int,
    elements: int, key: int, call: int, threshold: int, as_factors: bool, device: torch.device,
) -> Tensor:  # fmt: skip
    """Return [steps, rows, elements]: which are kept."""
    start = block * steps
    keys = row_keys(seed, first, distance, rows, start // STEPS, device)[start % STEPS :][:steps]
    kept = _compare(keys, elements, column_seed(key, call), threshold)
    return kept.float().mul_(LEVELS / (LEVELS - threshold)) if as_factors else kept


def _compare(keys: Tensor, elements: int, columns: int, threshold: int) -> Tensor:
    """Return whether the draws of rows' keys [...] at all columns, [..., elements], reach a threshold."""
    bits = draw_bits(keys, elements, columns)
    return (bits.view(torch.int16) >= min(threshold, LEVELS - 1) - LEVELS // 2)[..., :elements]
