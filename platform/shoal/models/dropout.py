"""Dropout whose masks are a function of seed, step and row: not of the worker that has the row.

torch draws a mask from a generator that each worker has for itself. Here an element's draw is a hash of its row's key
and its column's. A row's key comes from the seed, the optimizer step and the row's place in the global batch; a
column's from the module's name, the number of the call in this forward, and the element's place. So a mask is the same
however a batch is divided among workers and micro-batches, and when activations are computed again in backward.

The hash is the finalizer `lowbias32` (Wellons 2018, "Prospecting for Hash Functions"; in the manner of MurmurHash3's)
in 32-bit integers, which are the same on every device. It gives two draws of 16 bits: a probability is rounded to a
multiple of 1/65536, and outputs are scaled by what it was rounded to.

Depends on the rows that the training loop announces (`RowsOfBatch`); without them these modules are torch's own.
"""

import functools
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.sampler import mix

SALT = np.uint64(0x4452_4F50)  # keeps the draws apart from those of order, splits and views
LEVELS = 1 << 16  # of a draw
STEPS = 64  # that row keys are made for at a time, and at most the masks of small activations
TOGETHER = 1 << 16  # elements of such masks: a small one costs more in calls than in work

_draw = torch.zeros((), dtype=torch.int64)


class _Announced:
    """The rows that are being computed on.

    Attributes:
        keys: [n] int32, of the rows; None outside the training loop.
        step: of the optimizer.
        place: what keys of other steps are made from: seed, first row, distance of rows, number of rows.
        drawn: by module, the number of each call, by what it drew from torch's generator.
        calls: by module, calls that the compiler has traced.
        is_filler: whether the rows do not count.
        fallbacks: shapes of activations in which the rows were not found.
    """

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.step, self.place, self.is_filler = 0, (0, 0, 1, 0), False
        self.drawn: dict[int, dict[int, int]] = {}
        self.calls: dict[int, int] = {}
        self.fallbacks: set[tuple[int, ...]] = set()

    @property
    def draws(self) -> int:
        """How many numbers were drawn from torch's generator for these rows."""
        return sum(map(len, self.drawn.values()))


announced = _Announced()


class RowsOfBatch:
    """A context of forward and backward over rows of a global batch: row i is number `first + i * distance` of it."""

    def __init__(
        self,
        seed: int,
        step: int,
        first: int,
        distance: int,
        rows: int,
        device: torch.device,
        is_filler: bool = False,
    ) -> None:
        """Take what the rows are.

        Args:
            seed: of the run.
            step: of the optimizer, from 0.
            first: place of the first row in the global batch.
            distance: from a row's place to the next one's.
            rows: their number.
            device: that they are on.
            is_filler: whether they do not count.
        """
        self._step, self._place, self._device = step, (seed, first, distance, rows), device
        self._is_filler = is_filler

    def __enter__(self) -> None:
        block, number = divmod(self._step, STEPS)
        announced.step, announced.place = self._step, self._place
        announced.keys = _row_keys(*self._place, block, self._device)[number]
        announced.drawn, announced.calls = {}, {}
        announced.is_filler = self._is_filler

    def __exit__(self, *_: object) -> None:
        announced.keys, announced.is_filler = None, False


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


def draw() -> int:
    """Draw a number from torch's generator for the CPU."""
    return int(_draw.random_())


def _kept(
    shape: tuple[int, ...], p: float, key: int, part: tuple[int, int] | None, as_factors: bool
) -> Tensor | None:
    """Return which elements of an activation are kept, [n, ...] or [k, n, ...] or [n * k, ...]; None: not known."""
    assert announced.keys is not None
    whole, rows = _whole(shape, part), len(announced.keys)
    elements = _product(whole) // rows
    if whole[0] == rows or (whole[0] % rows == 0 and not (len(whole) > 2 and whole[1] == rows)):
        kept = _draws(elements, p, key, as_factors).view(whole)
    elif len(whole) > 2 and whole[1] == rows:
        kept = _draws(elements, p, key, as_factors).view(rows, whole[0], *whole[2:]).transpose(0, 1)
    else:
        announced.fallbacks.add(shape)
        return None
    if part is None:
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


def _product(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda one, other: one * other, shape, 1)


def _threshold(p: float) -> int:
    return round(p * LEVELS)


def _draws(elements: int, p: float, key: int, as_factors: bool) -> Tensor:
    """Return [n, elements]: which are kept, as truth values or perhaps as factors."""
    keys = announced.keys
    assert keys is not None
    threshold, call = _threshold(p), _call_number(key)
    steps = 1 if torch.compiler.is_compiling() else _steps_together(len(keys) * elements)
    if steps == 1:
        return _compare(keys, elements, _column_seed(key, call), threshold)
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


def _call_number(key: int) -> int:
    """Return the number of this call of a module among those on these rows.

    A call draws from torch's generator, whose state torch restores when it computes activations again: a call that
    draws what an earlier one drew is that one again. The compiler computes again from what it has traced.
    """
    if torch.compiler.is_compiling():
        number = announced.calls.get(key, 0)
        announced.calls[key] = number + 1
        return number
    drawn = announced.drawn.setdefault(key, {})
    return drawn.setdefault(draw(), len(drawn))


def _column_seed(key: int, call: int) -> int:
    """Return a signed 32-bit number."""
    bits = (key ^ (call + 1) * 0x9E3779B1) & 0xFFFFFFFF
    bits = (bits ^ bits >> 16) * 0x7FEB352D & 0xFFFFFFFF
    bits = (bits ^ bits >> 15) * 0x846CA68B & 0xFFFFFFFF
    return (bits ^ bits >> 16) - (1 << 31)


@functools.lru_cache(maxsize=64)
def _row_keys(seed: int, first: int, distance: int, rows: int, block: int, device: torch.device) -> Tensor:
    """Return [STEPS, rows] int32, the keys of a worker's rows in a block of steps."""
    steps = np.arange(block * STEPS, (block + 1) * STEPS, dtype=np.uint64)
    lanes = first + distance * np.arange(rows, dtype=np.uint64)
    keys = mix(mix(mix(np.uint64(seed) + SALT) ^ steps)[:, None] ^ lanes)
    return torch.from_numpy((keys >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(device)


@functools.lru_cache(maxsize=128)
def _masks(
    seed: int, first: int, distance: int, rows: int, block: int, steps: int,
    elements: int, key: int, call: int, threshold: int, as_factors: bool, device: torch.device,
) -> Tensor:  # fmt: skip
    """Return [steps, rows, elements]: which are kept."""
    start = block * steps
    keys = _row_keys(seed, first, distance, rows, start // STEPS, device)[start % STEPS :][:steps]
    kept = _compare(keys, elements, _column_seed(key, call), threshold)
    return kept.float().mul_(LEVELS / (LEVELS - threshold)) if as_factors else kept


def _compare(keys: Tensor, elements: int, columns: int, threshold: int) -> Tensor:
    """Return whether the draws of rows' keys [...] at all columns, [..., elements], reach a threshold."""
    pairs = torch.arange((elements + 1) // 2, dtype=torch.int32, device=keys.device)
    bits = _hash(keys[..., None] + _hash(_hash(pairs) + columns))
    return (bits.view(torch.int16) >= min(threshold, LEVELS - 1) - LEVELS // 2)[..., :elements]


def _hash(bits: Tensor) -> Tensor:
    """Mix 32-bit integers in place."""
    # A shift repeats the sign, which is masked away.
    bits = bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF)).mul_(0x7FEB352D)
    bits = bits.bitwise_xor_((bits >> 15).bitwise_and_(0x1FFFF)).mul_(0x846CA68B - (1 << 32))
    return bits.bitwise_xor_((bits >> 16).bitwise_and_(0xFFFF))
